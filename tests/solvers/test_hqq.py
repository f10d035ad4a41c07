"""HQQ: held against the splitting in slow loops, and against what the l_p norm is for."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.solvers import kernels_fit
from hvlc.solvers.hqq import half_quadratic
from hvlc.solvers.rtn import extreme_on_last_level
from hvlc.weights.formats import Levels, ScaleType, WeightFormat, weight_format
from tests.helpers.solvers import (
    FLOAT_ZEROS,
    FORMATS,
    blocks_of,
    check_slow,
    matrices,
    normal,
    plain_grid,
    rounded,
    squared,
    stored,
    stored_zero,
)
from tests.helpers.tolerances import SOLVER_ERROR

P = 0.75


def norm(weight: np.ndarray, levels: Levels) -> float:
    """`sum |error| ** p`."""
    return float((np.abs(levels.dequantize(weight.shape[1]).astype(np.float64) - weight) ** P).sum())


def shrunk(r: float, beta: float) -> float:
    """Generalized soft thresholding."""
    return float(np.sign(r)) * max(abs(r) - abs(r) ** (P - 1) / beta, 0.0) if r else 0.0


def slow_best(values: list[float], format: WeightFormat) -> float:
    """Least l_p error among the iterates for one block, in python and float64."""
    top, beta, errors = 2**format.bits - 1, 10.0, []
    scale, zero = plain_grid(values, format)
    for _ in range(20):
        scale, kept = stored(scale, format), stored_zero(zero, format)
        levels = rounded(values, scale, kept, format)
        errors.append(sum(abs(k * scale - v) ** P for k, v in zip(levels, values, strict=True)))
        targets = [v / scale - shrunk(v / scale - k, beta) for k, v in zip(levels, values, strict=True)]
        factor = sum(t * k for t, k in zip(targets, levels, strict=True)) / sum(k * k for k in levels)
        if not format.symmetric:
            left = 0.0
            for v in values:
                level = max(0, min(top, int(np.floor(v / scale + zero + 0.5))))
                left += level - (v / scale - shrunk(v / scale - (level - zero), beta))
            zero = left / len(values)
        scale, beta = scale * factor, beta * 1.01
    return min(errors)


@pytest.mark.parametrize("format", FORMATS + FLOAT_ZEROS, ids=str)
def test_the_splitting_in_slow_loops_finds_the_same_error(format: WeightFormat) -> None:
    weight = normal(8, 48) * np.linspace(0.01, 10, 8, dtype=np.float32)[:, None]
    weight[:, ::13] *= 4  # outliers
    # measured: 1 of 24 apart
    check_slow(weight, lambda block: norm(block, half_quadratic(block, format)), partial(slow_best, format=format), 2)


@given(matrices, st.sampled_from(FORMATS + FLOAT_ZEROS))
@settings(max_examples=100)
def test_never_worse_than_the_plain_rule_in_its_own_norm(weight: np.ndarray, format: WeightFormat) -> None:
    plain = 0.0
    for values in blocks_of(weight, format.block_size):
        scale, zero = plain_grid(values, format)
        scale = stored(scale, format) if scale else 0.0
        levels = rounded(values, scale, stored_zero(zero, format), format)
        plain += sum(abs(k * scale - v) ** P for k, v in zip(levels, values, strict=True))
    # a weight that is exact there may be wrong here by float32's rounding, which the power 3/4 makes larger
    assert norm(weight, half_quadratic(weight, format)) <= plain * (1 + SOLVER_ERROR) + 1e-3


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_beats_the_plain_rule_in_its_own_norm_and_in_squares(symmetric: bool, bits: int) -> None:
    weight, format = normal(64, 256), weight_format(bits, 32, symmetric)
    found, plain = half_quadratic(weight, format), extreme_on_last_level(weight, format)
    assert norm(weight, found) < 0.99 * norm(weight, plain)
    assert squared(weight, found) < 0.99 * squared(weight, plain)


@pytest.mark.parametrize("format", FLOAT_ZEROS, ids=str)
def test_float_zero_points_gain(format: WeightFormat) -> None:
    weight, whole = normal(64, 256), weight_format(format.bits, format.block_size, False, format.scale_type)
    assert norm(weight, half_quadratic(weight, format)) < 0.95 * norm(weight, half_quadratic(weight, whole))


def test_an_outlier_does_not_stretch_the_grid_of_the_others() -> None:
    """Weights on a grid, and one beyond its end: that one alone is wrong."""
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), (1, 2))
    weight[0, 0] = -8.6
    format = weight_format(4, 32, True, ScaleType.FLOAT32)
    missed = np.abs(half_quadratic(weight, format).dequantize(32) - weight)[0]
    plain = np.abs(extreme_on_last_level(weight, format).dequantize(32) - weight)[0]
    assert np.median(missed) < 0.2 * np.median(plain)
    assert missed.argmax() == 0


@given(st.floats(-4, 4, width=32), st.sampled_from([10.0, 11.0, 12.0]))
def test_shrinking_is_the_generalized_soft_threshold(missed: float, beta: float) -> None:
    found = float(kernels_fit._shrink(np.float32(missed), np.float32(beta)))
    assert found == pytest.approx(shrunk(missed, beta), rel=1e-4, abs=1e-6)
    assert abs(found) <= abs(missed)
