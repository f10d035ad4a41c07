"""Factors of input channels that make a group of linears easier to quantize: AWQ's search and SmoothQuant's rule.

Both give `s` for `x @ W.T == (x / s) @ (W * s).T`; `hvlc.passes.prepare.scale_channels` folds it. Weights are
`[out, in]` here, as solvers see them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hvlc.solvers.statistics import InputStatistics

#: float32 `[rows, in]` to what it is after quantization, float32 `[rows, in]`; rows do not depend on each other.
Rounding = Callable[[np.ndarray], np.ndarray]

_LEAST_MEAN, _LEAST_PEAK = 1e-4, 1e-5  # as in the authors' code: a channel that is always 0 gets a factor too
_DIGITS = 6  # of an error that decide; the rest depends on the order in which a BLAS adds
_BLOCK = 1024  # rows and columns that are in float64 at once


@dataclass(frozen=True)
class Scaling:
    """The outcome of a search.

    Attributes:
        factors: float32 `[in]`, above 0; their largest times their smallest is 1.
        exponent: of the mean magnitudes; 0: no scaling.
        error: mean squared output error, summed over all outputs; estimated where not all rows were searched.
        unscaled_error: the same without factors, never estimated.
    """

    factors: np.ndarray
    exponent: float
    error: float
    unscaled_error: float


def awq_factors(
    weights: Sequence[np.ndarray],
    roundings: Sequence[Rounding],
    statistics: InputStatistics,
    channels: np.ndarray | None = None,
    *,
    exponents: int = 20,
    rows: int = 128,
) -> Scaling:
    """AWQ's search (arXiv 2306.00978, section 3.2): `s = mean|x| ** a`, the best `a` of an even grid from 0 below 1.

    The error of `a` is `sum |x (W - Q(W s) / s)^T|^2` over the group, averaged over the calibration's inputs. That is
    `tr(D G D^T)` with their second moments G, exactly, so no input is needed again.

    Args:
        weights: float32 `[out, in]` of every linear that shares the input.
        roundings: how each of them is quantized.
        statistics: of the input.
        channels: int64 `[in]`, channels of one number have to share a factor: they get that of their average magnitude.
        exponents: size of the grid.
        rows: of each weight that are searched. A few outputs can hold most of the error, so rows are drawn with a
            probability in proportion to their error without factors, at even steps of its running sum.
    """
    gram, means = statistics.gram, _shared_mean(statistics.mean_abs, channels)
    candidates = [_balanced(means, step / exponents) for step in range(exponents)]
    samples = [_Sample.of(weight, rounding, gram, rows) for weight, rounding in zip(weights, roundings, strict=True)]
    errors = [sum(sample.error(factors, gram) for sample in samples) for factors in candidates]
    best = int(np.argmin([float(f"{error:.{_DIGITS - 1}e}") for error in errors]))
    return Scaling(candidates[best], best / exponents, errors[best], errors[0])


def smooth_factors(
    weights: Sequence[np.ndarray],
    statistics: InputStatistics,
    channels: np.ndarray | None = None,
    *,
    exponent: float = 0.5,
) -> np.ndarray:
    """SmoothQuant's factors (arXiv 2211.10438, equation 4): `max|x| ** a / max|W| ** (1 - a)` for each channel.

    With `a = 1/2`, activations and weights of a channel have the same peak afterwards.

    Args:
        weights: float32 `[out, in]` of every linear that shares the input.
        statistics: of the input.
        channels: int64 `[in]`, channels of one number have to share a factor: they get that of their largest peaks.
        exponent: how much of the difficulty goes to the weights, 0 to 1.

    Returns:
        float32 `[in]`, above 0.
    """
    inputs = _shared_peak(statistics.peak, channels)
    peaks = _shared_peak(np.max([np.abs(weight).max(0) for weight in weights], 0), channels)
    factors = inputs.clip(_LEAST_PEAK) ** exponent / peaks.clip(_LEAST_PEAK) ** (1 - exponent)
    return factors.clip(_LEAST_PEAK).astype(np.float32)


def scaled_statistics(statistics: InputStatistics, factors: np.ndarray) -> InputStatistics:
    """Statistics of the input after its producer was divided by `factors`, float32 `[in]`: no second calibration."""
    inverse = (1 / factors.astype(np.float64)).astype(np.float32)
    return replace(
        statistics,
        gram=statistics.gram * inverse[:, None] * inverse,
        mean_abs=statistics.mean_abs * inverse,
        peak=statistics.peak * inverse,
    )


def output_errors(difference: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """`diag(D G D^T)`: for each row of `D`, the mean of `(D x)^2` over the inputs that `gram` is the second moment of.

    Args:
        difference: `[rows, in]`.
        gram: float32 `[in, in]`.

    Returns:
        float64 `[rows]`.
    """
    errors = np.zeros(len(difference))
    for columns in _blocks(len(gram)):
        narrow = gram[:, columns].astype(np.float64)
        for rows in _blocks(len(difference)):
            wide = difference[rows].astype(np.float64)
            errors[rows] += ((wide @ narrow) * wide[:, columns]).sum(1)
    return errors


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]


@dataclass(frozen=True)
class _Sample:
    """Rows that stand for a whole weight.

    Attributes:
        rows: float32 `[n, in]`.
        counts: float64 `[n]`, how many rows each of them stands for, in units of error.
        rounding: how the weight is quantized.
    """

    rows: np.ndarray
    counts: np.ndarray
    rounding: Rounding

    @classmethod
    def of(cls, weight: np.ndarray, rounding: Rounding, gram: np.ndarray, most: int) -> Self:
        """All rows, or systematic sampling with probability in proportion to size (Madow 1949)."""
        if len(weight) <= most:
            return cls(weight, np.ones(len(weight)), rounding)
        running = np.cumsum(output_errors(weight - rounding(weight), gram))
        if not running[-1] > 0:
            return cls(weight[:1], np.ones(1), rounding)
        steps = (np.arange(most) + 0.5) / most * running[-1]
        index, hits = np.unique(np.searchsorted(running, steps), return_counts=True)
        own = np.diff(running, prepend=0)[index]
        return cls(np.ascontiguousarray(weight[index]), hits * running[-1] / most / own, rounding)

    def error(self, factors: np.ndarray, gram: np.ndarray) -> float:
        """Error of the whole weight, with these factors."""
        restored = self.rounding(self.rows * factors) / factors
        return float(self.counts @ output_errors(self.rows - restored, gram))


def _balanced(means: np.ndarray, exponent: float) -> np.ndarray:
    """float32 `[in]`: powers of relative magnitudes, so that the largest times the smallest is 1."""
    relative = means / (means.max() or 1)
    factors = (relative**exponent).clip(_LEAST_MEAN)
    balanced: np.ndarray = (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
    return balanced


def _shared_mean(values: np.ndarray, channels: np.ndarray | None) -> np.ndarray:
    """float64 `[in]`."""
    wide = values.astype(np.float64)
    if channels is None:
        return wide
    averages: np.ndarray = np.bincount(channels, wide) / np.maximum(np.bincount(channels), 1)
    return averages[channels]


def _shared_peak(values: np.ndarray, channels: np.ndarray | None) -> np.ndarray:
    """float64 `[in]`."""
    wide = values.astype(np.float64)
    if channels is None:
        return wide
    peaks = np.zeros(channels.max() + 1)
    np.maximum.at(peaks, channels, wide)
    shared: np.ndarray = peaks[channels]
    return shared
