"""AdaRound: round every weight up or down so that the error of the layer's output is small.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568), solved as in AutoRound
(Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent", arXiv 2309.05516): descent by the sign of the
gradient on an offset in [-1/2, 1/2] that is added before rounding. The inputs are needed as their Gram matrix alone,
`|X (W - Q)^T|^2 = tr((W - Q) G (W - Q)^T)`, whose gradient through the rounding is `2 (Q - W) G`. What the descent
leaves is improved by flipping single roundings while that helps; so is rounding to nearest, and each row keeps the
better of the two, which is why no row ends above rounding to nearest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from hvlc.solvers import kernels_rounding
from hvlc.solvers.k_quant import weighted_least_squares
from hvlc.solvers.statistics import InputStatistics, damped
from hvlc.weights.formats import Levels, WeightFormat

_MOST_ITERATIONS = 100_000
_ROWS = 256  # solved at once: as many as keep the products efficient and the memory small
_FAR = np.float32(2**20)  # steps; a weight farther outside of the range is as lost, and its square stays finite


@dataclass(frozen=True)
class AdaRoundOptions:
    """Options of AdaRound.

    Attributes:
        damping: share of the Gram matrix's mean diagonal that is added to its diagonal.
        iterations: steps of the descent before single roundings are flipped.
    """

    damping: float = 0.1
    iterations: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping {self.damping} is not above 0 and at most 1")
        if self.iterations not in range(_MOST_ITERATIONS + 1):
            raise ValueError(f"iterations {self.iterations} is not a whole number from 0 to {_MOST_ITERATIONS}")


@dataclass(frozen=True)
class _Rows:
    """Some rows on a fixed grid, counted in levels.

    Attributes:
        steps: the weights, where they lie between levels, float32 `[rows, in]`.
        scales: float32 `[rows, in]`, relative to the row's largest.
        lower: the level below each weight, float32 `[rows, in]`.
        upper: the level above; the same where the weight lies on a level or outside of the range.
        nearest: the level of rounding to nearest.
    """

    steps: np.ndarray
    scales: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    nearest: np.ndarray


def adaround(weight: np.ndarray, format: WeightFormat, gram: np.ndarray, iterations: int = 50) -> Levels:
    """Roundings up or down of least output error, under scales fitted with the Gram matrix's diagonal.

    The same arguments give the same bytes on one machine; the descent's matrix products are the BLAS library's, so
    another processor may decide some ties otherwise.

    Args:
        weight: float32 `[out, in]`, row-major.
        format: bits, block size, symmetry and scale type.
        gram: float32 `[in, in]`, `X^T X` of the inputs or a multiple of it, damped if it is to be: a flip follows it
            to the letter.
        iterations: steps of the descent, each a product with the Gram matrix; 0 only flips, which costs a tenth and
            leaves 1 to 3 % more error on SmolLM2-135M. More than 50 (AutoRound: 200) gained nothing there.

    Returns:
        Levels of `[out, ceil(in / block_size), block_size]`, none of whose rows has a larger error than rounded to
        nearest under the same scales.
    """
    start = weighted_least_squares(weight, format, np.ascontiguousarray(np.diagonal(gram)))
    return round_adaptively(weight, start, gram, iterations)


def prepare_adaround(
    statistics: InputStatistics, format: WeightFormat, options: AdaRoundOptions
) -> Callable[[np.ndarray], Levels]:
    """A function that solves matrices of one input."""
    gram = damped(statistics, options.damping)
    return lambda weight: adaround(weight, format, gram, options.iterations)


def round_adaptively(weight: np.ndarray, start: Levels, gram: np.ndarray, iterations: int = 50) -> Levels:
    """`adaround` under the scales and zero points of `start`, which also gives the levels of padding.

    Args:
        weight: float32 `[out, in]`.
        start: any solver's levels of the weight.
        gram: float32 `[in, in]`.
        iterations: steps of the descent; 0 only flips.
    """
    columns = gram.shape[0]
    largest = float(np.diagonal(gram).max(initial=0))
    gram = np.ascontiguousarray(gram / np.float32(largest if largest > 0 else 1), np.float32)
    levels = start.levels.copy()
    flat = levels.reshape(levels.shape[0], -1)
    for rows in _slices(weight.shape[0]):
        flat[rows, :columns] = _solve(_on_grid(weight[rows], start, rows), gram, iterations).astype(np.uint8)
    return replace(start, levels=levels)


def _slices(count: int) -> Iterator[slice]:
    for first in range(0, count, _ROWS):
        yield slice(first, min(first + _ROWS, count))


def _on_grid(weight: np.ndarray, start: Levels, rows: slice) -> _Rows:
    """These rows of a weight, `weight`, on their grid."""
    format, columns = start.format, weight.shape[1]

    def each_column(of_block: np.ndarray) -> np.ndarray:
        return np.repeat(of_block.astype(np.float32), format.block_size, axis=1)[:, :columns]

    scales = each_column(start.scales[rows])
    middle = np.float32(2 ** (format.bits - 1))
    zeros = middle if start.zero_points is None else each_column(start.zero_points[rows])
    usable = np.abs(scales) >= np.finfo(np.float32).tiny
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=usable)
    with np.errstate(over="ignore"):
        steps = np.clip(weight * inverse + zeros, -_FAR, _FAR)
    lower, upper, nearest = (
        np.clip(level, 0, np.float32(2**format.bits - 1))
        for level in (np.floor(steps), np.ceil(steps), np.floor(steps + np.float32(0.5)))
    )
    largest = np.abs(scales).max(axis=1, keepdims=True, initial=0)
    relative = np.divide(scales, largest, out=np.zeros_like(scales), where=largest > 0)
    return _Rows(steps, relative, lower, upper, nearest)


def _solve(rows: _Rows, gram: np.ndarray, iterations: int) -> np.ndarray:
    """Levels float32 `[rows, in]`."""
    levels, error = _flipped(rows, rows.nearest, gram)
    if iterations:
        others, other_error = _flipped(rows, _descend(rows, gram, iterations), gram)
        levels = np.where((other_error < error)[:, None], others, levels)
    return levels


def _flipped(rows: _Rows, levels: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels after all flips that help, and the error float64 `[rows]`."""
    levels, errors = levels.copy(), np.empty(levels.shape[0])
    kernels_rounding.flip(rows.steps, rows.scales, rows.lower, rows.upper, gram, levels, errors)
    return levels, errors


def _descend(rows: _Rows, gram: np.ndarray, iterations: int) -> np.ndarray:
    """The best iterate of each row in a signed gradient descent whose step falls from `1 / iterations` to zero."""
    offset = np.full_like(rows.steps, 0.5)  # AutoRound's and the half of rounding to nearest
    best, least = rows.nearest, np.full(rows.steps.shape[0], np.inf, np.float32)
    for iteration in range(iterations):
        levels = np.clip(np.floor(rows.steps + offset), rows.lower, rows.upper)
        missed = (levels - rows.steps) * rows.scales
        gradient = missed @ gram
        error = np.einsum("ij,ij->i", missed, gradient)
        better = error < least
        best = np.where(better[:, None], levels, best)
        least = np.where(better, error, least)
        rate = np.float32((1 - iteration / iterations) / iterations)
        offset = np.clip(offset - rate * np.sign(gradient * rows.scales), 0, 1)
    return best
