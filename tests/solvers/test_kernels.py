"""No finite block is lost, however large its values are."""

import numpy as np
import pytest

from hvlc.solvers import SOLVERS
from hvlc.weights.formats import ScaleType, weight_format
from tests.helpers.solvers import GENERAL


@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("magnitude", [1e18, 1e20, 1e30, 1e38])
def test_a_block_whose_squared_error_overflows_keeps_its_values(
    solver: str, symmetric: bool, bits: int, magnitude: float
) -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (3, 50)).astype(np.float32) * np.float32(magnitude)
    format = weight_format(bits, 32, symmetric=symmetric, scale_type=ScaleType.FLOAT32)
    levels = SOLVERS[solver](weight, format)
    missed = np.abs(levels.dequantize(50).astype(np.float64) - weight)
    assert levels.scales.all()
    assert missed.max() <= 1.01 * magnitude / (2**bits / 2 - 1)


@pytest.mark.parametrize("solver", GENERAL)
def test_what_float16_scales_cannot_reach_is_cut_off_and_not_zero(solver: str) -> None:
    weight = np.full((1, 32), 1e25, np.float32)
    weight[0, ::2] *= -1
    values = SOLVERS[solver](weight, weight_format(4, 32)).dequantize(32)
    assert (np.sign(values) == np.sign(weight)).all()
    assert np.abs(values).min() > 65504
