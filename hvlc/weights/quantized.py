"""Quantized matrices as lazy expressions, whose levels a solver chooses on writing, or has chosen before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hvlc.weights.formats import Levels, Stream, WeightFormat
from hvlc.weights.lazy import Box, Expression


@dataclass(frozen=True)
class Solver:
    """Function that chooses the levels of a weight matrix, some rows at a time.

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

    def solve(self, rows: np.ndarray) -> dict[Stream, np.ndarray]:
        """Stored streams of some rows of the weight."""
        return self.solver(np.ascontiguousarray(rows), self.format).streams

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Streams that are stored."""
        return self.format.streams

    def stream(self, stream: Stream) -> "StoredPart":
        """One of its stored tensors."""
        return StoredPart(self, stream)


@dataclass(frozen=True)
class Dequantized(Expression):
    """Dequantized values of a quantized matrix: float32 `[out, in]`, solved row by row as they are read."""

    of: Quantization
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the weight."""
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
class SolvedWeight:
    """A weight matrix whose levels were chosen before: by a calibration, or by whoever made the checkpoint.

    Attributes:
        shape: `[out, in]`.
        format: what it is.
        stored: an expression for each stream of the format, in their order.

    Raises:
        ValueError: the format has other streams, or gives them other shapes.
    """

    shape: tuple[int, int]
    format: WeightFormat
    stored: tuple[Expression, ...]

    def __post_init__(self) -> None:
        shapes = (part.shape for part in self.stored)
        self.format.check(dict(zip(self.streams, shapes, strict=True)), self.shape)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Streams that are stored."""
        return self.format.streams

    def stream(self, stream: Stream) -> Expression:
        """One of its stored tensors."""
        return self.stored[self.streams.index(stream)]

    def dequantize(self) -> np.ndarray:
        """float32 `[out, in]`."""
        return self.format.dequantize({stream: self.stream(stream).read() for stream in self.streams}, self.shape)


@dataclass(frozen=True)
class StoredPart(Expression):
    """One of the arrays that are stored of a matrix, with the shape and dtype of its format."""

    of: Quantization
    stream: Stream

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape in which onnxruntime stores the stream."""
        rows, columns = self.of.weight.shape
        return self.of.format.shape(self.stream, (rows, columns))

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """The format's for the stream."""
        return self.of.format.dtype(self.stream)

    def parts(self) -> Iterator[Expression]:
        """The weight."""
        yield self.of.weight

    def box(self, box: Box) -> np.ndarray:
        """Solve the box's rows."""
        rows = self.of.weight.rows(box[0].start, box[0].stop)
        return self.of.solve(rows)[self.stream][(slice(None), *box[1:])]
