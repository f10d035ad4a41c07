"""GPTQ: choose levels column by column, and compensate each column's error in the columns after it.

Frantar et al., "GPTQ" (arXiv 2210.17323), in the form of LDLQ (Chee et al., "QuIP", arXiv 2307.13304, theorem 6: the
two are the same): with the Gram matrix `G = M D M^T`, `M` unit upper triangular, column `k` is rounded from
`w_k + sum_{j<k} (w_j - q_j) M[j, k]`. That takes one Cholesky factorization and no inverse.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hvlc.solvers import kernels
from hvlc.solvers.kernel_calls import stored_zeros, weighted_extremes
from hvlc.solvers.lpbq import tied_scales
from hvlc.solvers.statistics import InputStatistics, damped
from hvlc.weights.formats import Levels, WeightFormat

_SHRINK = np.linspace(1.0, 0.6, 12, dtype=np.float32)
_STEP = 128  # columns between two products with the rest of the matrix


@dataclass(frozen=True)
class GptqOptions:
    """Options of GPTQ.

    Attributes:
        damping: share of the Gram matrix's mean diagonal that is added to its diagonal. Calibration sees few tokens:
            a tenth, not the usual hundredth, is what holds on text that it did not see (docs/quantization.md).
        act_order: columns with the largest inputs first.
    """

    damping: float = 0.1
    act_order: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping {self.damping} is not above 0 and at most 1")


@dataclass(frozen=True)
class FactoredGram:
    """A Gram matrix made ready for many matrices that share an input.

    Attributes:
        importance: float32 `[padded]`, the diagonal, damped and divided by its mean: levels do not depend on the size
            of the inputs. The columns that pad the last block have inputs of their own.
        order: int64 `[padded]`, the columns in the order of their turn.
        feedback: `M` of the ordered matrix, float32 `[padded, padded]`, strictly upper triangular (its unit diagonal
            left out).
    """

    importance: np.ndarray
    order: np.ndarray
    feedback: np.ndarray


def factor(statistics: InputStatistics, block_size: int, options: GptqOptions) -> FactoredGram:
    """Damp, order and factor a Gram matrix, padded to whole blocks.

    Inputs that never were anything but zero cost nothing whatever their weights; the damping keeps them in shape.
    """
    importance = np.diagonal(_padded(damped(statistics, options.damping), block_size)).copy()
    order = np.argsort(-importance, kind="stable") if options.act_order else np.arange(importance.size)
    # `M` is the Cholesky factor of the matrix read backwards, read backwards.
    lower = _cholesky(statistics, options.damping, block_size, order[::-1])
    lower /= np.diagonal(lower)
    feedback = np.ascontiguousarray(lower[::-1, ::-1])
    np.fill_diagonal(feedback, 0)
    return FactoredGram(importance, order, feedback)


def _padded(gram: np.ndarray, block_size: int) -> np.ndarray:
    """With columns that fill the last block."""
    size = gram.shape[0]
    if size % block_size == 0:
        return gram
    result = np.eye(-(-size // block_size) * block_size, dtype=np.float32)
    result[:size, :size] = gram
    return result


def _cholesky(statistics: InputStatistics, damping: float, block_size: int, order: np.ndarray) -> np.ndarray:
    """The lower factor of the damped matrix in some order; damped more while float32 has too few digits for it."""
    lift = float(np.finfo(np.float32).eps) * order.size
    while True:
        gram = _padded(damped(statistics, damping), block_size)
        gram = gram[np.ix_(order, order)]
        try:
            return cholesky_in_place(gram)
        except np.linalg.LinAlgError:
            damping, lift = damping + lift, lift * 4


def cholesky_in_place(matrix: np.ndarray, block: int = 2048) -> np.ndarray:
    """Lower factor of a symmetric positive definite matrix, in its own memory.

    numpy works in float64 and on copies, four times the matrix in all: 600 MB for 6,144 inputs. Here it sees a block of
    the diagonal at a time (Golub & Van Loan, "Matrix Computations", 4.2.9); one block is numpy's own result.

    Args:
        matrix: float32 `[n, n]`; overwritten, also when it is refused.
        block: rows and columns that are factored at once.

    Raises:
        numpy.linalg.LinAlgError: it is not positive definite.
    """
    size = matrix.shape[0]
    for start in range(0, size, block):
        stop = min(start + block, size)
        corner = np.linalg.cholesky(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = corner
        matrix[start:stop, stop:] = 0
        if stop == size:
            break
        panel = matrix[stop:, start:stop] @ np.linalg.inv(corner).T
        matrix[stop:, start:stop] = panel
        for first in range(0, size - stop, block):
            matrix[stop + first :, stop + first : stop + first + block] -= (
                panel[first:] @ panel[first : first + block].T
            )
    return matrix


def gptq(
    weight: np.ndarray, format: WeightFormat, statistics: InputStatistics, options: GptqOptions | None = None
) -> Levels:
    """Levels by GPTQ, under scales that minimize each block's squared error weighted by its inputs' mean squares.

    Args:
        weight: float32 `[out, in]`.
        format: bits, block size, symmetry and scale type.
        statistics: of the inputs.
        options: damping and order.

    Returns:
        Levels of `[out, ceil(in / block_size), block_size]`.
    """
    return prepare_gptq(statistics, format, options or GptqOptions())(weight)


def prepare_gptq(
    statistics: InputStatistics, format: WeightFormat, options: GptqOptions
) -> Callable[[np.ndarray], Levels]:
    """A function that solves matrices of one input."""
    factored = factor(statistics, format.block_size, options)
    return lambda weight: gptq_factored(weight, format, factored)


def gptq_factored(weight: np.ndarray, format: WeightFormat, factored: FactoredGram) -> Levels:
    """`gptq` with the factorization done, for several matrices that share an input."""
    rows, size, blocks = weight.shape[0], factored.order.size, factored.order.size // format.block_size
    weight = np.pad(np.asarray(weight, np.float32), ((0, 0), (0, size - weight.shape[1])))
    scales, zeros = weighted_extremes(weight, factored.importance, format, _SHRINK)
    scales = tied_scales(weight, scales, factored.importance, format)
    levels = np.empty((rows, size), np.uint8)
    ordered, turned = weight[:, factored.order], levels[:, factored.order]
    target, missed = ordered.copy(), np.empty((rows, _STEP), np.float32)
    block_of = (factored.order // format.block_size).astype(np.int64)
    top = 2**format.bits - 1
    for first in range(0, size, _STEP):
        last = min(first + _STEP, size)
        errors = missed[:, : last - first]
        kernels.feed_back(
            ordered[:, first:last],
            target[:, first:last],
            factored.feedback[first:last, first:last],
            scales,
            zeros,
            block_of[first:last],
            top,
            turned[:, first:last],
            errors,
        )
        if last < size:
            target[:, last:] += errors @ factored.feedback[first:last, last:]
    levels[:, factored.order] = turned
    return Levels(levels.reshape(rows, blocks, format.block_size), scales, stored_zeros(zeros, format), format)
