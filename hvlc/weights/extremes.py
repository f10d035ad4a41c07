"""Largest magnitudes of a matrix along both of its axes, in one pass over its rows."""

from dataclasses import dataclass

import numpy as np

from hvlc.weights.lazy import Expression

_CHUNK = 1 << 20  # elements in memory at a time


@dataclass(frozen=True)
class Extremes:
    """Largest magnitudes.

    Attributes:
        rows: float32 `[out]`, of each row.
        columns: float32 `[in]`, of each column.
    """

    rows: np.ndarray
    columns: np.ndarray

    def blocks(self, size: int) -> np.ndarray:
        """float32 `[ceil(in / size)]`: of `size` neighbouring columns each."""
        padded = np.pad(self.columns, (0, -len(self.columns) % size))
        largest: np.ndarray = padded.reshape(-1, size).max(axis=1)
        return largest


def extremes_of(matrix: Expression) -> Extremes:
    """Largest magnitudes of a matrix float32 `[out, in]`; its pages are given back."""
    out, columns = matrix.shape
    rows, widest = np.zeros(out, np.float32), np.zeros(columns, np.float32)
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, out if columns else 0, step):
        magnitudes = np.abs(matrix.rows(start, min(start + step, out)))
        rows[start : start + step] = magnitudes.max(axis=1)
        np.maximum(widest, magnitudes.max(axis=0), out=widest)
    for tensor in matrix.stored():
        tensor.release()
    return Extremes(rows, widest)
