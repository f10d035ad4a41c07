"""Numba kernel that flips roundings one at a time, always the one that lowers the row's error most."""

import numpy as np

from hvlc.solvers.kernels import compiled

_NOISE = 1e-9  # of a flip's own square: a smaller gain may be nothing but float64's rounding
_FLIPS = 4  # of a weight at most, so that rounding cannot send a row round in circles; half a flip is usual


@compiled
def flip(
    steps: np.ndarray,
    scales: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    gram: np.ndarray,
    levels: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Flip the rounding that lowers a row's error most, until none does.

    The error of a row is `e G e^T` with `e = (levels - steps) * scales`. Rows do not depend on each other; sums are
    float64, added up in one order.

    Args:
        steps: float32 `[rows, in]`, weights counted in levels.
        scales: float32 `[rows, in]`.
        lower: float32 `[rows, in]`, the level below each weight.
        upper: float32 `[rows, in]`, the level above.
        gram: float32 `[in, in]`, symmetric.
        levels: float32 `[rows, in]`, each of them lower or upper; changed.
        errors: float64 `[rows]`, filled.
    """
    columns = gram.shape[0]
    slope, change = np.empty(columns), np.empty(columns)
    for row in range(steps.shape[0]):
        level, below, above, scale = levels[row], lower[row], upper[row], scales[row]
        slope[:] = 0
        for i in range(columns):
            missed = np.float64(level[i] - steps[row, i]) * scale[i]
            for j in range(columns):
                slope[j] = slope[j] + missed * gram[i, j]
        errors[row] = 0
        for i in range(columns):
            errors[row] += np.float64(level[i] - steps[row, i]) * scale[i] * slope[i]
        for _ in range(_FLIPS * columns):
            for i in range(columns):
                moved = np.float64(below[i] + above[i] - level[i] - level[i]) * scale[i]
                square = moved * moved * gram[i, i]
                gain = 2 * moved * slope[i] + square
                change[i] = gain if gain < -_NOISE * square else 0.0
            best = np.argmin(change)
            if change[best] >= 0:
                break
            moved = np.float64(below[best] + above[best] - level[best] - level[best]) * scale[best]
            level[best] = below[best] + above[best] - level[best]
            errors[row] += change[best]
            for j in range(columns):
                slope[j] = slope[j] + moved * gram[best, j]
