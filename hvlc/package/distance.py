"""Distance between two arrays, computed piece by piece."""

import math
from dataclasses import dataclass

import numpy as np

_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Distance:
    """Distance of an array from a reference of the same shape.

    Attributes:
        relative: root mean square of the differences by that of the reference; None where that is 0 and the
            difference is not, or where a number is not finite.
        largest: difference; None where a number is not finite.
        exact: whether the two are equal, NaN with NaN.
        error_squares: sum of the squares of the differences; NaN where a number is not finite.
        reference_squares: sum of the squares of the reference.
    """

    relative: float | None
    largest: float | None
    exact: bool
    error_squares: float
    reference_squares: float

    @property
    def finite(self) -> bool:
        """Whether every number of the two is."""
        return self.largest is not None


def distance(reference: np.ndarray, other: np.ndarray) -> Distance:
    """Distance of `other` from `reference`, summed in float64.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"{list(other.shape)} has no distance from {list(reference.shape)}")
    first, second = reference.reshape(-1), other.reshape(-1)
    squares, size, largest, exact = 0.0, 0.0, 0.0, True
    for start in range(0, first.size, _AT_ONCE):
        a, b = (array[start : start + _AT_ONCE].astype(np.float64) for array in (first, second))
        exact = exact and bool(((a == b) | (np.isnan(a) & np.isnan(b))).all())
        gap = b - a
        squares += float(gap @ gap)
        size += float(a @ a)
        largest = max(largest, float(np.abs(gap).max())) if not math.isnan(largest) else largest
        if not np.isfinite(gap).all():
            largest = math.nan
    if not (math.isfinite(squares) and math.isfinite(size) and math.isfinite(largest)):
        return Distance(None, None, exact, math.nan, size)
    relative = math.sqrt(squares / size) if size else (0.0 if exact else None)
    return Distance(relative, largest, exact, squares, size)
