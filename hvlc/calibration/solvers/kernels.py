"""Compiled kernels of the data-free solvers (numba): one pass over a matrix that stays in the cache.

Blocks are worked on side by side: a group of them is laid out with the block as the last axis, so that every loop
runs over neighbouring blocks, becomes vector instructions, and adds up each block's error in one fixed order. No
fast-math: the bytes are the same on every processor and thread count. The kernels run without the GIL.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_GROUP = 4096  # elements laid out at once: 16 KB, half a level-1 cache
_SMALLEST = np.float32(2**-24)  # float16's smallest subnormal
_LARGEST = np.float32(65504)
_NORMAL = np.float32(2**-126)  # float32's; below it a reciprocal overflows


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use; the machine code is kept on disk where any directory for it can be written."""
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba found no such directory
        return njit(nogil=True, error_model="numpy")(function)


@compiled
def _to_half(values: np.ndarray) -> None:
    """Round float32 to float16 in place, ties to even; never to zero or infinity, so that no block is lost."""
    bits = values.view(np.uint32)
    for i in range(values.size):
        sign = bits[i] & np.uint32(0x80000000)
        values[i] = min(max(abs(values[i]), _SMALLEST), _LARGEST)
        rounded = (bits[i] + np.uint32(0x0FFF) + ((bits[i] >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
        subnormal = values[i] < np.float32(2**-14)
        values[i] = (values[i] + np.float32(0.75)) - np.float32(0.75)  # whole multiples of 2**-24
        bits[i] = (bits[i] if subnormal else rounded) | sign


@compiled
def _lay_out(weight: np.ndarray, first: int, block_size: int, group: np.ndarray) -> None:
    """Blocks `first`, `first + 1`, ... into the columns of `group` `[block_size, blocks]`, padded with zeros."""
    columns = weight.shape[1]
    per_row = (columns + block_size - 1) // block_size
    lanes = min(group.shape[1], weight.shape[0] * per_row - first)
    if lanes < group.shape[1]:
        group[:] = 0
    for lane in range(lanes):
        row, start = (first + lane) // per_row, (first + lane) % per_row * block_size
        present = min(block_size, columns - start)
        values = weight[row, start : start + present]
        for i in range(present):
            group[i, lane] = values[i]
        for i in range(present, block_size):
            group[i, lane] = np.float32(0)


@compiled
def _reciprocals(scales: np.ndarray, inverse: np.ndarray) -> None:
    """`1 / scale`, and 0 for a scale of zero."""
    for lane in range(scales.size):
        inverse[lane] = np.float32(1) / scales[lane] if abs(scales[lane]) >= _NORMAL else np.float32(0)


@compiled
def _try(
    group: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    top: np.float32,
    work: np.ndarray,
    least: np.ndarray,
    best: np.ndarray,
    best_zeros: np.ndarray,
) -> None:
    """Keep the scales and zero points of the blocks where they give a smaller squared error than `least`.

    The error is added up in steps of the scale: fewer operations an element, which is what the time goes to.
    """
    inverse, lowest, highest, error = work[0], work[1], work[2], work[3]
    _reciprocals(scales, inverse)
    for lane in range(scales.size):
        lowest[lane] = -zeros[lane]
        highest[lane] = top - zeros[lane]
        error[lane] = 0
    for i in range(group.shape[0]):
        values = group[i]
        for lane in range(values.size):
            steps = values[lane] * inverse[lane]
            missed = min(max(np.floor(steps + np.float32(0.5)), lowest[lane]), highest[lane]) - steps
            error[lane] = error[lane] + missed * missed
    for lane in range(scales.size):
        squared = error[lane] * scales[lane] * scales[lane]
        better = (squared < least[lane]) | (best[lane] == 0)  # an overflowing square loses no block
        least[lane] = squared if better else least[lane]
        best[lane] = scales[lane] if better else best[lane]
        best_zeros[lane] = zeros[lane] if better else best_zeros[lane]


@compiled
def _write(
    group: np.ndarray, scales: np.ndarray, zeros: np.ndarray, top: np.float32, inverse: np.ndarray, levels: np.ndarray
) -> None:
    """Levels uint8 `[blocks, block_size]` under the chosen scales."""
    _reciprocals(scales, inverse)
    for i in range(group.shape[0]):
        values = group[i]
        for lane in range(levels.shape[0]):
            level = np.floor(values[lane] * inverse[lane] + zeros[lane] + np.float32(0.5))
            levels[lane, i] = np.uint8(min(max(level, np.float32(0)), top))


@compiled
def symmetric(
    weight: np.ndarray,
    bits: int,
    shrink: np.ndarray,
    signed: np.ndarray,
    negative: bool,
    half_scales: bool,
    levels: np.ndarray,
    scales: np.ndarray,
) -> None:
    """Levels without zero points, the scale of each block chosen by squared error.

    With `e` the block's value of largest magnitude (of two equals the negative one) and `h = 2 ** (bits - 1)`, the
    candidates are `|e| / (h - 1) * s` for `s` of `shrink`, then `-e / h * s` for `s` of `signed`, which puts `e` on
    the end that has one level more. Ties keep the earlier one.

    Args:
        weight: float32 `[out, in]`.
        bits: width of an element.
        shrink: float32 factors.
        signed: float32 factors.
        negative: whether a scale may be negative; where not, a signed candidate that would be is an unsigned one.
        half_scales: round scales to float16.
        levels: uint8 `[out * blocks, block_size]`, filled.
        scales: float32 `[out * blocks]`, filled.
    """
    count, block_size = levels.shape
    half, top = np.float32(2 ** (bits - 1)), np.float32(2**bits - 1)
    most = max(16, _GROUP // block_size)
    group, rows = np.empty((block_size, most), np.float32), np.empty((9, most), np.float32)
    extreme, least, best, tried, zeros, work = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5:]
    for first in range(0, count, most):
        lanes = min(most, count - first)
        _lay_out(weight, first, block_size, group)
        extreme[:] = 0
        for i in range(block_size):
            values = group[i]
            for lane in range(most):
                magnitude = abs(values[lane])
                if magnitude > abs(extreme[lane]) or (magnitude == abs(extreme[lane]) and values[lane] < 0):
                    extreme[lane] = values[lane]
        zeros[:] = half
        least[:] = np.inf
        best[:] = 0
        for position in range(shrink.size + signed.size):
            unsigned = position < shrink.size
            factor = shrink[position] if unsigned else signed[position - shrink.size]
            for lane in range(most):
                magnitude = abs(extreme[lane]) / (half - np.float32(1)) * factor
                other = extreme[lane] / -half * factor
                tried[lane] = magnitude if unsigned or (not negative and other < 0) else other
            if half_scales:
                _to_half(tried)
            _try(group, tried, zeros, top, work, least, best, zeros)
        _write(group, best, zeros, top, work[0], levels[first : first + lanes])
        scales[first : first + lanes] = best[:lanes]


@compiled
def asymmetric(
    weight: np.ndarray,
    bits: int,
    shrink: np.ndarray,
    half_scales: bool,
    levels: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
) -> None:
    """Levels with zero points, the range of each block (which always holds zero) shrunk as far as it pays.

    Args:
        weight: float32 `[out, in]`.
        bits: width of an element.
        shrink: float32 factors; ties keep the earlier one.
        half_scales: round scales to float16.
        levels: uint8 `[out * blocks, block_size]`, filled.
        scales: float32 `[out * blocks]`, filled.
        zero_points: uint8 `[out * blocks]`, filled.
    """
    count, block_size = levels.shape
    top = np.float32(2**bits - 1)
    most = max(16, _GROUP // block_size)
    group, rows = np.empty((block_size, most), np.float32), np.empty((11, most), np.float32)
    low, high, least, best, tried = rows[0], rows[1], rows[2], rows[3], rows[4]
    zeros, best_zeros, work = rows[5], rows[6], rows[7:]
    for first in range(0, count, most):
        lanes = min(most, count - first)
        _lay_out(weight, first, block_size, group)
        low[:] = 0
        high[:] = 0
        for i in range(block_size):
            values = group[i]
            for lane in range(most):
                low[lane] = min(low[lane], values[lane])
                high[lane] = max(high[lane], values[lane])
        least[:] = np.inf
        best[:] = 0
        best_zeros[:] = 0
        for factor in shrink:
            for lane in range(most):
                tried[lane] = (high[lane] / top - low[lane] / top) * factor  # apart: the difference may overflow
            if half_scales:
                _to_half(tried)
            _reciprocals(tried, work[0])
            for lane in range(most):
                zero = np.floor(-low[lane] * factor * work[0, lane] + np.float32(0.5))
                zeros[lane] = min(max(zero, np.float32(0)), top)
            _try(group, tried, zeros, top, work, least, best, best_zeros)
        _write(group, best, best_zeros, top, work[0], levels[first : first + lanes])
        scales[first : first + lanes] = best[:lanes]
        for lane in range(lanes):
            zero_points[first + lane] = np.uint8(best_zeros[lane])
