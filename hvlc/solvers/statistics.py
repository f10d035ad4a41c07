"""Statistics of a product's inputs for calibrated solvers: second moments, means of magnitudes and peaks."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the vectors that a product was given.

    Attributes:
        gram: float32 `[in, in]`, the mean of `x x^T` over all vectors; half the Hessian of the mean squared output
            error with respect to a row of the weight.
        mean_abs: float32 `[in]`, the mean of `|x|`.
        peak: float32 `[in]`, the largest `|x|`.
        count: how many vectors.
    """

    gram: np.ndarray
    mean_abs: np.ndarray
    peak: np.ndarray
    count: int

    @property
    def mean_square(self) -> np.ndarray:
        """float32 `[in]`, the mean of `x ** 2`."""
        return np.ascontiguousarray(np.diagonal(self.gram))


class Accumulator:
    """Accumulator of `InputStatistics`, some vectors at a time."""

    def __init__(self, features: int) -> None:
        self._gram = np.zeros((features, features), np.float32)
        self._total = np.zeros(features, np.float64)
        self._peak = np.zeros(features, np.float32)
        self._count = 0

    def add(self, inputs: np.ndarray) -> None:
        """Take in float `[..., in]`."""
        rows = np.ascontiguousarray(inputs, np.float32).reshape(-1, self._peak.size)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever reads the statistics sees it
            self._gram += rows.T @ rows  # numpy sees the symmetry and does half of the work
        magnitudes = np.abs(rows)
        self._total += magnitudes.sum(0, np.float64)
        self._peak = np.maximum(self._peak, magnitudes.max(0, initial=0))
        self._count += rows.shape[0]

    def finish(self) -> InputStatistics:
        """The statistics of everything so far; the accumulator must not be used any more.

        Raises:
            ValueError: nothing was added.
        """
        if not self._count:
            raise ValueError("no vector was added")
        self._gram /= np.float32(self._count)
        return InputStatistics(self._gram, (self._total / self._count).astype(np.float32), self._peak, self._count)


def damped(statistics: InputStatistics, share: float) -> np.ndarray:
    """The Gram matrix in units of its mean diagonal, with a share of that added to the diagonal.

    Inputs that never were anything but zero then cost something whatever their weights, and the matrix is definite.
    """
    mean = float(np.mean(statistics.mean_square, dtype=np.float64)) or 1.0
    gram = np.empty_like(statistics.gram)
    np.divide(statistics.gram, mean, out=gram, dtype=np.float64, casting="same_kind")
    gram[np.diag_indices(len(gram))] += np.float32(share)
    return gram
