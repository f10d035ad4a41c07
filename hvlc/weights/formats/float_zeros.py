"""Block-wise format with float zero points, stored as the dequantized value of the middle level.

The graph adds `(2**(bits - 1) - zero) * scale` times the sum of each block's inputs to a product without zero points
(`hvlc.passes.quantize.add_middles`), which is fast everywhere. onnxruntime's own float zero points dequantize the whole
matrix at every product (1.31, one core, 2048 x 2048, one token: 18 ms, here 0.8 ms).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hvlc.weights.formats.base import Levels, Stream, WeightFormat
from hvlc.weights.formats.block import given_zero_points


@dataclass(frozen=True)
class FloatZeroFormat(WeightFormat):
    """Levels around a float zero point a block; the value of the middle level is stored, float32 `[out, blocks]`."""

    kind: ClassVar[str] = "float zero"
    extra: ClassVar[tuple[Stream, ...]] = (Stream.MIDDLES,)
    zero_dtype: ClassVar[np.dtype | None] = np.dtype(np.float32)
    peculiarity: ClassVar[str] = "float zero points"

    @property
    def needs(self) -> tuple[str, ...]:
        """Zero points, and that they may be float."""
        return ("zero_points", "float_zero_points")

    def stored_name(self, stream: Stream) -> str:
        """Graphs call middles zero points."""
        return super().stored_name(Stream.ZERO_POINTS if stream is Stream.MIDDLES else stream)

    def dtype(self, stream: Stream) -> np.dtype:
        """Middles are float32."""
        return np.dtype(np.float32) if stream is Stream.MIDDLES else super().dtype(stream)

    def product_obstacle(self, in_features: int) -> str:
        """The sums of a block's inputs have no padding."""
        rest = in_features % self.block_size
        return f"rows of {in_features} are not a whole number of blocks of {self.block_size}" if rest else ""

    def values(self, levels: Levels, stream: Stream) -> np.ndarray:
        """The value of the middle level."""
        if stream is not Stream.MIDDLES:
            return super().values(levels, stream)
        return (self.middle - given_zero_points(levels)) * levels.scales

    def dequantize(self, stored: Mapping[Stream, np.ndarray], matrix: tuple[int, int]) -> np.ndarray:
        """Levels around the middle one, and its value added."""
        values = super().dequantize(stored, matrix)
        return values + np.repeat(stored[Stream.MIDDLES], self.block_size, 1)[:, : matrix[1]]
