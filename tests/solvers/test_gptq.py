"""GPTQ against its paper, its own promises, and round to nearest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.solvers import kernels
from hvlc.solvers.gptq import GptqOptions, cholesky_in_place, factor, gptq, prepare_gptq
from hvlc.solvers.registry import CALIBRATED
from hvlc.solvers.statistics import Accumulator, InputStatistics
from hvlc.weights.formats import Levels, ScaleType, Stream, WeightFormat, weight_format
from tests.helpers.solvers import FORMATS, normal, stored

formats = pytest.mark.parametrize("format", FORMATS, ids=str)


def statistics_of(inputs: np.ndarray) -> InputStatistics:
    accumulator = Accumulator(inputs.shape[-1])
    accumulator.add(inputs)
    return accumulator.finish()


def correlated(tokens: int, features: int, seed: int = 0) -> np.ndarray:
    """Inputs whose channels move together and differ in size, as those of a layer do."""
    mixing = normal(features, features, seed + 1) / features**0.5 + np.eye(features, dtype=np.float32)
    sizes = np.exp(normal(1, features, seed + 2))
    return (normal(tokens, features, seed) @ mixing * sizes).astype(np.float32)


def reference(
    weight: np.ndarray, levels: Levels, gram: np.ndarray, damping: float, *, act_order: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Frantar et al., algorithm 1, one column at a time, on the grids that `levels` has.

    Returns:
        The levels `[out, in]`, and how far each value was from the border between two levels, in steps.
    """
    size = levels.levels.shape[1] * levels.levels.shape[2]
    hessian = np.zeros((size, size))
    hessian[: len(gram), : len(gram)] = gram
    hessian += damping * np.mean(np.diagonal(gram), dtype=np.float64) * np.eye(size)
    padded = np.zeros((len(weight), size))
    padded[:, : weight.shape[1]] = weight
    order = np.argsort(-np.diagonal(hessian).astype(np.float32), kind="stable") if act_order else np.arange(size)
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T  # the paper's Cholesky(H^-1)^T
    top, block = 2**levels.format.bits - 1, levels.format.block_size
    found, margin = np.zeros(padded.shape, int), np.zeros(padded.shape)
    for row in range(len(padded)):
        values = padded[row, order].copy()
        for j in range(size):
            place = order[j]
            scale = float(levels.scales[row, place // block])
            zero = top // 2 + 1 if levels.zero_points is None else int(levels.zero_points[row, place // block])
            steps = values[j] / scale + zero + 0.5
            level = min(max(int(np.floor(steps)), 0), top)
            error = (values[j] - (level - zero) * scale) / upper[j, j]
            for k in range(j, size):
                values[k] -= error * upper[j, k]
            found[row, place], margin[row, place] = level, abs(steps - round(steps))
    return found, margin


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("columns", [16, 40, 150, 300])
@pytest.mark.parametrize("format", [f for f in FORMATS if f.negative_scales], ids=str)
def test_levels_are_the_papers(format: WeightFormat, columns: int, act_order: bool) -> None:
    """One level that falls on a border may go the other way, and takes the rest of its row along."""
    weight, statistics = normal(3, columns), statistics_of(correlated(4 * columns, columns))
    levels = gptq(weight, format, statistics, GptqOptions(0.05, act_order))
    wanted, margin = reference(weight, levels, statistics.gram, 0.05, act_order=act_order)
    same = (levels.levels.reshape(3, -1) == wanted).all(1)
    ties = (margin < 1e-4 * 2**format.bits).any(1)
    assert (same | ties).all()
    assert same.any() or format.bits == 8


def gram_error(weight: np.ndarray, levels: Levels, gram: np.ndarray) -> float:
    missed = levels.dequantize(weight.shape[1]).astype(np.float64) - weight
    return float(np.einsum("ri,ij,rj->", missed, gram.astype(np.float64), missed))


def nearest(weight: np.ndarray, levels: Levels) -> Levels:
    """Round to nearest on the same grids."""
    blocks = np.zeros(levels.levels.shape, np.float32)
    blocks.reshape(len(weight), -1)[:, : weight.shape[1]] = weight
    middle = 2 ** (levels.format.bits - 1) if levels.zero_points is None else levels.zero_points[..., None]
    steps = np.floor(blocks / levels.scales[..., None] + middle + 0.5)
    return Levels(
        steps.clip(0, 2**levels.format.bits - 1).astype(np.uint8), levels.scales, levels.zero_points, levels.format
    )


@given(seed=st.integers(0, 10**6), columns=st.integers(2, 90), format=st.sampled_from(FORMATS))
@settings(max_examples=25)
def test_the_output_error_is_below_that_of_rounding_to_nearest(seed: int, columns: int, format: WeightFormat) -> None:
    weight, statistics = normal(24, columns, seed), statistics_of(correlated(6 * columns + 8, columns, seed))
    levels = gptq(weight, format, statistics, GptqOptions(0.01))
    rounded = nearest(weight, levels)
    assert gram_error(weight, levels, statistics.gram) <= 1.02 * gram_error(weight, rounded, statistics.gram)


def test_correlated_inputs_gain_much() -> None:
    weight, statistics = normal(64, 128), statistics_of(correlated(2000, 128))
    levels = gptq(weight, weight_format(4, 32), statistics, GptqOptions(0.01))
    gained = gram_error(weight, levels, statistics.gram) / gram_error(weight, nearest(weight, levels), statistics.gram)
    assert gained < 0.7


@formats
@pytest.mark.parametrize("act_order", [True, False])
def test_inputs_that_do_not_correlate_leave_rounding_to_nearest(format: WeightFormat, act_order: bool) -> None:
    weight = normal(4, 70)
    identity = InputStatistics(np.eye(70, dtype=np.float32), np.ones(70, np.float32), np.ones(70, np.float32), 70)
    levels = gptq(weight, format, identity, GptqOptions(act_order=act_order))
    np.testing.assert_array_equal(levels.levels, nearest(weight, levels).levels)


@formats
@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((3, 40)),
        np.pad(normal(200, 10), ((0, 0), (15, 15))),
        normal(1, 40),
        np.repeat(normal(1, 40), 500, 0),
        np.ones((2, 40)),
    ],
    ids=["none", "few", "one token", "the same token", "ones"],
)
@pytest.mark.parametrize("damping", [1e-12, 0.1])
@pytest.mark.filterwarnings("error")
def test_inputs_without_full_rank_give_sound_levels(format: WeightFormat, inputs: np.ndarray, damping: float) -> None:
    weight, statistics = normal(3, 40), statistics_of(inputs)
    levels = gptq(weight, format, statistics, GptqOptions(damping))
    assert np.isfinite(levels.scales).all()
    assert levels.levels.max() < 2**format.bits
    dead = statistics.mean_square == 0
    far = np.abs(levels.dequantize(40) - weight)[:, dead]
    assert (far <= np.abs(levels.scales).max() * 0.51 + np.abs(weight[:, dead])).all()  # nothing blows up
    assert gram_error(weight, levels, statistics.gram) <= 1.02 * max(
        gram_error(weight, nearest(weight, levels), statistics.gram), 1e-9
    )


@formats
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e15])
@pytest.mark.filterwarnings("error")
def test_the_size_of_inputs_changes_nothing(format: WeightFormat, size: float) -> None:
    weight, inputs = normal(3, 40), correlated(300, 40)
    levels = gptq(weight, format, statistics_of((inputs * 2.0 ** round(np.log2(size))).astype(np.float32)))
    if size > 1e-20:
        np.testing.assert_array_equal(levels.levels, gptq(weight, format, statistics_of(inputs)).levels)
    assert np.isfinite(levels.scales).all()  # squares of 1e-30 are zero: rounding to nearest is left


@formats
@pytest.mark.parametrize("size", [0.0, 1e-41, 1e-30, 1e-9, 1e5, 1e20, 1e36])
@pytest.mark.filterwarnings("error")
def test_weights_of_any_size_give_finite_levels(format: WeightFormat, size: float) -> None:
    weight = (normal(3, 40).astype(np.float64) * size).astype(np.float32)
    levels = gptq(weight, format, statistics_of(correlated(300, 40)))
    assert np.isfinite(levels.dequantize(40)).all()
    assert np.isfinite(levels.stored(Stream.SCALES)).all()
    np.testing.assert_array_equal(levels.stored(Stream.SCALES).astype(np.float32), levels.scales)
    if format.scale_type is ScaleType.FLOAT32 and size >= 1e-30:
        missed = np.abs(levels.dequantize(40).astype(np.float64) - weight).mean()
        assert missed < 0.5 * np.abs(weight.astype(np.float64)).mean()


@formats
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_rows_do_not_know_each_other(format: WeightFormat, rows: int) -> None:
    weight, statistics = normal(21, 150), statistics_of(correlated(500, 150))
    solve = prepare_gptq(statistics, format, GptqOptions())
    parts = [solve(weight[start : start + rows]) for start in range(0, 21, rows)]
    whole = solve(weight)
    np.testing.assert_array_equal(whole.levels, np.concatenate([p.levels for p in parts]))
    np.testing.assert_array_equal(whole.scales, np.concatenate([p.scales for p in parts]))
    if whole.zero_points is not None:
        np.testing.assert_array_equal(
            whole.zero_points, np.concatenate([p.zero_points for p in parts if p.zero_points is not None])
        )


@formats
def test_padding_is_stored_as_zero(format: WeightFormat) -> None:
    levels = gptq(normal(3, 20), format, statistics_of(correlated(90, 20)))
    assert levels.levels.shape == (3, 2, 16)
    assert (levels.dequantize(32)[:, 20:] == 0).all()


def test_the_weight_is_not_changed() -> None:
    weight = normal(4, 64)
    before = weight.copy()
    gptq(weight, weight_format(4, 32), statistics_of(correlated(90, 64)))
    np.testing.assert_array_equal(weight, before)


def test_statistics_are_not_changed() -> None:
    statistics = statistics_of(correlated(90, 64))
    before = statistics.gram.copy()
    factor(statistics, 32, GptqOptions())
    np.testing.assert_array_equal(statistics.gram, before)


def brute_force(
    values: np.ndarray, importance: np.ndarray, format: WeightFormat, shrink: np.ndarray
) -> tuple[float, list[tuple[float, float]]]:
    """The least weighted error of a block over all candidates, and the scales and zero points that reach it."""
    top, half = 2**format.bits - 1, 2 ** (format.bits - 1)
    extreme = min(values, key=lambda v: (-abs(v), v))
    tried = []
    for above in map(float, shrink):
        if format.symmetric:
            tried += [(stored(abs(extreme) / (half - 1) * above, format), half)]
            if format.negative_scales or extreme < 0:
                tried += [(stored(-extreme / half * above, format), half)]
            continue
        low, high = min(0.0, *values), max(0.0, *values)
        for below in map(float, shrink):
            scale = stored((high * above - low * below) / top, format)
            tried.append((scale, min(max(np.floor(-low * below / scale + 0.5), 0), top) if scale else 0))
    errors = [
        sum(
            importance[i] * ((min(max(np.floor(v / s + z + 0.5), 0), top) - z) * s - v) ** 2 if s else v * v
            for i, v in enumerate(values)
        )
        for s, z in tried
    ]
    least = min(errors)
    return least, [t for t, error in zip(tried, errors, strict=True) if error <= least * (1 + 1e-4)]


@formats
def test_weighted_scales_are_the_best_of_their_candidates(format: WeightFormat) -> None:
    weight, importance = normal(6, 48), np.exp(2 * normal(1, 48, 1))[0]
    shrink = np.linspace(1.0, 0.6, 5, dtype=np.float32)
    scales, zeros = np.empty((6, 3), np.float32), np.full((6, 3), 2 ** (format.bits - 1), np.float32)
    half = format.scale_type is ScaleType.FLOAT16
    if format.symmetric:
        kernels.weighted_symmetric(weight, importance, format.bits, 16, shrink, format.negative_scales, half, scales)
    else:
        kernels.weighted_asymmetric(weight, importance, format.bits, 16, shrink, half, scales, zeros)
    for row in range(6):
        for block in range(3):
            at = slice(16 * block, 16 * block + 16)
            values = weight[row, at].astype(np.float64)
            _, best = brute_force(values, importance[at].astype(np.float64), format, shrink)
            found = (scales[row, block], zeros[row, block])
            assert any(np.allclose(found, b, rtol=2e-3 if half else 1e-6, atol=0) for b in best)


def test_importance_decides_who_is_cut_off() -> None:
    weight = np.full((1, 16), 0.1, np.float32)
    weight[0, 0] = 1.0
    scales = [np.empty((1, 1), np.float32) for _ in range(2)]
    shrink = np.linspace(1.0, 0.6, 12, dtype=np.float32)
    for found, first in zip(scales, (1e-6, 1.0), strict=True):
        importance = np.ones(16, np.float32)
        importance[0] = first
        kernels.weighted_symmetric(weight, importance, 4, 16, shrink, False, False, found)
    assert scales[0] < scales[1]


@pytest.mark.parametrize("damping", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_damping_has_a_range(damping: float) -> None:
    with pytest.raises(ValueError, match="damping"):
        GptqOptions(damping)


def test_it_is_entered_as_a_solver() -> None:
    weight, statistics = normal(3, 40), statistics_of(correlated(100, 40))
    entry = CALIBRATED["gptq"]
    found = entry.prepare(statistics, weight_format(4, 16), entry.options(damping=0.02))(weight)
    np.testing.assert_array_equal(
        found.levels, gptq(weight, weight_format(4, 16), statistics, GptqOptions(0.02)).levels
    )


@pytest.mark.parametrize("block", [1, 7, 16, 50, 64])
def test_a_factor_in_blocks_is_the_factor(block: int) -> None:
    rows = normal(200, 50).astype(np.float64)
    matrix = (rows.T @ rows / 200 + 0.1 * np.eye(50)).astype(np.float32)
    found = cholesky_in_place(matrix.copy(), block)
    np.testing.assert_allclose(found, np.linalg.cholesky(matrix.astype(np.float64)), rtol=1e-4, atol=1e-5)
    assert not np.triu(found, 1).any()
    if block >= 50:
        assert np.array_equal(found, np.linalg.cholesky(matrix))


@pytest.mark.parametrize("block", [3, 8])
def test_a_matrix_that_is_not_definite_has_no_factor(block: int) -> None:
    matrix = np.eye(8, dtype=np.float32)
    matrix[6, 6] = -1
    with pytest.raises(np.linalg.LinAlgError):
        cholesky_in_place(matrix, block)
