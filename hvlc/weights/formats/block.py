"""Block-wise formats with a float scale per block: symmetric, or asymmetric with integer zero points."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hvlc.errors import HvlcError
from hvlc.weights.formats.base import Levels, Stream, WeightFormat
from hvlc.weights.formats.packing import packed_size, unpack


@dataclass(frozen=True)
class SymmetricFormat(WeightFormat):
    """Levels of 4 or 8 bits around the middle level."""

    kind: ClassVar[str] = "sym"


@dataclass(frozen=True)
class AsymmetricFormat(WeightFormat):
    """Levels around an integer zero point a block, as wide as a level and packed like levels, each row by itself.

    com.microsoft.MatMulNBits and GatherBlockQuantized take these bytes as they are.
    """

    kind: ClassVar[str] = "asym"
    extra: ClassVar[tuple[Stream, ...]] = (Stream.ZERO_POINTS,)
    zero_dtype: ClassVar[np.dtype | None] = np.dtype(np.uint8)

    @property
    def needs(self) -> tuple[str, ...]:
        """Zero points."""
        return ("zero_points",)

    def shape(self, stream: Stream, matrix: tuple[int, int]) -> tuple[int, ...]:
        """Zero points are uint8 `[out, ceil(blocks * bits / 8)]`."""
        rows, *others = super().shape(stream, matrix)
        return (rows, packed_size(others[0], self.bits)) if stream is Stream.ZERO_POINTS else (rows, *others)

    def values(self, levels: Levels, stream: Stream) -> np.ndarray:
        """Zero points as the solver gave them."""
        return given_zero_points(levels) if stream is Stream.ZERO_POINTS else super().values(levels, stream)

    def _zero_points(self, stored: Mapping[Stream, np.ndarray]) -> np.ndarray | None:
        return unpack(stored[Stream.ZERO_POINTS], self.bits, stored[Stream.SCALES].shape[1])


def given_zero_points(levels: Levels) -> np.ndarray:
    """Zero points that a solver had to give.

    Raises:
        HvlcError: it gave none (its bug).
    """
    if levels.zero_points is None:
        cause = "internal error: the solver gave no zero points for an asymmetric format"
        raise HvlcError("solver.zero_points", cause, "please report it")
    return levels.zero_points
