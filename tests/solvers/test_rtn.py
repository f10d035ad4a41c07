"""Rounding to nearest: held against slow textbook loops and closed forms."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.solvers import kernels
from hvlc.solvers.rtn import extreme_on_last_level, round_to_nearest
from hvlc.weights.formats import Levels, ScaleType, Stream, WeightFormat, weight_format
from tests.helpers.solvers import (
    ASYMMETRIC,
    FORMATS,
    SYMMETRIC,
    matrices,
    normal,
    on_asymmetric_levels,
    on_symmetric_levels,
    squared,
    stored,
)
from tests.helpers.tolerances import SOLVER_ERROR


def zero_of(levels: Levels) -> np.ndarray:
    middle = 2 ** (levels.format.bits - 1)
    return np.full(levels.scales.shape, middle) if levels.zero_points is None else levels.zero_points.astype(int)


@given(matrices, st.sampled_from(FORMATS))
@settings(max_examples=150)
def test_inside_the_range_no_weight_moves_by_more_than_half_a_step(weight: np.ndarray, format: WeightFormat) -> None:
    levels = round_to_nearest(weight, format)
    dequantized, top = levels.dequantize(weight.shape[1]), 2**format.bits - 1
    zero, block = zero_of(levels), format.block_size
    for (row, column), value in np.ndenumerate(weight):
        scale = float(levels.scales[row, column // block])
        low, high = sorted([-zero[row, column // block] * scale, (top - zero[row, column // block]) * scale])
        moved = abs(float(value) - float(dequantized[row, column]))
        clipped = max(low - value, value - high, 0)  # outside, the nearest end is as near as it gets
        assert moved <= max(abs(scale) / 2, clipped) * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("format", SYMMETRIC, ids=str)
@pytest.mark.parametrize("extreme", ["lowest level", "highest level"])
def test_representable_weights_are_exact(format: WeightFormat, extreme: str) -> None:
    weight = on_symmetric_levels(format, extreme)
    np.testing.assert_array_equal(round_to_nearest(weight, format).dequantize(32), weight)


@pytest.mark.parametrize("format", ASYMMETRIC, ids=str)
def test_representable_asymmetric_weights_are_exact(format: WeightFormat) -> None:
    weight = on_asymmetric_levels(format)
    np.testing.assert_array_equal(round_to_nearest(weight, format).dequantize(32), weight)


@given(matrices, st.sampled_from(SYMMETRIC))
@settings(max_examples=100)
def test_never_worse_than_the_largest_weight_on_the_last_level(weight: np.ndarray, format: WeightFormat) -> None:
    half, block = 2 ** (format.bits - 1), format.block_size
    plain = 0.0
    for row in weight:
        for start in range(0, len(row), block):
            values = row[start : start + block].astype(np.float64)
            largest = np.array([np.abs(values).max() / (half - 1)], np.float32)
            scale = stored(float(largest[0]), format) or 1.0
            plain += float(np.square(np.clip(np.rint(values / scale), -half, half - 1) * scale - values).sum())
    found = squared(weight, round_to_nearest(weight, format))
    assert found <= plain * (1 + SOLVER_ERROR) + 1e-9


def slow_best(values: list[float], format: WeightFormat) -> float:
    """Least squared error of a block over all candidate scales, in python loops."""
    half, type_ = 2 ** (format.bits - 1), np.float16 if format.scale_type is ScaleType.FLOAT16 else np.float32
    extreme = max(values, key=abs)
    shrinks = [1 - 0.025 * step for step in range(11)]
    candidates = [abs(extreme) / (half - 1) * s for s in shrinks]
    if format.negative_scales:
        candidates += [-extreme / half * s for s in shrinks]
    elif extreme < 0:
        candidates.append(-extreme / half)
    best = float("inf")
    for candidate in candidates:
        scale = float(type_(candidate))
        error = 0.0
        for value in values:
            level = max(-half, min(half - 1, round(value / scale)))
            error += (level * scale - value) ** 2
        best = min(best, error)
    return best


@pytest.mark.parametrize("format", SYMMETRIC, ids=str)
def test_a_slow_search_over_the_same_scales_finds_nothing_better(format: WeightFormat) -> None:
    weight = normal(6, 48) * np.linspace(0.01, 10, 6, dtype=np.float32)[:, None]
    slow = sum(slow_best([float(v) for v in block], format) for block in weight.reshape(-1, 16))
    assert squared(weight, round_to_nearest(weight, format)) == pytest.approx(slow, rel=SOLVER_ERROR)


def test_negative_scales_and_choice_of_scale_are_worth_it() -> None:
    weight = normal(64, 256)
    errors = [
        squared(weight, round_to_nearest(weight, weight_format(4, 32, True, ScaleType.FLOAT32, negative)))
        for negative in (True, False)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_more_bits_and_smaller_blocks_never_hurt() -> None:
    weight = normal(16, 256)
    for formats in (
        [weight_format(8, 32), weight_format(4, 32)],
        [weight_format(4, b) for b in (16, 32, 64, 128)],
    ):
        errors = [squared(weight, round_to_nearest(weight, f)) for f in formats]
        assert all(one < other for one, other in pairwise(errors))


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_minmax_gives_the_bytes_of_onnxruntimes_quantizer(block: int, rows: int) -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    weight = normal(rows, 512) * np.float32(0.02)
    weight[0, :block] = 0
    weight[-1, :3], weight[-1, -3:] = [0.5, -0.5, 0.25], [-0.5, 0.25, 0.5]  # of two equals the negative one decides
    blocks = 512 // block
    packed, scales = np.zeros((rows, blocks, block // 2), np.uint8), np.zeros(rows * blocks, np.float32)
    zeros = np.zeros((rows, (blocks + 1) // 2), np.uint8)
    quantize_matmul_4bits(packed, np.ascontiguousarray(weight.T), scales, zeros, block, rows, 512, True)
    levels = extreme_on_last_level(weight, weight_format(4, block, True, ScaleType.FLOAT32))
    np.testing.assert_array_equal(levels.stored(Stream.LEVELS), packed)
    np.testing.assert_array_equal(levels.stored(Stream.SCALES).reshape(-1), scales)


def test_the_search_beats_the_plain_rule() -> None:
    weight, format = normal(64, 256), weight_format(4, 32)
    assert squared(weight, round_to_nearest(weight, format)) < 0.9 * squared(
        weight, extreme_on_last_level(weight, format)
    )


def test_scales_round_to_float16_as_numpy_rounds() -> None:
    """Every exponent, values between, on and just beside two neighbours, both signs."""
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    between = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate([halves, between, between * (1 + 1e-6), between * (1 - 1e-6)]).astype(np.float32)
    values = np.concatenate([values, -values])
    rounded = values.copy()
    kernels._to_half(rounded)
    np.testing.assert_array_equal(rounded, values.astype(np.float16).astype(np.float32))


def test_kernels_work_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels, "njit", refuse)
    assert kernels.compiled(len)([1, 2]) == 2
