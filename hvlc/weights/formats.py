"""Formats of quantized weights: bits, blocks, scales, zero points."""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil


class ScaleType(StrEnum):
    """How the scales are stored.

    LPBQ (AIMET's "low power blockwise quantization") stores a whole number from 1 to `LPBQ_LARGEST` for each block and
    a float32 for each row; a block's scale is their product. An NPU multiplies levels by the whole number and is left
    with 8-bit integers that have one scale a row.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    LPBQ = "lpbq"


#: Largest whole number of an LPBQ block. Times the lowest 4-bit level, -8, it is the lowest 8-bit integer; Qualcomm's
#: compiler lets larger products wrap around (docs/snapdragon.md).
LPBQ_LARGEST = 16


_SCALE_NAMES = {ScaleType.FLOAT32: "f32", ScaleType.FLOAT16: "f16", ScaleType.LPBQ: "lpbq"}


_SCALE_BYTES = {ScaleType.FLOAT32: 4, ScaleType.FLOAT16: 2, ScaleType.LPBQ: 1}


class ZeroType(StrEnum):
    """Element type of the zero points: integers as wide as a level, or any float.

    A float zero point is stored as what it makes of the middle level, `(2**(bits - 1) - zero) * scale` in float32: a
    product adds that times the sum of the block's inputs, which is fast everywhere. onnxruntime's own float zero
    points dequantize the whole matrix at every product (1.31, one core, 2048 x 2048, one token: 18 ms, here 0.8 ms).
    """

    INTEGER = "integer"
    FLOAT = "float"


@dataclass(frozen=True)
class WeightFormat:
    """A block-wise integer format.

    Attributes:
        bits: width of an element.
        block_size: input channels that share one scale.
        symmetric: no zero points; the stored level is offset by `2 ** (bits - 1)`.
        scale_type: how the scales are stored; LPBQ is for 4 bits without zero points or negative scales.
        negative_scales: whether a scale may be negative.
        zero_type: element type of the zero points, where there are any.

    Raises:
        ValueError: LPBQ scales of another form.
    """

    bits: int
    block_size: int
    symmetric: bool = True
    scale_type: ScaleType = ScaleType.FLOAT16
    negative_scales: bool = True
    zero_type: ZeroType = ZeroType.INTEGER

    def __post_init__(self) -> None:
        if self.is_lpbq and (self.bits != 4 or not self.symmetric or self.negative_scales):
            raise ValueError("LPBQ scales are for 4 bits without zero points or negative scales")

    def bytes(self, out_features: int, in_features: int) -> int:
        """Stored size of a matrix, levels and scales (and zero points)."""
        blocks = out_features * ceil(in_features / self.block_size)
        factors = 4 * out_features if self.is_lpbq else 0
        zeros = 0 if self.symmetric else out_features * ceil(ceil(in_features / self.block_size) * self.bits / 8)
        if self.float_zeros:
            zeros = 4 * blocks
        scales = blocks * _SCALE_BYTES[self.scale_type] + factors
        return blocks * self.block_size * self.bits // 8 + scales + zeros

    @property
    def is_lpbq(self) -> bool:
        """Whether a block's scale is a whole number times its row's float."""
        return self.scale_type is ScaleType.LPBQ

    @property
    def float_zeros(self) -> bool:
        """Whether it has zero points, and they are float."""
        return not self.symmetric and self.zero_type is ZeroType.FLOAT

    def static_obstacle(self, in_features: int) -> str:
        """Why a product in QDQ form cannot take a matrix of this format; empty when it can."""
        if not self.symmetric:
            return "static activations take weights without zero points"
        if in_features % self.block_size:
            return f"rows of {in_features} are no whole number of blocks of {self.block_size}"
        return ""

    def __str__(self) -> str:
        kind = "sym" if self.symmetric else "float zero" if self.float_zeros else "asym"
        return f"int{self.bits} b{self.block_size} {kind} {_SCALE_NAMES[self.scale_type]}"
