"""Levels of 8 bits with one scale a row, of which two neighbours add up to no more than 16-bit products can hold."""

import numpy as np

from hvlc.weights.formats import LARGEST_LEVEL, LARGEST_PAIR, Levels, WeightFormat

_SHRUNK = (1.0, 0.9, 0.8, 0.7)  # of the scale at which nothing is cut off
_LEAST = np.float32(np.finfo(np.float32).tiny * 128)


def round_in_pairs(weight: np.ndarray, format: WeightFormat) -> Levels:
    """Every row tries four scales and keeps the one with the least squared error.

    At the largest scale neither a value nor the sum of two neighbours is cut off. At smaller ones a value stays within
    127 levels, and of a pair that adds up to more than 128 both give up half of the excess.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: of whole rows (`hvlc.weights.formats.integer_product`).

    Returns:
        Levels of `[out, 1, in]`; the same for a row whatever rows come with it.

    Raises:
        ValueError: another format.
    """
    if not format.integer_product:
        raise ValueError(f"pairs chooses levels for products of integers, got {format}")
    pairs = np.pad(weight, ((0, 0), (0, weight.shape[1] % 2))).reshape(len(weight), -1, 2)
    reach = np.maximum(np.abs(pairs).max((1, 2), initial=0), np.abs(pairs.sum(2)).max(1, initial=0))
    whole = np.maximum(reach / np.float32(LARGEST_LEVEL), _LEAST).astype(np.float32)
    best, scales = _rounded(pairs, whole), whole.copy()
    least = _error(pairs, best, scales)
    for factor in _SHRUNK[1:]:
        tried = np.maximum(whole * np.float32(factor), _LEAST)
        levels = _rounded(pairs, tried)
        error = _error(pairs, levels, tried)
        better = error < least
        best[better], scales[better], least[better] = levels[better], tried[better], error[better]
    levels = (best.reshape(len(weight), 1, -1)[..., : weight.shape[1]] + format.middle).astype(np.uint8)
    return Levels(levels, scales[:, None], None, format)


def _rounded(pairs: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Signed levels, float32 `[rows, pairs, 2]`, none and no pair too large."""
    levels = np.clip(np.rint(pairs / scales[:, None, None]), -LARGEST_LEVEL, LARGEST_LEVEL)
    sums = levels[..., 0] + levels[..., 1]
    excess = np.sign(sums) * np.maximum(np.abs(sums) - LARGEST_PAIR, 0)
    half = np.trunc(excess / 2)
    levels[..., 0] -= half
    levels[..., 1] -= excess - half
    return levels


def _error(pairs: np.ndarray, levels: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Squared error of each row; infinite where it overflows, which keeps the scale that cuts nothing off."""
    with np.errstate(over="ignore"):
        return np.asarray(np.square(levels * scales[:, None, None] - pairs).sum((1, 2)))
