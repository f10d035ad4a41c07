"""Per-channel format of 8 bits for products of integers whose inputs are rounded as they run, a scale a token.

Processors before AVX-VNNI multiply unsigned by signed bytes in pairs and add each pair in 16 bits, which saturates
(vpmaddubsw; onnxruntime's MLAS uses it for uint8 by int8): 255 times two levels that add up to more than 128 is beyond
32,767, and the sum is cut off without a word. So no two levels that are multiplied together add up to more than 128.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hvlc.weights.formats.base import ScaleType, WeightFormat
from hvlc.weights.formats.channel import ChannelFormat

#: Largest magnitude of a level, and of the sum of two neighbours: 255 * 128 = 32,640.
LARGEST, LARGEST_PAIR = 127, 128


@dataclass(frozen=True)
class IntegerProductFormat(ChannelFormat):
    """Symmetric levels of 8 bits, one scale a row; neighbours (columns 0 and 1, 2 and 3, ...) add up to 128 at most.

    Raises:
        ValueError: another width or scale type.
    """

    kind: ClassVar[str] = "sym paired"
    integer_product: ClassVar[bool] = True
    peculiarity: ClassVar[str] = "rows of paired levels"

    def __post_init__(self) -> None:
        if self.bits != 8 or self.scale_type is not ScaleType.FLOAT32 or self.negative_scales:
            raise ValueError("products: int8 is for 8 bits per channel with positive float32 scales and no zero points")

    def with_negative_scales(self) -> "IntegerProductFormat":
        """The same: its scales are positive."""
        return self

    def in_blocks(self, size: int) -> WeightFormat:
        """Blocks, which are another kind of product."""
        return ChannelFormat(self.bits, size, self.scale_type, self.negative_scales).in_blocks(size)


def largest_pair(levels: np.ndarray) -> int:
    """Largest magnitude of the sum of two neighbours along the first axis, of int8 levels; a last one may be alone."""
    even = levels.shape[0] // 2 * 2
    sums = levels[0:even:2].astype(np.int16) + levels[1:even:2]
    return int(max(np.abs(sums).max(initial=0), np.abs(levels[even:].astype(np.int16)).max(initial=0)))
