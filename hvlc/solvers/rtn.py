"""Round to nearest: levels without data."""

import numpy as np

from hvlc.solvers import kernels
from hvlc.solvers.lpbq import in_lpbq, with_free_scales
from hvlc.weights.formats import ScaleType, WeightFormat
from hvlc.weights.quantized import Levels

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
    if not format.symmetric:
        return _asymmetric(weight, format, _SEARCHED)
    return _symmetric(weight, format, _SEARCHED, _SEARCHED if format.negative_scales else _WHOLE)


def extreme_on_last_level(weight: np.ndarray, format: WeightFormat) -> Levels:
    """One scale a block, without search: onnxruntime's own rule (`quantize_matmul_4bits`), to the bit.

    The block's extreme value `e` lies on the lowest level, the scale is `-e / 2 ** (bits - 1)`, and
    `level = floor(value / scale + 2 ** (bits - 1) + 0.5)`; asymmetric formats span the block's range.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: bits, block size, symmetry and scale type.
    """
    if not format.symmetric:
        return _asymmetric(weight, format, _WHOLE)
    return _symmetric(weight, format, _NONE, _WHOLE)


def _symmetric(weight: np.ndarray, format: WeightFormat, shrink: np.ndarray, signed: np.ndarray) -> Levels:
    if format.is_lpbq:
        return in_lpbq(weight, _symmetric(weight, with_free_scales(format), shrink, signed))
    levels, scales = room(weight, format)
    half_scales = format.scale_type is ScaleType.FLOAT16
    flat = levels.reshape(-1, format.block_size)
    kernels.symmetric(
        weight, format.bits, shrink, signed, format.negative_scales, half_scales, flat, scales.reshape(-1)
    )
    return Levels(levels, scales, None, format)


def _asymmetric(weight: np.ndarray, format: WeightFormat, shrink: np.ndarray) -> Levels:
    levels, scales = room(weight, format)
    zeros = np.empty(scales.shape, np.uint8)
    half_scales = format.scale_type is ScaleType.FLOAT16
    flat = levels.reshape(-1, format.block_size)
    kernels.asymmetric(weight, format.bits, shrink, half_scales, flat, scales.reshape(-1), zeros.reshape(-1))
    return Levels(levels, scales, zeros, format)


def room(weight: np.ndarray, format: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """Unfilled levels uint8 `[out, blocks, block_size]` and scales float32 `[out, blocks]` of a weight."""
    rows, blocks = weight.shape[0], -(-weight.shape[1] // format.block_size)
    return np.empty((rows, blocks, format.block_size), np.uint8), np.empty((rows, blocks), np.float32)


def stored_zeros(zeros: np.ndarray, format: WeightFormat) -> np.ndarray | None:
    """Zero points float32 `[out, blocks]` in the element type that they are stored in."""
    if format.symmetric:
        return None
    return zeros if format.float_zeros else zeros.astype(np.uint8)
