"""LPBQ, AIMET's "low power blockwise quantization": two levels of scales.

Each block stores an integer from 1 to `LARGEST` and each row a float32; a block's scale is their product. An NPU
multiplies levels by the integer, which leaves 8-bit integers with one scale per row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from hvlc.errors import HvlcError
from hvlc.weights.formats.base import Levels, ScaleType, Stream, WeightFormat
from hvlc.weights.formats.block import SymmetricFormat

#: Largest whole number of a block. Times the lowest 4-bit level, -8, it is the lowest 8-bit integer; Qualcomm's
#: compiler lets larger products wrap around (docs/snapdragon.md).
LARGEST = 16
BITS = 4


@dataclass(frozen=True)
class LpbqFormat(WeightFormat):
    """Symmetric levels of 4 bits; positive scales that are whole numbers times a float of their row."""

    bits: int = field(default=BITS, init=False)
    block_size: int
    scale_type: ScaleType = field(default=ScaleType.LPBQ, init=False)
    negative_scales: bool = field(default=False, init=False)
    kind: ClassVar[str] = "sym"
    extra: ClassVar[tuple[Stream, ...]] = (Stream.FACTORS,)
    peculiarity: ClassVar[str] = "scales of the form LPBQ"

    @classmethod
    def spelled(cls, bits: int, block: str, scales: str) -> str:
        """Name of the format, whatever the type of the whole numbers is."""
        return super().spelled(bits, block, ScaleType.LPBQ.value)

    @property
    def searched(self) -> WeightFormat:
        """Blocks with any positive float scales."""
        return SymmetricFormat(self.bits, self.block_size, ScaleType.FLOAT32, negative_scales=False)

    def with_wide_scales(self) -> WeightFormat:
        """Factors are float32 already."""
        return self

    def with_negative_scales(self) -> Self:
        """Return itself: its scales are positive."""
        return self

    def grain(self, in_features: int) -> str:
        """Whole numbers of blocks."""
        return "lpbq"

    def product_obstacle(self, in_features: int) -> str:
        """MatMulNBits multiplies no scales."""
        return "scales of the form LPBQ are for static activations: MatMulNBits has float scales alone"

    def shape(self, stream: Stream, matrix: tuple[int, int]) -> tuple[int, ...]:
        """Factors are float32 `[out]`."""
        found = super().shape(stream, matrix)
        return found[:1] if stream is Stream.FACTORS else found

    def dtype(self, stream: Stream) -> np.dtype:
        """Factors are float32, scales uint8."""
        return np.dtype(np.float32) if stream is Stream.FACTORS else super().dtype(stream)

    def values(self, levels: Levels, stream: Stream) -> np.ndarray:
        """A row's factor is its largest scale over `LARGEST`, a block's whole number its scale over the factor."""
        if stream is Stream.LEVELS:
            return levels.levels
        factors = levels.scales.max(axis=1) / np.float32(LARGEST)
        return factors if stream is Stream.FACTORS else _whole_numbers(levels.scales, factors[:, None])

    def _scales(self, stored: Mapping[Stream, np.ndarray]) -> np.ndarray:
        return super()._scales(stored) * stored[Stream.FACTORS][:, None]


def _whole_numbers(scales: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Whole numbers that give the scales exactly when they are multiplied by the factors.

    Raises:
        HvlcError: there are none (the solver's bug).
    """
    wholes = np.rint(scales / factors).clip(1, LARGEST)
    if not np.array_equal(wholes.astype(np.float32) * factors, scales):
        cause = "internal error: the solver gave scales that are not whole numbers times a float of their row"
        raise HvlcError("solver.scales", cause, "please report it")
    return wholes
