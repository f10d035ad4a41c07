"""Block-wise integer weights as numbers, and as onnxruntime's packed bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

import numpy as np

from hvlc.errors import HvlcError
from hvlc.weights.formats import LPBQ_LARGEST, ScaleType, WeightFormat
from hvlc.weights.lazy import Box, Expression

_SCALE_DTYPES = {ScaleType.FLOAT32: np.float32, ScaleType.FLOAT16: np.float16, ScaleType.LPBQ: np.uint8}


@dataclass(frozen=True)
class Levels:
    """A quantized matrix.

    Attributes:
        levels: unsigned levels uint8 `[out, blocks, block_size]`, 0 to `2**bits - 1`.
        scales: float32 `[out, blocks]`, already rounded to the stored scale type: of LPBQ, whole numbers up to
            `LPBQ_LARGEST` times a float of the row, which its largest scale is `LPBQ_LARGEST` times.
        zero_points: uint8 (float32 where the format has float zeros) `[out, blocks]`, or None for `2**(bits - 1)`
            everywhere.
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
        return pack_levels(self.levels, self.format.bits)

    def stored_scales(self) -> np.ndarray:
        """`[out, blocks]` in the stored scale type; of LPBQ the whole numbers, uint8.

        Raises:
            HvlcError: LPBQ scales are other than whole numbers times `factors` (the solver's bug).
        """
        if not self.format.is_lpbq:
            return self.scales.astype(scale_dtype(self.format))
        factors = self.factors()[:, None]
        wholes = np.rint(self.scales / factors).clip(1, LPBQ_LARGEST)
        if not np.array_equal(wholes.astype(np.float32) * factors, self.scales):
            cause = "the solver gave scales that are no whole numbers times a float of their row"
            raise HvlcError("solver.scales", cause, "report it")
        return wholes.astype(np.uint8)

    def factors(self) -> np.ndarray:
        """float32 `[out]`: what an LPBQ block's whole number is multiplied by."""
        return self.scales.max(axis=1) / np.float32(LPBQ_LARGEST)

    def packed_zero_points(self) -> np.ndarray:
        """uint8 `[out, ceil(blocks * bits / 8)]`, low nibble first; of float zeros the value of the middle level,
        float32 `[out, blocks]`.

        Raises:
            HvlcError: the solver gave none (its bug).
        """
        zeros = self.zero_points
        if zeros is None:
            raise HvlcError(
                "solver.zero_points", "the solver gave no zero points for an asymmetric format", "report it"
            )
        if self.format.float_zeros:
            zeros = (2 ** (self.format.bits - 1) - zeros) * self.scales
        return pack_zero_points(zeros, self.format)


def unpack_levels(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` elements of each packed row."""
    if bits == 8:
        return packed[..., :count]
    pairs = np.stack([packed & 15, packed >> 4], -1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :count]


def unpacked(solved: "Solved") -> np.ndarray:
    """float32 `[out, in]` of a solved matrix."""
    format, (rows, columns) = solved.format, solved.shape
    blocks = ceil(columns / format.block_size)
    levels = unpack_levels(solved.stream(Stream.LEVELS).read(), format.bits, format.block_size)
    scales = solved.stream(Stream.SCALES).read().astype(np.float32).reshape(rows, blocks)
    if format.is_lpbq:
        scales *= solved.stream(Stream.FACTORS).read()[:, None]
    if format.float_zeros:
        values = Levels(levels, scales, None, format).dequantize(columns)
        middle = np.repeat(solved.stream(Stream.ZERO_POINTS).read(), format.block_size, 1)
        return values + middle[:, :columns]
    zeros = None if format.symmetric else unpack_levels(solved.stream(Stream.ZERO_POINTS).read(), format.bits, blocks)
    return Levels(levels, scales, zeros, format).dequantize(columns)


def pack_levels(levels: np.ndarray, bits: int) -> np.ndarray:
    """uint8 with an even last axis, two 4-bit levels in a byte, low nibble first."""
    if bits == 8:
        return levels
    pairs = np.ascontiguousarray(levels).view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8)


def pack_zero_points(zeros: np.ndarray, format: WeightFormat) -> np.ndarray:
    """Zero points `[out, blocks]` as they are stored: packed uint8 rows, or float32 (see `ZeroType`)."""
    if format.float_zeros:
        return zeros.astype(np.float32, copy=False)
    if zeros.shape[1] % 2 and format.bits == 4:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return pack_levels(zeros, format.bits)


def scale_dtype(format: WeightFormat) -> np.dtype:
    """numpy dtype of the stored scales."""
    return np.dtype(_SCALE_DTYPES[format.scale_type])


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
    FACTORS = "factors"


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
class Dequantized(Expression):
    """What a quantized matrix stands for: float32 `[out, in]`, solved row by row as it is read."""

    of: Quantization
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """That of the weight."""
        return self.of.weight.shape

    def parts(self) -> Iterator[Expression]:
        """The weight."""
        yield self.of.weight

    def box(self, box: Box) -> np.ndarray:
        """The box of its rows."""
        rows = np.ascontiguousarray(self.of.weight.rows(box[0].start, box[0].stop))
        if not rows.size:  # of which solvers need know nothing
            return rows[(slice(None), *box[1:])]
        return self.of.solver(rows, self.of.format).dequantize(rows.shape[1])[(slice(None), *box[1:])]


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
    extra = () if format.symmetric else (Stream.ZERO_POINTS,)
    return (Stream.LEVELS, Stream.SCALES, *((Stream.FACTORS,) if format.is_lpbq else extra))


def stream_shape(matrix: tuple[int, int], format: WeightFormat, stream: Stream) -> tuple[int, ...]:
    """Dimensions of what is stored of a matrix `[out, in]`."""
    rows, blocks = matrix[0], ceil(matrix[1] / format.block_size)
    match stream:
        case Stream.LEVELS:
            return rows, blocks, format.block_size * format.bits // 8
        case Stream.SCALES:
            return rows, blocks
        case Stream.ZERO_POINTS:
            return rows, blocks if format.float_zeros else ceil(blocks * format.bits / 8)
        case Stream.FACTORS:
            return (rows,)


def stream_dtype(format: WeightFormat, stream: Stream) -> np.dtype:
    """numpy dtype of what is stored."""
    if stream is Stream.FACTORS or (stream is Stream.ZERO_POINTS and format.float_zeros):
        return np.dtype(np.float32)
    return scale_dtype(format) if stream is Stream.SCALES else np.dtype(np.uint8)


def stored_array(levels: Levels, stream: Stream) -> np.ndarray:
    """The bytes-to-be of one stream."""
    match stream:
        case Stream.LEVELS:
            return levels.packed()
        case Stream.SCALES:
            return levels.stored_scales()
        case Stream.ZERO_POINTS:
            return levels.packed_zero_points()
        case Stream.FACTORS:
            return levels.factors()


@dataclass(frozen=True)
class StoredPart(Expression):
    """Packed levels uint8 `[out, blocks, block_size * bits / 8]`, scales `[out, blocks]`, packed zero points, or LPBQ's
    factors float32 `[out]`.
    """

    of: Quantization
    stream: Stream

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """As onnxruntime stores it."""
        rows, columns = self.of.weight.shape
        return stream_shape((rows, columns), self.of.format, self.stream)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """uint8, or the scale type."""
        return stream_dtype(self.of.format, self.stream)

    def parts(self) -> Iterator[Expression]:
        """The weight."""
        yield self.of.weight

    def box(self, box: Box) -> np.ndarray:
        """Solves the box's rows."""
        rows = self.of.weight.rows(box[0].start, box[0].stop)
        return self.of.solve(rows)[self.stream][(slice(None), *box[1:])]
