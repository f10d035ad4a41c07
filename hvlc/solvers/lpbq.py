"""LPBQ for every solver: block scales that are integer multiples of a float scale per row.

A solver finds a float scale for each block first. The largest of a row becomes `LPBQ_LARGEST` times the row's scale;
each block then takes the integer below or above its own scale that gives the smaller squared error, and its levels are
chosen with that. AIMET ("low power blockwise quantization") rounds to the nearest number instead.
"""

from collections.abc import Callable

import numpy as np

from hvlc.solvers import kernels
from hvlc.weights.formats import LPBQ_LARGEST, Levels, ScaleType, WeightFormat, weight_format

_OF_ZEROS = np.float32(2**-24)  # of a row of zeros, as of float16 scales (`kernels`)
_SMALLEST = np.finfo(np.float32).tiny  # reciprocals of smaller ones overflow


def under_held_scales(
    weight: np.ndarray,
    format: WeightFormat,
    solve: Callable[[WeightFormat], Levels],
    importance: np.ndarray | None = None,
) -> Levels:
    """Levels under scales that the format can hold.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: of the levels.
        solve: solves the weight in a format whose scales are free, as `WeightFormat.searched` has them.
        importance: float32 `[in]`, weights of the squared errors. None: 1 everywhere.
    """
    free = solve(format.searched)
    return free if format.searched is format else in_lpbq(weight, free, importance)


def tied_scales(weight: np.ndarray, free: np.ndarray, importance: np.ndarray, format: WeightFormat) -> np.ndarray:
    """Scales that the format can hold next to free ones, as `whole_scales`; those themselves where it holds any."""
    return free if format.searched is format else whole_scales(weight, free, importance, format)


def in_lpbq(weight: np.ndarray, free: Levels, importance: np.ndarray | None = None) -> Levels:
    """The same matrix under LPBQ scales next to the free ones.

    Args:
        weight: float32 `[out, in]`, row-major.
        free: its levels under float scales, none negative.
        importance: float32 `[in]`, weights of the squared errors. None: 1 everywhere.
    """
    weighted = np.ones(weight.shape[1], np.float32) if importance is None else importance
    scales = whole_scales(weight, free.scales, weighted, free.format)
    levels = np.empty_like(free.levels)
    kernels.round_under(weight, scales, free.format.bits, levels)
    stored = weight_format(free.format.bits, free.format.block_size, scale_type=ScaleType.LPBQ, negative_scales=False)
    return Levels(levels, scales, None, stored)


def whole_scales(weight: np.ndarray, free: np.ndarray, importance: np.ndarray, format: WeightFormat) -> np.ndarray:
    """LPBQ scales float32 `[out, blocks]` next to free ones; a row's do not depend on the rows beside it.

    Args:
        weight: float32 `[out, in]`.
        free: float32 `[out, blocks]`, none negative.
        importance: float32 `[in]`.
        format: bits and block size.
    """
    largest = np.abs(weight).max(axis=1, initial=0)
    factors = np.maximum(free.max(axis=1) / np.float32(LPBQ_LARGEST), _SMALLEST)
    factors = np.where(largest > 0, factors, np.maximum(factors, _OF_ZEROS))
    scales = np.empty_like(free)
    kernels.whole_scales(weight, importance, format.bits, format.block_size, free, factors, LPBQ_LARGEST, scales)
    return scales
