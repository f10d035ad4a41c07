"""Call the kernels for a weight format: allocate the outputs, and choose the kernel by its zero points."""

import numpy as np

from hvlc.solvers import kernels, kernels_fit
from hvlc.weights.formats import Levels, WeightFormat


def extremes(weight: np.ndarray, format: WeightFormat, shrink: np.ndarray, signed: np.ndarray) -> Levels:
    """Rounding under the scale of least squared error, of those that put a block's extreme value on the last level.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: of the levels; its scales are free.
        shrink: float32, factors of the scale that are tried.
        signed: float32, the same with the extreme value on the end that has one level more; where there are any of
            these, an asymmetric format takes the first kind alone.
    """
    levels, scales = room(weight, format)
    flat = levels.reshape(-1, format.block_size), scales.reshape(-1)
    if format.symmetric:
        kernels.symmetric(weight, format.bits, shrink, signed, format.negative_scales, format.half_scales, *flat)
        return Levels(levels, scales, None, format)
    zeros, tried = np.empty(scales.shape, np.uint8), shrink if shrink.size else signed
    kernels.asymmetric(weight, format.bits, tried, format.half_scales, *flat, zeros.reshape(-1))
    return Levels(levels, scales, zeros.astype(format.zero_dtype, copy=False), format)


def least_squares(
    weight: np.ndarray,
    importance: np.ndarray,
    by_magnitude: bool,
    format: WeightFormat,
    steps: tuple[np.ndarray, np.ndarray],
) -> Levels:
    """Scales (and zero points) fitted to roundings by weighted least squares.

    Args:
        weight: float32 `[out, in]`, row-major.
        importance: `[in]`, of the squared errors.
        by_magnitude: whether these are multiplied by the weights' magnitudes.
        format: of the levels; its scales are free.
        steps: float32, how far grids are stretched, without zero points and with.
    """
    levels, scales = room(weight, format)
    zeros = np.empty_like(scales)
    kernels_fit.least_squares(
        weight,
        np.broadcast_to(importance.astype(np.float32), weight.shape),
        by_magnitude,
        *_grid(format),
        steps[0 if format.symmetric else 1],
        levels.reshape(-1, format.block_size),
        scales.reshape(-1),
        zeros.reshape(-1),
    )
    return Levels(levels, scales, stored_zeros(zeros, format), format)


def half_quadratic(weight: np.ndarray, format: WeightFormat, beta: float, kappa: float, iterations: int) -> Levels:
    """Scales (and zero points) by half-quadratic splitting.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: of the levels; its scales are free.
        beta: weight of the quadratic term.
        kappa: its growth an iteration.
        iterations: how many iterates there are.
    """
    levels, scales = room(weight, format)
    zeros = np.empty_like(scales)
    kernels_fit.half_quadratic(
        weight,
        np.broadcast_to(np.float32(1), weight.shape),
        *_grid(format),
        beta,
        kappa,
        iterations,
        levels.reshape(-1, format.block_size),
        scales.reshape(-1),
        zeros.reshape(-1),
    )
    return Levels(levels, scales, stored_zeros(zeros, format), format)


def weighted_extremes(
    weight: np.ndarray, importance: np.ndarray, format: WeightFormat, shrink: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points float32 `[out, blocks]` of least squared error weighted by `importance` `[in]`.

    Args:
        weight: float32 `[out, in]`, whole blocks.
        importance: float32 `[in]`.
        format: of the levels; its scales are free.
        shrink: float32, factors of the scale that are tried.
    """
    shape = (weight.shape[0], weight.shape[1] // format.block_size)
    scales, zeros = np.empty(shape, np.float32), np.full(shape, format.middle, np.float32)
    given = (weight, importance, format.bits, format.block_size, shrink)
    if format.symmetric:
        kernels.weighted_symmetric(*given, format.negative_scales, format.half_scales, scales)
    else:
        kernels.weighted_asymmetric(*given, format.half_scales, scales, zeros)
    return scales, zeros


def _grid(format: WeightFormat) -> tuple[int, bool, bool, bool, bool]:
    """Arguments of the kernels of fits: bits, symmetric, negative scales, float16 scales, whole zero points."""
    whole = format.zero_dtype != np.float32
    return format.bits, format.symmetric, format.negative_scales, format.half_scales, whole


def room(weight: np.ndarray, format: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """Unfilled levels uint8 `[out, blocks, block_size]` and scales float32 `[out, blocks]` of a weight."""
    rows, blocks = weight.shape[0], -(-weight.shape[1] // format.block_size)
    return np.empty((rows, blocks, format.block_size), np.uint8), np.empty((rows, blocks), np.float32)


def stored_zeros(zeros: np.ndarray, format: WeightFormat) -> np.ndarray | None:
    """Zero points float32 `[out, blocks]` in the element type that the format gives them."""
    return None if format.zero_dtype is None else zeros.astype(format.zero_dtype, copy=False)
