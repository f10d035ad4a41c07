"""LPBQ: every scale is a whole number times its row's float, whoever solves, and the rounding costs little."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.errors import HvlcError
from hvlc.solvers import CALIBRATED, neural_compressor
from hvlc.solvers.lpbq import in_lpbq, whole_scales
from hvlc.solvers.rtn import round_to_nearest
from hvlc.solvers.statistics import InputStatistics
from hvlc.weights.formats import LPBQ_LARGEST, Levels, ScaleType, Stream, WeightFormat, weight_format
from tests.helpers.solvers import GENERAL, LPBQ, matrices, normal, squared

FORMAT = LPBQ[0]
Solve = Callable[[np.ndarray, WeightFormat], Levels]


def calibrated(name: str) -> Solve:
    """A solver that needs data, given inputs of which some matter more."""

    def solve(weight: np.ndarray, format: WeightFormat) -> Levels:
        columns, entry = weight.shape[1], CALIBRATED[name]
        gram = np.diag(np.linspace(0.1, 2, columns, dtype=np.float32))
        mean_square = np.diagonal(gram).copy()
        statistics = InputStatistics(gram, mean_square, np.ones(columns, np.float32), 100)
        return entry.prepare(statistics, format, entry.options())(np.ascontiguousarray(weight))

    return solve


ALL: dict[str, Solve] = {**GENERAL, **{name: calibrated(name) for name in CALIBRATED}}
solvers = pytest.mark.parametrize("solver", ALL)


def wholes_and_factors(levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    return levels.stored(Stream.SCALES), levels.stored(Stream.FACTORS)


@solvers
@given(weight=matrices, format=st.sampled_from(LPBQ))
@settings(max_examples=40)
def test_every_scale_is_a_whole_number_times_its_rows_float(
    solver: str, weight: np.ndarray, format: WeightFormat
) -> None:
    levels = ALL[solver](weight, format)
    wholes, factors = wholes_and_factors(levels)
    assert (wholes.dtype, factors.dtype, factors.shape) == (np.uint8, np.float32, (len(weight),))
    assert wholes.min() >= 1
    assert (wholes.max(axis=1) == LPBQ_LARGEST).all()
    assert (factors > 0).all()
    np.testing.assert_array_equal(wholes.astype(np.float32) * factors[:, None], levels.scales)
    assert levels.levels.max() < 16
    padded = levels.dequantize(levels.levels.shape[1] * format.block_size)
    assert (padded[:, weight.shape[1] :] == 0).all()


@given(weight=matrices, format=st.sampled_from(LPBQ))
@settings(max_examples=60)
def test_the_error_is_at_most_that_of_free_scales_and_of_half_a_wider_step(
    weight: np.ndarray, format: WeightFormat
) -> None:
    """The next larger scale is one of those tried: there a weight that free scales cut off is cut off by less, and any
    other moves by half a step at most.
    """
    free = round_to_nearest(weight, format.searched)
    found = in_lpbq(weight, free)
    factor = found.scales.max(axis=1, keepdims=True) / LPBQ_LARGEST
    columns = weight.shape[1]
    inside = np.minimum((np.arange(free.scales.shape[1]) + 1) * format.block_size, columns)
    counts = np.diff(inside, prepend=0)
    step = free.scales.astype(np.float64) + factor
    bound = squared(weight, free) + float((counts * (step / 2) ** 2).sum())
    assert squared(weight, found) <= bound * (1 + 1e-5)


@solvers
def test_rounding_scales_costs_a_tenth_of_the_error_at_most(solver: str) -> None:
    weight = np.random.default_rng(0).standard_t(5, size=(48, 256)).astype(np.float32)
    free = FORMAT.searched
    assert squared(weight, ALL[solver](weight, FORMAT)) < 1.1 * squared(weight, ALL[solver](weight, free))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_slow_search_takes_the_same_numbers(weighted: bool) -> None:
    weight, columns = normal(5, 80), 80
    importance = np.exp(normal(1, columns, 1))[0] if weighted else np.ones(columns, np.float32)
    free = round_to_nearest(weight, FORMAT.searched).scales
    found = whole_scales(weight, free, importance, FORMAT)
    for row in range(5):
        factor = float(free[row].max()) / LPBQ_LARGEST
        for block in range(5):
            at = slice(16 * block, 16 * block + 16)
            values, weights = weight[row, at].astype(np.float64), importance[at]

            def error(
                whole: int, values: np.ndarray = values, weights: np.ndarray = weights, factor: float = factor
            ) -> float:
                steps = np.floor(values / (whole * factor) + 0.5).clip(-8, 7)
                return float((weights * (steps * whole * factor - values) ** 2).sum())

            below = int(free[row, block] / factor * (1 + 1e-7))
            wanted = min({below, min(below + 1, LPBQ_LARGEST)}, key=error) if below < LPBQ_LARGEST else LPBQ_LARGEST
            assert found[row, block] == pytest.approx(wanted * factor, rel=1e-6)


@solvers
@pytest.mark.parametrize("size", [0.0, 1e-41, 1e-30, 1e-9, 1e5, 1e30])
@pytest.mark.filterwarnings("error")
def test_weights_of_any_size_have_scales(solver: str, size: float) -> None:
    weight = (normal(3, 40).astype(np.float64) * size).astype(np.float32)
    levels = ALL[solver](weight, FORMAT)
    wholes, factors = wholes_and_factors(levels)
    assert wholes.min() >= 1
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    assert np.isfinite(levels.dequantize(40)).all()


@solvers
def test_rows_do_not_know_each_other(solver: str) -> None:
    weight = normal(5, 50)
    whole, alone = ALL[solver](weight, FORMAT), [ALL[solver](weight[i : i + 1], FORMAT) for i in range(5)]
    for stream in FORMAT.streams:
        parts = np.concatenate([part.stored(stream) for part in alone])
        np.testing.assert_array_equal(whole.stored(stream), parts)


def test_planned_bytes_are_those_of_the_arrays() -> None:
    levels = round_to_nearest(normal(5, 100), FORMAT)
    assert sum(levels.stored(stream).nbytes for stream in FORMAT.streams) == FORMAT.bytes(5, 100)


def test_scales_that_are_no_whole_numbers_are_the_solvers_bug() -> None:
    levels = round_to_nearest(normal(2, 64), FORMAT)
    wrong = replace(levels, scales=levels.scales * np.array([1, 1.01, 1, 1], np.float32))
    with pytest.raises(HvlcError, match=r"solver\.scales"):
        wrong.stored(Stream.SCALES)


@pytest.mark.parametrize(
    "changes", [{"bits": 8}, {"symmetric": False}, {"negative_scales": True}, {"per_channel": True}]
)
def test_other_forms_have_no_such_scales(changes: dict[str, Any]) -> None:
    settings = {"bits": 4, "block_size": 16, "scale_type": ScaleType.LPBQ, "negative_scales": False, **changes}
    with pytest.raises(ValueError, match="lpbq"):
        weight_format(**settings)


@pytest.mark.parametrize("solver", neural_compressor.OFFERED)
def test_neural_compressor_declines(solver: str) -> None:
    verdict = neural_compressor.supports(solver, FORMAT, 64)
    assert not verdict
    assert "LPBQ" in verdict.reason


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_rows_of_any_size_are_kept(factor: float) -> None:
    """A row's factor is a float32: nothing is flushed to what float16 holds."""
    weight = normal(4, 128)
    usual, other = (round_to_nearest(w, FORMAT).dequantize(128) for w in (weight, weight * np.float32(factor)))
    np.testing.assert_allclose(other, usual * np.float32(factor), rtol=1e-5)
