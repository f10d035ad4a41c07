"""Numba kernels of the data-free solvers: one cache-friendly pass over a matrix.

Blocks are processed side by side: a group of them is laid out with the block as the last axis, so that every loop runs
over neighbouring blocks, is vectorized, and sums each block's error in one fixed order. No fast-math: the bytes are the
same on every processor and thread count. The kernels run without the GIL.
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


@compiled
def _weighted_error(
    values: np.ndarray, importance: np.ndarray, scale: np.float32, zero: np.float32, top: np.float32
) -> np.float32:
    """Weighted squared error of a block under a scale and zero point."""
    inverse = np.float32(1) / scale if abs(scale) >= _NORMAL else np.float32(0)
    error = np.float32(0)
    for i in range(values.size):
        level = min(max(np.floor(values[i] * inverse + zero + np.float32(0.5)), np.float32(0)), top)
        missed = (level - zero) * scale - values[i]
        error += importance[i] * missed * missed
    return error


@compiled
def weighted_symmetric(
    weight: np.ndarray,
    importance: np.ndarray,
    bits: int,
    block_size: int,
    shrink: np.ndarray,
    negative: bool,
    half_scales: bool,
    scales: np.ndarray,
) -> None:
    """Scales as in `symmetric`, each column's error weighted by its importance.

    Args:
        weight: float32 `[out, in]`, whole blocks.
        importance: float32 `[in]`.
        bits: width of an element.
        block_size: of a block.
        shrink: float32 factors.
        negative: whether a scale may be negative.
        half_scales: round scales to float16.
        scales: float32 `[out, blocks]`, filled.
    """
    half, top = np.float32(2 ** (bits - 1)), np.float32(2**bits - 1)
    tried = np.empty(2 * shrink.size, np.float32)
    for row in range(weight.shape[0]):
        for block in range(scales.shape[1]):
            values = weight[row, block * block_size : (block + 1) * block_size]
            weights = importance[block * block_size : (block + 1) * block_size]
            extreme = np.float32(0)
            for value in values:
                if abs(value) > abs(extreme) or (abs(value) == abs(extreme) and value < 0):
                    extreme = value
            for i in range(shrink.size):
                other = extreme / -half * shrink[i]
                tried[2 * i] = abs(extreme) / (half - np.float32(1)) * shrink[i]
                tried[2 * i + 1] = other if negative or other > 0 else tried[2 * i]
            if half_scales:
                _to_half(tried)
            least, best = np.float32(np.inf), tried[0]
            for scale in tried:
                error = _weighted_error(values, weights, scale, half, top)
                if error < least:
                    least, best = error, scale
            scales[row, block] = best


@compiled
def weighted_asymmetric(
    weight: np.ndarray,
    importance: np.ndarray,
    bits: int,
    block_size: int,
    shrink: np.ndarray,
    half_scales: bool,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:
    """Scales and zero points as in `asymmetric`, each column's error weighted by its importance.

    Both ends of the range are shrunk on their own: inputs of little importance may be cut off at one end only.
    """
    top = np.float32(2**bits - 1)
    tried = np.empty(1, np.float32)
    for row in range(weight.shape[0]):
        for block in range(scales.shape[1]):
            values = weight[row, block * block_size : (block + 1) * block_size]
            weights = importance[block * block_size : (block + 1) * block_size]
            low, high = np.float32(0), np.float32(0)
            for value in values:
                low, high = min(low, value), max(high, value)
            least, found = np.float32(np.inf), False
            for above in shrink:
                for below in shrink:
                    tried[0] = high / top * above - low / top * below  # apart: the difference may overflow
                    if half_scales:
                        _to_half(tried)
                    scale = tried[0]
                    inverse = np.float32(1) / scale if abs(scale) >= _NORMAL else np.float32(0)
                    zero = min(max(np.floor(-low * below * inverse + np.float32(0.5)), np.float32(0)), top)
                    error = _weighted_error(values, weights, scale, zero, top)
                    if error < least or not found:  # an overflowing square loses no block
                        least, found, scales[row, block], zeros[row, block] = error, True, scale, zero


@compiled
def feed_back(
    weight: np.ndarray,
    target: np.ndarray,
    feedback: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    block_of: np.ndarray,
    top: int,
    levels: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Round some columns one after another, each error fed to the columns behind it.

    Args:
        weight: float32 `[out, columns]`.
        target: float32 `[out, columns]`, the weight and the errors of all columns before; changed.
        feedback: float32 `[columns, columns]`, strictly upper triangular.
        scales: float32 `[out, blocks]`.
        zeros: float32 `[out, blocks]`.
        block_of: int64 `[columns]`, the block that a column's scale is of.
        top: highest level.
        levels: uint8 `[out, columns]`, filled.
        errors: float32 `[out, columns]`, filled with `weight - rounded`.
    """
    columns = block_of.size
    highest = np.float32(top)
    for row in range(weight.shape[0]):
        wanted = target[row]
        for j in range(columns):
            scale, zero = scales[row, block_of[j]], zeros[row, block_of[j]]
            inverse = np.float32(1) / scale if abs(scale) >= _NORMAL else np.float32(0)
            level = min(max(np.floor(wanted[j] * inverse + zero + np.float32(0.5)), np.float32(0)), highest)
            levels[row, j] = np.uint8(level)
            error = weight[row, j] - (level - zero) * scale
            errors[row, j] = error
            for k in range(j + 1, columns):
                wanted[k] += error * feedback[j, k]


@compiled
def whole_scales(
    weight: np.ndarray,
    importance: np.ndarray,
    bits: int,
    block_size: int,
    free: np.ndarray,
    factors: np.ndarray,
    largest: int,
    scales: np.ndarray,
) -> None:
    """Scales that are whole numbers times a factor of their row: of the two next to a free scale the better one.

    The block with a row's largest free scale gets the largest number, so that scales tell the factor.

    Args:
        weight: float32 `[out, in]`.
        importance: float32 `[in]`.
        bits: width of an element.
        block_size: of a block.
        free: float32 `[out, blocks]`.
        factors: float32 `[out]`, not below a `largest`th of the row's largest free scale.
        largest: number; 1 is the smallest.
        scales: float32 `[out, blocks]`, filled.
    """
    half, top, last = np.float32(2 ** (bits - 1)), np.float32(2**bits - 1), np.float32(largest)
    for row in range(weight.shape[0]):
        widest = np.argmax(free[row])
        for block in range(free.shape[1]):
            values = weight[row, block * block_size : (block + 1) * block_size]
            weights = importance[block * block_size : (block + 1) * block_size]
            below = min(max(np.floor(free[row, block] / factors[row]), np.float32(1)), last)
            lower, upper = below * factors[row], min(below + np.float32(1), last) * factors[row]
            worse = _weighted_error(values, weights, lower, half, top)
            better = _weighted_error(values, weights, upper, half, top) < worse
            scales[row, block] = upper if better else lower
        scales[row, widest] = last * factors[row]


@compiled
def round_under(weight: np.ndarray, scales: np.ndarray, bits: int, levels: np.ndarray) -> None:
    """Levels nearest to the weights under given scales, without zero points.

    Args:
        weight: float32 `[out, in]`.
        scales: float32 `[out, blocks]`, none negative.
        bits: width of an element.
        levels: uint8 `[out, blocks, block_size]`, filled; padding stands for 0.
    """
    half, top = np.float32(2 ** (bits - 1)), np.float32(2**bits - 1)
    columns, block_size = weight.shape[1], levels.shape[2]
    levels[:] = np.uint8(half)
    for row in range(weight.shape[0]):
        for block in range(levels.shape[1]):
            scale, first = scales[row, block], block * block_size
            inverse = np.float32(1) / scale if scale >= _NORMAL else np.float32(0)
            for i in range(min(block_size, columns - first)):
                level = np.floor(weight[row, first + i] * inverse + half + np.float32(0.5))
                levels[row, block, i] = np.uint8(min(max(level, np.float32(0)), top))
