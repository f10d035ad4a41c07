"""Numba kernels of the solvers that fit a block's scale and zero point instead of trying a list of them.

They keep the rules of `kernels`: neighbouring blocks side by side, no fast-math, one fixed order of additions, no GIL.
Sums are taken in steps of a scale, so that no magnitude of weights overflows; errors are those of what is stored.
"""

import numpy as np

from hvlc.solvers.kernels import (
    _GROUP,
    _NORMAL,
    _lay_out,
    _reciprocals,
    _to_half,
    _write,
    compiled,
)


@compiled
def _plain(
    group: np.ndarray,
    bits: int,
    symmetric: bool,
    negative: bool,
    scales: np.ndarray,
    zeros: np.ndarray,
    reach: np.ndarray,
) -> None:
    """The scale of each block that puts its extreme value on the last level, or spans its range.

    Out: scales, real zero points, and how many steps lie between the fixed end and the last level.
    """
    half, top = np.float32(2 ** (bits - 1)), np.float32(2**bits - 1)
    low, high = np.zeros(scales.size, np.float32), np.zeros(scales.size, np.float32)
    for i in range(group.shape[0]):
        values = group[i]
        for lane in range(values.size):
            low[lane] = min(low[lane], values[lane])
            high[lane] = max(high[lane], values[lane])
    for lane in range(scales.size):
        depth = np.float32(0) - low[lane]
        if symmetric:
            upward = high[lane] > depth
            reach[lane] = half - np.float32(1) if upward and not negative else half
            extreme = high[lane] if upward else depth
            scales[lane] = (-extreme if upward and negative else extreme) / reach[lane]
            zeros[lane] = half
        else:
            reach[lane] = top
            scales[lane] = high[lane] / top + depth / top  # apart: the sum may overflow
            zeros[lane] = depth / scales[lane] if scales[lane] >= _NORMAL else np.float32(0)


@compiled
def _to_stored(real: np.ndarray, whole: bool, top: np.float32, zeros: np.ndarray) -> None:
    """The nearest zero points that can be stored: levels, or any number."""
    for lane in range(real.size):
        nearest = min(max(np.floor(real[lane] + np.float32(0.5)), np.float32(0)), top)
        zeros[lane] = nearest if whole else real[lane]


@compiled
def _keep(
    error: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    least: np.ndarray,
    best: np.ndarray,
    best_zeros: np.ndarray,
) -> None:
    """Keep the scales and zero points of the blocks where they give a smaller error than `least`."""
    for lane in range(scales.size):
        better = (error[lane] < least[lane]) | (best[lane] == 0)  # an error that overflowed loses no block
        least[lane] = error[lane] if better else least[lane]
        best[lane] = scales[lane] if better else best[lane]
        best_zeros[lane] = zeros[lane] if better else best_zeros[lane]


@compiled
def _store(
    group: np.ndarray,
    best: np.ndarray,
    best_zeros: np.ndarray,
    top: np.float32,
    levels: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
) -> None:
    """Levels, scales and zero points of the blocks that are there."""
    _write(group, best, best_zeros, top, np.empty(best.size, np.float32), levels)
    for lane in range(levels.shape[0]):
        scales[lane] = best[lane]
        zero_points[lane] = best_zeros[lane]


@compiled
def _weigh_by_magnitude(group: np.ndarray, scales: np.ndarray, weights: np.ndarray) -> None:
    """Multiply the weights by `sqrt(mean(x ** 2)) + |x|`, in steps of the scale."""
    inverse, mean = np.empty(scales.size, np.float32), np.zeros(scales.size, np.float32)
    _reciprocals(scales, inverse)
    for i in range(group.shape[0]):
        for lane in range(scales.size):
            steps = group[i, lane] * inverse[lane]
            mean[lane] = mean[lane] + steps * steps
    for lane in range(scales.size):
        mean[lane] = np.sqrt(mean[lane] / np.float32(group.shape[0]))
    for i in range(group.shape[0]):
        for lane in range(scales.size):
            weights[i, lane] = weights[i, lane] * (mean[lane] + abs(group[i, lane] * inverse[lane]))


@compiled
def _regress(
    group: np.ndarray,
    weights: np.ndarray,
    symmetric: bool,
    whole: bool,
    top: np.float32,
    offset: np.ndarray,
    sums: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:
    """Round under scales and real zero points (`offset`), then put the line of least squares through the levels.

    The line's intercept gives the zero point, rounded to what is stored, a second fit with that zero point the scale.
    In: trial scales; zero points to count levels from. Out: fitted scales and zero points. A block without a line keeps
    the trial.
    """
    inverse, w, wx, wt, wtt, wtx = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    _reciprocals(scales, inverse)
    sums[1:] = 0
    for i in range(group.shape[0]):
        values, weight = group[i], weights[i]
        for lane in range(values.size):
            x = values[lane] * inverse[lane]
            t = min(max(np.floor(x + offset[lane] + np.float32(0.5)), np.float32(0)), top) - zeros[lane]
            weighted = weight[lane] * t
            w[lane] = w[lane] + weight[lane]
            wx[lane] = wx[lane] + weight[lane] * x
            wt[lane] = wt[lane] + weighted
            wtt[lane] = wtt[lane] + weighted * t
            wtx[lane] = wtx[lane] + weighted * x
    for lane in range(scales.size):
        moved = np.float32(0)
        if not symmetric:
            # x = slope * t + intercept, both times the same determinant, which is never negative
            slope = w[lane] * wtx[lane] - wx[lane] * wt[lane]
            intercept = wtt[lane] * wx[lane] - wt[lane] * wtx[lane]
            zero = zeros[lane] - intercept / slope if slope > 0 else zeros[lane]
            nearest = min(max(np.floor(zero + np.float32(0.5)), np.float32(0)), top)
            moved = (nearest if whole else zero) - zeros[lane]
        square = wtt[lane] - moved * (wt[lane] + wt[lane]) + moved * moved * w[lane]
        factor = (wtx[lane] - moved * wx[lane]) / square
        zeros[lane] = zeros[lane] + moved
        scales[lane] = scales[lane] * factor if square > 0 and factor > 0 else scales[lane]


@compiled
def _weighted_error(
    group: np.ndarray,
    weights: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    top: np.float32,
    inverse: np.ndarray,
    error: np.ndarray,
) -> None:
    """The root of the weighted squared error (a root neither overflows nor vanishes when it meets the scale)."""
    _reciprocals(scales, inverse)
    error[:] = 0
    for i in range(group.shape[0]):
        values, weight = group[i], weights[i]
        for lane in range(values.size):
            x = values[lane] * inverse[lane]
            level = min(max(np.floor(x + zeros[lane] + np.float32(0.5)), np.float32(0)), top) - zeros[lane]
            error[lane] = error[lane] + weight[lane] * ((level - x) * (level - x))
    for lane in range(scales.size):
        error[lane] = np.sqrt(error[lane]) * abs(scales[lane])


@compiled
def least_squares(
    weight: np.ndarray,
    importance: np.ndarray,
    by_magnitude: bool,
    bits: int,
    symmetric: bool,
    negative: bool,
    half_scales: bool,
    whole_zeros: bool,
    offsets: np.ndarray,
    levels: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
) -> None:
    """Levels under scales (and zero points) fitted by weighted least squares, the best of several roundings.

    Each offset stretches the plain rule's grid to `reach + offset` levels, where `reach` is what the plain rule uses;
    weights are rounded on it, and scale and zero point are fitted to the levels. The plain rule itself comes first.

    Args:
        weight: float32 `[out, in]`.
        importance: float32 `[out, in]`, weights of the squared errors, none negative and none above 1.
        by_magnitude: multiply `importance` by the root mean square of the block plus the element's magnitude.
        bits: width of an element.
        symmetric: keep every zero point at `2 ** (bits - 1)`.
        negative: whether a scale may be negative.
        half_scales: round scales to float16.
        whole_zeros: zero points are levels, not any number.
        offsets: float32; ties keep the earlier one.
        levels: uint8 `[out * blocks, block_size]`, filled.
        scales: float32 `[out * blocks]`, filled.
        zero_points: float32 `[out * blocks]`, filled.
    """
    count, block_size = levels.shape
    top = np.float32(2**bits - 1)
    most = max(16, _GROUP // block_size)
    group, weights = np.empty((block_size, most), np.float32), np.empty((block_size, most), np.float32)
    rows, sums = np.empty((11, most), np.float32), np.empty((6, most), np.float32)
    plain, real, plain_zeros, reach, tried, zeros, offset = (
        rows[0],
        rows[1],
        rows[2],
        rows[3],
        rows[4],
        rows[5],
        rows[6],
    )
    error, least, best, best_zeros = rows[7], rows[8], rows[9], rows[10]
    for first in range(0, count, most):
        last = min(first + most, count)
        _lay_out(weight, first, block_size, group)
        _lay_out(importance, first, block_size, weights)
        _plain(group, bits, symmetric, negative, plain, real, reach)
        _to_stored(real, whole_zeros, top, plain_zeros)
        if by_magnitude:
            _weigh_by_magnitude(group, plain, weights)
        least[:] = np.inf
        best[:] = 0
        best_zeros[:] = 0
        for position in range(-1, offsets.size):
            tried[:] = plain
            zeros[:] = plain_zeros
            if position >= 0:
                for lane in range(most):
                    stretched = (reach[lane] + offsets[position]) / reach[lane]
                    tried[lane] = plain[lane] / stretched
                    offset[lane] = real[lane] if symmetric else real[lane] * stretched
                _regress(group, weights, symmetric, whole_zeros, top, offset, sums, tried, zeros)
            if half_scales:
                _to_half(tried)
            _weighted_error(group, weights, tried, zeros, top, sums[0], error)
            _keep(error, tried, zeros, least, best, best_zeros)
        _store(group, best, best_zeros, top, levels[first:last], scales[first:last], zero_points[first:last])


@compiled
def _shrink(missed: np.float32, beta: np.float32) -> np.float32:
    """The part of an error that the l_p norm, p = 3/4, lets stand: `sign(r) * max(|r| - |r| ** (p - 1) / beta, 0)`."""
    magnitude = abs(missed)
    kept = max(magnitude - np.float32(1) / (beta * np.sqrt(np.sqrt(magnitude))), np.float32(0))
    return kept if missed > 0 else -kept


@compiled
def _half_step(
    group: np.ndarray,
    present: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    top: np.float32,
    beta: np.float32,
    work: np.ndarray,
    error: np.ndarray,
    factor: np.ndarray,
) -> None:
    """The l_p error of scales with stored zero points, and the factor by which the next scale differs.

    Out: `sum |error| ** (3/4)` (in weights, not steps), and the least-squares factor for the errors without their
    shrunk part.
    """
    inverse, square = work[0], work[1]
    _reciprocals(scales, inverse)
    error[:] = 0
    factor[:] = 0
    square[:] = 0
    for i in range(group.shape[0]):
        values, there = group[i], present[i]
        for lane in range(values.size):
            x = values[lane] * inverse[lane]
            level = min(max(np.floor(x + zeros[lane] + np.float32(0.5)), np.float32(0)), top) - zeros[lane]
            level, missed = there[lane] * level, there[lane] * (x - level)
            root = np.sqrt(abs(missed))
            error[lane] = error[lane] + root * np.sqrt(root)
            factor[lane] = factor[lane] + (x - _shrink(missed, beta)) * level
            square[lane] = square[lane] + level * level
    for lane in range(scales.size):
        root = np.sqrt(abs(scales[lane]))
        error[lane] = error[lane] * root * np.sqrt(root)
        fitted = factor[lane] / square[lane]
        factor[lane] = fitted if square[lane] > 0 and fitted > 0 else np.float32(1)


@compiled
def _zero_step(
    group: np.ndarray,
    present: np.ndarray,
    scales: np.ndarray,
    top: np.float32,
    beta: np.float32,
    work: np.ndarray,
    real: np.ndarray,
) -> None:
    """The next real zero points: the mean of what levels and values without the shrunk error leave between them."""
    inverse, total, count = work[0], work[1], work[2]
    _reciprocals(scales, inverse)
    total[:] = 0
    count[:] = 0
    for i in range(group.shape[0]):
        values, there = group[i], present[i]
        for lane in range(values.size):
            x = values[lane] * inverse[lane]
            level = min(max(np.floor(x + real[lane] + np.float32(0.5)), np.float32(0)), top)
            missed = x - (level - real[lane])
            total[lane] = total[lane] + there[lane] * (level - (x - _shrink(missed, beta)))
            count[lane] = count[lane] + there[lane]
    for lane in range(scales.size):
        real[lane] = total[lane] / max(count[lane], np.float32(1))


@compiled
def half_quadratic(
    weight: np.ndarray,
    ones: np.ndarray,
    bits: int,
    symmetric: bool,
    negative: bool,
    half_scales: bool,
    whole_zeros: bool,
    beta: float,
    kappa: float,
    iterations: int,
    levels: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray,
) -> None:
    """Levels under the scales (and zero points) of least l_p error among the iterates of half-quadratic splitting.

    Starts at the plain rule. Scales are rounded to what is stored in each iteration; zero points go on as reals, and
    an iterate is judged with those that would be stored.

    Args:
        weight: float32 `[out, in]`.
        ones: float32 `[out, in]`, which padding is not.
        bits: width of an element.
        symmetric: keep every zero point at `2 ** (bits - 1)`.
        negative: whether a scale may be negative.
        half_scales: round scales to float16.
        whole_zeros: zero points are levels, not any number.
        beta: weight of the quadratic term, in steps of a scale.
        kappa: its growth in an iteration.
        iterations: how many; ties keep the earlier one.
        levels: uint8 `[out * blocks, block_size]`, filled.
        scales: float32 `[out * blocks]`, filled.
        zero_points: float32 `[out * blocks]`, filled.
    """
    count, block_size = levels.shape
    top = np.float32(2**bits - 1)
    most = max(16, _GROUP // block_size)
    group, present = np.empty((block_size, most), np.float32), np.empty((block_size, most), np.float32)
    rows = np.empty((11, most), np.float32)
    tried, real, zeros, factor, error = rows[0], rows[1], rows[2], rows[3], rows[4]
    least, best, best_zeros, work = rows[5], rows[6], rows[7], rows[8:]
    for first in range(0, count, most):
        last = min(first + most, count)
        _lay_out(weight, first, block_size, group)
        _lay_out(ones, first, block_size, present)
        _plain(group, bits, symmetric, negative, tried, real, factor)
        least[:] = np.inf
        best[:] = 0
        best_zeros[:] = 0
        strength = np.float32(beta)
        for _ in range(iterations):
            if half_scales:
                _to_half(tried)
            _to_stored(real, whole_zeros, top, zeros)
            _half_step(group, present, tried, zeros, top, strength, work, error, factor)
            _keep(error, tried, zeros, least, best, best_zeros)
            if not symmetric:
                _zero_step(group, present, tried, top, strength, work, real)
            for lane in range(most):
                tried[lane] = tried[lane] * factor[lane]
            strength = strength * np.float32(kappa)
        _store(group, best, best_zeros, top, levels[first:last], scales[first:last], zero_points[first:last])
