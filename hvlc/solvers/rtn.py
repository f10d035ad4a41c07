"""Round to nearest, data-free."""

import numpy as np

from hvlc.solvers.kernel_calls import extremes
from hvlc.solvers.lpbq import under_held_scales
from hvlc.weights.formats import Levels, WeightFormat

_SEARCHED = np.linspace(1.0, 0.75, 11, dtype=np.float32)
_WHOLE = np.ones(1, np.float32)
_NONE = np.zeros(0, np.float32)


def round_to_nearest(weight: np.ndarray, format: WeightFormat) -> Levels:
    """Every block tries scales and keeps the one with the least squared error.

    Candidates put the block's extreme value on the last level, shrunk by up to a quarter; with negative scales
    also on the other end, which has one level more.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: bits, block size, symmetry and scale type.

    Returns:
        Levels of `[out, ceil(in / block_size), block_size]`; the same for a row whatever rows come with it.
    """
    signed = _SEARCHED if format.negative_scales else _WHOLE
    return under_held_scales(weight, format, lambda free: extremes(weight, free, _SEARCHED, signed))


def extreme_on_last_level(weight: np.ndarray, format: WeightFormat) -> Levels:
    """One scale a block, without search: onnxruntime's own rule (`quantize_matmul_4bits`), to the bit.

    The block's extreme value `e` lies on the lowest level, the scale is `-e / 2 ** (bits - 1)`, and
    `level = floor(value / scale + 2 ** (bits - 1) + 0.5)`. Asymmetric formats span the block's range; levels and zero
    points are onnxruntime's, and scales to the two roundings of a difference that does not overflow.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: bits, block size, symmetry and scale type.
    """
    return under_held_scales(weight, format, lambda free: extremes(weight, free, _NONE, _WHOLE))
