"""Block-wise integer weights as numbers, and as onnxruntime's packed bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

import numpy as np

from hvlc.errors import HvlcError
from hvlc.lazy import Box, Expression
from hvlc.plan import ScaleType, WeightFormat


@dataclass(frozen=True)
class Levels:
    """A quantized matrix.

    Attributes:
        levels: unsigned levels uint8 `[out, blocks, block_size]`, 0 to `2**bits - 1`.
        scales: float32 `[out, blocks]`, already rounded to the stored scale type.
        zero_points: uint8 `[out, blocks]`, or None for `2**(bits - 1)` everywhere.
        format: what they are.
    """

    levels: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    format: WeightFormat

    def dequantize(self, in_features: int) -> np.ndarray:
        """float32 `[out, in_features]`: `(level - zero point) * scale`, padding dropped."""
        zero = (
            2 ** (self.format.bits - 1) if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        )
        values = (self.levels.astype(np.float32) - zero) * self.scales[..., None]
        return values.reshape(values.shape[0], -1)[:, :in_features]

    def packed(self) -> np.ndarray:
        """uint8 `[out, blocks, block_size * bits / 8]`, low nibble first (com.microsoft.MatMulNBits, input B)."""
        return _pack(self.levels, self.format.bits)

    def stored_scales(self) -> np.ndarray:
        """`[out, blocks]` in the stored scale type."""
        return self.scales.astype(scale_dtype(self.format))

    def packed_zero_points(self) -> np.ndarray:
        """uint8 `[out, ceil(blocks * bits / 8)]`, low nibble first.

        Raises:
            HvlcError: the solver gave none (its bug).
        """
        zeros = self.zero_points
        if zeros is None:
            raise HvlcError(
                "solver.zero_points", "the solver gave no zero points for an asymmetric format", "report it"
            )
        if zeros.shape[1] % 2 and self.format.bits == 4:
            zeros = np.pad(zeros, ((0, 0), (0, 1)))
        return _pack(zeros, self.format.bits)


def _pack(levels: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return levels
    pairs = np.ascontiguousarray(levels).view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8)


def scale_dtype(format: WeightFormat) -> np.dtype:
    """numpy dtype of the stored scales."""
    return np.dtype(np.float16 if format.scale_type is ScaleType.FLOAT16 else np.float32)


@dataclass(frozen=True)
class Solver:
    """Chooses the levels of a weight matrix, some rows at a time.

    Attributes:
        name: as recipes give it.
        solve: gets rows float32 `[rows, in]`, row-major; a row's levels do not depend on the rows beside it.
        seconds: for one weight on one core, measured (docs/memory.md); plans estimate with it.
    """

    name: str
    solve: Callable[[np.ndarray, WeightFormat], Levels]
    seconds: float

    def __call__(self, weight: np.ndarray, format: WeightFormat) -> Levels:
        """Levels of these rows."""
        return self.solve(weight, format)


class Stream(StrEnum):
    """What is stored of a quantized matrix, in the order of a data file."""

    LEVELS = "levels"
    SCALES = "scales"
    ZERO_POINTS = "zero_points"


@dataclass(frozen=True)
class Quantization:
    """A weight matrix that is quantized when it is written, some rows at a time.

    Attributes:
        weight: float32 `[out, in]`.
        format: what it becomes.
        solver: who chooses the levels.
    """

    weight: Expression
    format: WeightFormat
    solver: Solver

    def solve(self, rows: np.ndarray) -> dict["Stream", np.ndarray]:
        """What is stored of some rows of the weight."""
        levels = self.solver(np.ascontiguousarray(rows), self.format)
        return {stream: stored_array(levels, stream) for stream in self.streams}

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What is stored."""
        return streams_of(self.format)

    def stream(self, stream: Stream) -> "StoredPart":
        """One of its stored tensors."""
        return StoredPart(self, stream)


@dataclass(frozen=True)
class Solved:
    """A weight matrix whose levels were chosen before: by a calibration, or by whoever made the checkpoint.

    Attributes:
        shape: `[out, in]`.
        format: what it is.
        stored: an expression for each stream of the format, in their order, shaped as onnxruntime stores them.
    """

    shape: tuple[int, int]
    format: WeightFormat
    stored: tuple[Expression, ...]

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What is stored."""
        return streams_of(self.format)

    def stream(self, stream: Stream) -> Expression:
        """One of its stored tensors."""
        return self.stored[self.streams.index(stream)]


def streams_of(format: WeightFormat) -> tuple[Stream, ...]:
    """What is stored of a matrix of this format."""
    return (Stream.LEVELS, Stream.SCALES) if format.symmetric else tuple(Stream)


def stored_array(levels: Levels, stream: Stream) -> np.ndarray:
    """The bytes-to-be of one stream."""
    match stream:
        case Stream.LEVELS:
            return levels.packed()
        case Stream.SCALES:
            return levels.stored_scales()
        case Stream.ZERO_POINTS:
            return levels.packed_zero_points()


@dataclass(frozen=True)
class StoredPart(Expression):
    """Packed levels uint8 `[out, blocks, block_size * bits / 8]`, scales `[out, blocks]`, or packed zero points."""

    of: Quantization
    stream: Stream

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """As onnxruntime stores it."""
        rows, columns = self.of.weight.shape
        format = self.of.format
        blocks = ceil(columns / format.block_size)
        if self.stream is Stream.LEVELS:
            return rows, blocks, format.block_size * format.bits // 8
        return (rows, blocks if self.stream is Stream.SCALES else ceil(blocks * format.bits / 8))

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """uint8, or the scale type."""
        return scale_dtype(self.of.format) if self.stream is Stream.SCALES else np.dtype(np.uint8)

    def parts(self) -> Iterator[Expression]:
        """The weight."""
        yield self.of.weight

    def box(self, box: Box) -> np.ndarray:
        """Solves the box's rows."""
        rows = self.of.weight.rows(box[0].start, box[0].stop)
        return self.of.solve(rows)[self.stream][(slice(None), *box[1:])]
