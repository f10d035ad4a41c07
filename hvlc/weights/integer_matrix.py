"""Quantized matrices in the order that products of integers read: all rows are solved once, for all that is stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hvlc.errors import HvlcError
from hvlc.weights.formats import LARGEST_PAIR, largest_pair
from hvlc.weights.lazy import Box, Expression
from hvlc.weights.quantized import Quantization

_ROWS = 256  # solved at a time


class Part(StrEnum):
    """An array that is stored of a matrix, in the order of a data file."""

    LEVELS = "levels"
    SCALES = "scales"
    SUMS = "sums"


@dataclass(frozen=True)
class IntegerMatrix:
    """A matrix `[out, in]` of 8 bits with one scale a row and no zero points, stored `[in, out]`.

    Attributes:
        of: the matrix and who chooses its levels.
    """

    of: Quantization

    def shape(self, part: Part) -> tuple[int, ...]:
        """Dimensions of a part: levels `[in, out]`; scales, and sums of the dequantized columns, `[out]`."""
        out, columns = self.of.weight.shape
        return (columns, out) if part is Part.LEVELS else (out,)

    @staticmethod
    def dtype(part: Part) -> np.dtype:
        """Type of a part: levels int8, scales and sums float32."""
        return np.dtype(np.int8 if part is Part.LEVELS else np.float32)

    def solve(self) -> dict[Part, np.ndarray]:
        """Solve all rows.

        Raises:
            HvlcError: the solver left neighbouring levels whose products saturate (its bug).
        """
        made = {part: np.empty(self.shape(part), self.dtype(part)) for part in Part}
        for start in range(0, self.of.weight.shape[0], _ROWS):
            rows = np.ascontiguousarray(self.of.weight.rows(start, min(start + _ROWS, self.of.weight.shape[0])))
            found, here = self.of.solver(rows, self.of.format), slice(start, start + len(rows))
            signed = (found.levels.reshape(rows.shape).astype(np.int16) - self.of.format.middle).astype(np.int8)
            made[Part.LEVELS][:, here] = signed.T
            made[Part.SCALES][here] = found.scales[:, 0]
            made[Part.SUMS][here] = signed.sum(1, dtype=np.int64) * found.scales[:, 0].astype(np.float64)
        if (pair := largest_pair(made[Part.LEVELS])) > LARGEST_PAIR:
            cause = f"internal error: two neighbouring levels add up to {pair}, and {LARGEST_PAIR} are the most"
            raise HvlcError("format.pairs", cause, "please report it")
        return made

    def part(self, part: Part) -> "IntegerPart":
        """One of its stored tensors."""
        return IntegerPart(self, part)


@dataclass(frozen=True)
class IntegerPart(Expression):
    """One of the arrays that are stored of an integer matrix; reading it alone solves the matrix."""

    of: IntegerMatrix
    part: Part

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Dimensions."""
        return self.of.shape(self.part)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type."""
        return self.of.dtype(self.part)

    @property
    def whole(self) -> bool:
        """Always."""
        return True

    def parts(self) -> Iterator[Expression]:
        """The weight."""
        yield self.of.of.weight

    def box(self, box: Box) -> np.ndarray:
        """The box of the whole result."""
        return self.of.solve()[self.part][box]
