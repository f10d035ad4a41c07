"""Factors of channels against their definitions on explicit inputs."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.calibration.scaling import awq_factors, output_errors, scaled_statistics, smooth_factors
from hvlc.solvers.rtn import round_to_nearest
from hvlc.solvers.statistics import Accumulator, InputStatistics
from hvlc.weights.formats import WeightFormat, weight_format
from tests.helpers.tolerances import SOLVER_ERROR

FORMAT = weight_format(4, 16)


def rounded(weight: np.ndarray, format: WeightFormat = FORMAT) -> np.ndarray:
    return round_to_nearest(np.ascontiguousarray(weight), format).dequantize(weight.shape[1])


def inputs(width: int, seed: int, outliers: int = 2) -> np.ndarray:
    """Correlated rows with some channels that are thirty times as large."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(50, width)) @ (np.eye(width) + 0.3 * random.normal(size=(width, width)))
    x[:, random.choice(width, min(outliers, width), replace=False)] *= 30
    return x.astype(np.float32)


def weights(width: int, seed: int, count: int = 2) -> list[np.ndarray]:
    random = np.random.default_rng(seed + 100)
    return [random.normal(size=(5 + i, width)).astype(np.float32) for i in range(count)]


def statistics_of(x: np.ndarray) -> InputStatistics:
    found = Accumulator(x.shape[1])
    found.add(x)
    return found.finish()


def slow_error(x: np.ndarray, group: list[np.ndarray], factors: np.ndarray) -> float:
    """Mean over the inputs of the squared difference of every output, one vector and one output after another."""
    total = 0.0
    for weight in group:
        restored = rounded(weight * factors).astype(np.float64) / factors
        for vector in x.astype(np.float64):
            for row, exact in zip(restored, weight, strict=True):
                total += float((vector @ row - vector @ exact.astype(np.float64)) ** 2)
    return total / len(x)


def slow_factors(x: np.ndarray, exponent: float) -> np.ndarray:
    found = np.array([np.mean([abs(float(v)) for v in channel]) ** exponent for channel in x.T])
    return found / np.sqrt(found.max() * found.min())


@given(width=st.integers(1, 40), seed=st.integers(0, 20))
def test_the_search_is_the_best_of_the_grid_by_definition(width: int, seed: int) -> None:
    x, group = inputs(width, seed), weights(width, seed)
    found = awq_factors(group, [rounded] * 2, statistics_of(x), exponents=5)
    errors = [slow_error(x, group, slow_factors(x, step / 5).astype(np.float32)) for step in range(5)]
    np.testing.assert_allclose(found.factors, slow_factors(x, found.exponent), rtol=1e-5)
    np.testing.assert_allclose([found.error, found.unscaled_error], [min(errors), errors[0]], rtol=5e-3)
    assert found.factors.dtype == np.float32


def test_outliers_get_larger_factors_and_the_error_falls() -> None:
    x, group = inputs(64, 1), weights(64, 1)
    found = awq_factors(group, [rounded] * 2, statistics_of(x))
    assert found.error < 0.8 * found.unscaled_error
    assert found.exponent > 0
    loud = np.argsort(np.abs(x).mean(0))[-2:]
    assert set(np.argsort(found.factors)[-2:]) == set(loud)


def test_what_rounds_exactly_is_not_scaled() -> None:
    x, group = inputs(16, 2), weights(16, 2)
    found = awq_factors(group, [lambda w: w] * 2, statistics_of(x))
    # W * s / s differs from W by its rounding, and without factors by nothing
    assert (found.exponent, found.unscaled_error) == (0, 0)
    np.testing.assert_array_equal(found.factors, np.ones(16, np.float32))


def test_each_weight_is_rounded_as_it_will_be() -> None:
    x, group = inputs(32, 3), weights(32, 3)
    eight = partial(rounded, format=weight_format(8, 16))
    errors = {
        name: awq_factors(group, list(roundings), statistics_of(x)).unscaled_error
        for name, roundings in {"44": (rounded, rounded), "48": (rounded, eight), "84": (eight, rounded)}.items()
    }
    assert errors["48"] < errors["44"]
    assert errors["84"] < errors["44"]
    assert errors["48"] != errors["84"]


def test_channels_of_one_number_share_a_factor() -> None:
    x, group = inputs(12, 4), weights(12, 4)
    channels = np.array([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5])
    found = awq_factors(group, [rounded] * 2, statistics_of(x), channels).factors
    smooth = smooth_factors(group, statistics_of(x), channels)
    for factors in (found, smooth):
        assert all(len(set(factors[channels == channel])) == 1 for channel in range(6))
    pooled = np.array([np.abs(x[:, channels == channel]).mean() for channel in range(6)])[channels]
    assert np.all(np.diff(found[np.argsort(pooled)]) >= 0)


def test_a_few_rows_stand_for_all_where_a_few_hold_the_error() -> None:
    """Two outputs of 300 are fifty times as large: rows at even distances would most likely miss them."""
    x = inputs(32, 5)
    random = np.random.default_rng(9)
    weight = random.normal(size=(300, 32)).astype(np.float32)
    weight[[101, 202]] *= 50 * random.uniform(size=32).astype(np.float32)
    searched: list[np.ndarray] = []

    def noted(values: np.ndarray) -> np.ndarray:
        searched.append(values)
        return rounded(values)

    few = awq_factors([weight], [noted], statistics_of(x), rows=20)
    every = awq_factors([weight], [rounded], statistics_of(x), rows=300)
    assert (len(searched[0]), len(searched)) == (300, 21)  # all rows once, then some for every exponent
    assert max(len(rows) for rows in searched[1:]) <= 20
    unscaled = {row.tobytes() for row in searched[1]}
    assert {weight[101].tobytes(), weight[202].tobytes()} <= unscaled
    assert few.unscaled_error == pytest.approx(every.unscaled_error)
    difference = weight - rounded(weight * few.factors) / few.factors
    assert output_errors(difference, statistics_of(x).gram).sum() < 1.1 * every.error


def test_sampled_rows_estimate_without_bias() -> None:
    """On rows that are all alike, any sample is exact."""
    x = inputs(32, 5)
    (weight,) = weights(32, 5, 1)
    alike = np.concatenate([weight[:1]] * 200)
    found = [awq_factors([alike], [rounded], statistics_of(x), rows=rows) for rows in (7, 200)]
    assert found[0].error == pytest.approx(found[1].error, rel=1e-9)
    assert found[0].exponent == found[1].exponent


@pytest.mark.parametrize("exponents", [2, 20])
def test_a_channel_that_is_always_zero_gets_a_factor(exponents: int) -> None:
    x, group = inputs(16, 6), weights(16, 6)
    x[:, 3] = 0
    for values in (x, np.zeros_like(x)):
        factors = awq_factors(group, [rounded] * 2, statistics_of(values), exponents=exponents).factors
        assert np.isfinite(factors).all()
        assert (factors > 0).all()
        smooth = smooth_factors([*group, np.zeros((2, 16), np.float32)], statistics_of(values))
        assert np.isfinite(smooth).all()
        assert (smooth > 0).all()


@given(width=st.integers(1, 20), seed=st.integers(0, 20), exponent=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_smooth_factors_are_those_of_the_paper(width: int, seed: int, exponent: float) -> None:
    x, group = inputs(width, seed), weights(width, seed)
    found = smooth_factors(group, statistics_of(x), exponent=exponent)
    for channel in range(width):
        activation = max(abs(float(v)) for v in x[:, channel])
        peak = max(abs(float(v)) for weight in group for v in weight[:, channel])
        assert found[channel] == pytest.approx(activation**exponent / peak ** (1 - exponent), rel=1e-5)


def test_half_and_half_equalizes_the_peaks() -> None:
    x, group = inputs(24, 7), weights(24, 7)
    factors = smooth_factors(group, statistics_of(x))
    activations = np.abs(x / factors).max(0)
    peaks = np.max([np.abs(weight * factors).max(0) for weight in group], 0)
    np.testing.assert_allclose(activations, peaks, rtol=1e-5)


@given(width=st.integers(1, 30), seed=st.integers(0, 20))
def test_scaled_statistics_are_those_of_scaled_inputs(width: int, seed: int) -> None:
    x = inputs(width, seed)
    factors = np.random.default_rng(seed).uniform(0.1, 10, width).astype(np.float32)
    found, expected = scaled_statistics(statistics_of(x), factors), statistics_of(x / factors)
    for name in ("gram", "mean_abs", "peak"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, atol=SOLVER_ERROR * np.abs(other).max(), err_msg=name)
    assert found.count == expected.count


def test_output_errors_are_mean_squares_of_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (difference,) = inputs(40, 8), weights(40, 8, 1)
    expected = ((x.astype(np.float64) @ difference.T.astype(np.float64)) ** 2).mean(0)
    whole = output_errors(difference, statistics_of(x).gram)
    np.testing.assert_allclose(whole, expected, rtol=SOLVER_ERROR)
    monkeypatch.setattr("hvlc.calibration.scaling._BLOCK", 3)
    np.testing.assert_allclose(output_errors(difference, statistics_of(x).gram), whole, rtol=1e-12)
