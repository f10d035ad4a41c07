"""Base class of quantized weight formats: levels in blocks, scales, and the arrays that are stored."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, prod
from typing import ClassVar, Self

import numpy as np

from hvlc.weights.formats.packing import pack, packed_size, unpack


class ScaleType(StrEnum):
    """Storage of the scales; LPBQ is explained in `hvlc.weights.formats.lpbq`."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    LPBQ = "lpbq"


_SCALES: dict[ScaleType, tuple[str, np.dtype]] = {
    ScaleType.FLOAT32: ("f32", np.dtype(np.float32)),
    ScaleType.FLOAT16: ("f16", np.dtype(np.float16)),
    ScaleType.LPBQ: ("lpbq", np.dtype(np.uint8)),
}


class Stream(StrEnum):
    """An array that is stored of a quantized matrix; a format has them in the order of a data file.

    MIDDLES are float zero points, stored as the value of a block's middle level.
    """

    LEVELS = "levels"
    SCALES = "scales"
    ZERO_POINTS = "zero_points"
    MIDDLES = "middles"
    FACTORS = "factors"


@dataclass(frozen=True)
class Levels:
    """A quantized matrix.

    Attributes:
        levels: unsigned levels uint8 `[out, blocks, block_size]`, 0 to `2**bits - 1`.
        scales: float32 `[out, blocks]`, each one that the format can hold.
        zero_points: `[out, blocks]` of the format's `zero_dtype`. None: `2**(bits - 1)` everywhere.
        format: what they are.
    """

    levels: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    format: "WeightFormat"

    def dequantize(self, in_features: int) -> np.ndarray:
        """float32 `[out, in]`: `(level - zero point) * scale`, padding dropped."""
        zeros = self.format.middle if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        values = (self.levels.astype(np.float32) - zeros) * self.scales[..., None]
        return values.reshape(values.shape[0], -1)[:, :in_features]

    def stored(self, stream: Stream) -> np.ndarray:
        """One of the arrays that are stored, in the shape and dtype that the format gives it.

        Raises:
            HvlcError: the scales or zero points are not those of the format (the solver's bug).
        """
        return self.format.encode(stream, self.format.values(self, stream))

    @property
    def streams(self) -> dict[Stream, np.ndarray]:
        """Every array that is stored."""
        return {stream: self.stored(stream) for stream in self.format.streams}


@dataclass(frozen=True)
class WeightFormat(ABC):
    """A block-wise integer format.

    Attributes:
        bits: width of a level.
        block_size: input channels that share one scale; the last block of a row may be padded.
        scale_type: how the scales are stored.
        negative_scales: whether a scale may be negative.
        kind: of its zero points, as names of formats say it.
        extra: what is stored beside levels and scales.
        zero_dtype: element type of a solver's zero points. None: the zero point is the middle level everywhere.
        peculiarity: what only some operators and solvers know; empty: nothing.
        integer_product: whether its product rounds the inputs to 8 bits as it runs.
    """

    bits: int
    block_size: int
    scale_type: ScaleType = ScaleType.FLOAT16
    negative_scales: bool = True

    kind: ClassVar[str]
    extra: ClassVar[tuple[Stream, ...]] = ()
    zero_dtype: ClassVar[np.dtype | None] = None
    peculiarity: ClassVar[str] = ""
    integer_product: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.spelled(self.bits, f"b{self.block_size}", _SCALES[self.scale_type][0])

    @classmethod
    def spelled(cls, bits: int, block: str, scales: str) -> str:
        """The name of a format of this class.

        Args:
            bits: width of a level.
            block: "b32", or another word for what shares a scale.
            scales: "f32", "f16", or another element type.
        """
        return f"int{bits} {block} {cls.kind} {scales}"

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Streams that are stored of a matrix."""
        return (Stream.LEVELS, Stream.SCALES, *self.extra)

    def stored_name(self, stream: Stream) -> str:
        """Suffix of a weight's name in graphs: "int4", "scales", ..."""
        return f"int{self.bits}" if stream is Stream.LEVELS else stream.value

    def shape(self, stream: Stream, matrix: tuple[int, int]) -> tuple[int, ...]:
        """Dimensions of what is stored of a matrix `[out, in]`.

        Raises:
            ValueError: the format does not store the stream.
        """
        if stream not in self.streams:
            raise ValueError(f"{self} stores no {stream}")
        blocks = (matrix[0], ceil(matrix[1] / self.block_size))
        return (*blocks, packed_size(self.block_size, self.bits)) if stream is Stream.LEVELS else blocks

    def dtype(self, stream: Stream) -> np.dtype:
        """numpy dtype of what is stored."""
        return _SCALES[self.scale_type][1] if stream is Stream.SCALES else np.dtype(np.uint8)

    def bytes(self, out_features: int, in_features: int) -> int:
        """Stored size of a matrix: all its streams."""
        matrix = (out_features, in_features)
        return sum(prod(self.shape(stream, matrix)) * self.dtype(stream).itemsize for stream in self.streams)

    def values(self, levels: Levels, stream: Stream) -> np.ndarray:
        """A stream's values for solved levels, before `encode`.

        Raises:
            HvlcError: the solver gave other scales or zero points than the format holds (its bug).
        """
        return levels.levels if stream is Stream.LEVELS else levels.scales

    def encode(self, stream: Stream, values: np.ndarray) -> np.ndarray:
        """Levels, scales or zero points of some rows as they are stored: packed, or in the stored dtype."""
        if stream in (Stream.LEVELS, Stream.ZERO_POINTS):
            return pack(values, self.bits)
        return values.astype(self.dtype(stream), copy=False)

    def check(self, shapes: Mapping[Stream, tuple[int, ...]], matrix: tuple[int, int]) -> None:
        """Compare what is stored of a matrix `[out, in]` with the shapes that the format gives it.

        Raises:
            ValueError: a stream is missing, is not the format's, or has another shape.
        """
        expected = {stream: self.shape(stream, matrix) for stream in self.streams}
        if dict(shapes) != expected:
            raise ValueError(f"{self} of {matrix} is stored as {expected}, got {dict(shapes)}")

    def dequantize(self, stored: Mapping[Stream, np.ndarray], matrix: tuple[int, int]) -> np.ndarray:
        """float32 `[out, in]` of what is stored.

        Raises:
            ValueError: as `check`.
        """
        self.check({stream: array.shape for stream, array in stored.items()}, matrix)
        levels = unpack(stored[Stream.LEVELS], self.bits, self.block_size)
        return Levels(levels, self._scales(stored), self._zero_points(stored), self).dequantize(matrix[1])

    def _scales(self, stored: Mapping[Stream, np.ndarray]) -> np.ndarray:
        """float32 `[out, blocks]`."""
        return stored[Stream.SCALES].astype(np.float32)

    def _zero_points(self, stored: Mapping[Stream, np.ndarray]) -> np.ndarray | None:
        """uint8 `[out, blocks]`. None: the middle level."""
        return None

    @property
    def middle(self) -> int:
        """The level that means 0 where there are no zero points."""
        return 1 << (self.bits - 1)

    @property
    def symmetric(self) -> bool:
        """Whether the middle level means 0: what kernels are told."""
        return self.zero_dtype is None

    @property
    def steps(self) -> int:
        """Most steps of a scale between 0 and a level."""
        return self.middle if self.symmetric else 2 * self.middle - 1

    @property
    def half_scales(self) -> bool:
        """Whether scales are float16."""
        return self.scale_type is ScaleType.FLOAT16

    def held(self, scales: np.ndarray) -> np.ndarray:
        """Positive scales rounded to those that can be stored, float32; never to zero or infinity."""
        if not self.half_scales:
            return scales
        half = np.finfo(np.float16)
        return np.clip(scales, half.smallest_subnormal, half.max).astype(np.float16).astype(np.float32)

    @property
    def searched(self) -> "WeightFormat":
        """The format that solvers search scales for: itself, unless scales are tied to each other."""
        return self

    def with_wide_scales(self) -> "WeightFormat":
        """The same with float32 scales."""
        return replace(self, scale_type=ScaleType.FLOAT32)

    def with_negative_scales(self) -> Self:
        """The same with scales of both signs, where it has any."""
        return replace(self, negative_scales=True)

    def in_blocks(self, size: int) -> "WeightFormat":
        """The same in blocks of another size."""
        return replace(self, block_size=size)

    def grain(self, in_features: int) -> str:
        """Granularity of a DequantizeLinear's scales: a value of `hvlc.targets.Grain`."""
        return "channel" if self.block_size == in_features else "block"

    @property
    def needs(self) -> tuple[str, ...]:
        """Attributes of a target's block format that must be true."""
        return ()

    def static_obstacle(self, in_features: int) -> str:
        """Reason why a product in QDQ form cannot take a matrix of this format; empty when it can."""
        if not self.symmetric:
            return "static activations take weights without zero points"
        if in_features % self.block_size:
            return f"rows of {in_features} are not a whole number of blocks of {self.block_size}"
        return ""

    def product_obstacle(self, in_features: int) -> str:
        """Reason why MatMulNBits cannot take a matrix of this format on any target; empty when it can."""
        return ""

    def lookup_obstacle(self, in_features: int) -> str:
        """Reason why GatherBlockQuantized cannot read rows of this format on any target; empty when it can."""
        if in_features % self.block_size:  # the operator would return the padding of the last block too
            return f"rows of {in_features} are not a whole number of blocks of {self.block_size}"
        if self.block_size.bit_count() > 1:
            return f"GatherBlockQuantized takes no blocks of {self.block_size}"
        return f"GatherBlockQuantized takes no {self.peculiarity}" if self.peculiarity else ""
