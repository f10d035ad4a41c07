"""Round to nearest, the scale of each block chosen by squared error."""

import numpy as np

from hvlc.plan import WeightFormat
from hvlc.quantized import Levels, blocked, rounded_scales

_SHRINK = np.linspace(1.0, 0.75, 11, dtype=np.float32)
_AT_ONCE = 1 << 18  # elements; the working set stays in the cache, whatever the matrix


def round_to_nearest(weight: np.ndarray, format: WeightFormat) -> Levels:
    """Quantize a matrix without data.

    Every block tries each candidate scale (its extreme value on the last level, shrunk by up to a quarter;
    with negative scales also on the other end, which has one level more) and keeps the one with the least
    squared error after rounding the scale to its stored type. Ties keep the earlier candidate.

    Args:
        weight: float32 `[out, in]`.
        format: bits, block size, symmetry and scale type.

    Returns:
        Levels of `[out, ceil(in / block_size), block_size]`.
    """
    step = max(1, _AT_ONCE // max(1, weight.shape[1]))
    parts = [_rows(weight[i : i + step], format) for i in range(0, weight.shape[0], step)]
    zeros = None if format.symmetric else np.concatenate([p.zero_points for p in parts])
    return Levels(np.concatenate([p.levels for p in parts]), np.concatenate([p.scales for p in parts]), zeros, format)


def _rows(weight: np.ndarray, format: WeightFormat) -> Levels:
    blocks = blocked(np.asarray(weight, np.float32), format.block_size)
    if format.symmetric:
        best, zero = _symmetric(blocks, format), np.float32(2 ** (format.bits - 1))
        return Levels(_levels(blocks, best, zero, format.bits), best, None, format)
    scales, zeros = _asymmetric(blocks, format)
    return Levels(_levels(blocks, scales, zeros[..., None], format.bits), scales, zeros.astype(np.uint8), format)


def _levels(blocks: np.ndarray, scales: np.ndarray, zero: np.ndarray | np.float32, bits: int) -> np.ndarray:
    """uint8 levels of each element under the given scales."""
    safe = np.where(scales == 0, np.float32(1), scales)[..., None]
    return np.clip(np.rint(blocks / safe) + zero, 0, 2**bits - 1).astype(np.uint8)


def _error(blocks: np.ndarray, scales: np.ndarray, zero: np.ndarray | np.float32, bits: int) -> np.ndarray:
    """Squared error of each block."""
    safe = np.where(scales == 0, np.float32(1), scales)[..., None]
    values = blocks / safe
    np.rint(values, out=values)
    np.clip(values, -zero, 2**bits - 1 - zero, out=values)
    values *= scales[..., None]
    values -= blocks
    return np.einsum("rbi,rbi->rb", values, values)


def _symmetric(blocks: np.ndarray, format: WeightFormat) -> np.ndarray:
    """float32 `[out, blocks]`: the best scale of each block."""
    half = 2 ** (format.bits - 1)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    candidates = [np.abs(extreme) / (half - 1) * s for s in _SHRINK]
    if format.negative_scales:
        candidates += [-extreme / half * s for s in _SHRINK]
    else:
        candidates += [np.where(extreme < 0, -extreme / half, np.abs(extreme) / (half - 1))]
    return _best(blocks, candidates, np.float32(half), format)


def _best(blocks: np.ndarray, candidates: list[np.ndarray], zero: np.float32, format: WeightFormat) -> np.ndarray:
    best = rounded_scales(candidates[0], format.scale_type)
    error = _error(blocks, best, zero, format.bits)
    for candidate in candidates[1:]:
        scales = rounded_scales(candidate, format.scale_type)
        tried = _error(blocks, scales, zero, format.bits)
        better = tried < error
        best, error = np.where(better, scales, best), np.where(better, tried, error)
    return best


def _asymmetric(blocks: np.ndarray, format: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points float32 `[out, blocks]`; the range always holds zero, which padding needs."""
    top = 2**format.bits - 1
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    best = (np.zeros_like(low), np.zeros_like(low))
    best_error = np.full(low.shape, np.inf, np.float32)
    for shrink in _SHRINK:
        scales = rounded_scales((high - low) * shrink / top, format.scale_type)
        safe = np.where(scales == 0, np.float32(1), scales)  # a block of zeros
        zeros = np.clip(np.rint(-low * shrink / safe), 0, top).astype(np.float32)
        error = _error(blocks, scales, zeros[..., None], format.bits)
        better = error < best_error
        best = (np.where(better, scales, best[0]), np.where(better, zeros, best[1]))
        best_error = np.where(better, error, best_error)
    return best
