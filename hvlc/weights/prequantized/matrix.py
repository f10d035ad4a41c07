"""Pre-quantized matrices as lazy expressions: dequantized values, and the stored levels, scales and zero points."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hvlc.errors import HvlcError
from hvlc.weights.formats import Stream, WeightFormat
from hvlc.weights.lazy import Box, Expression
from hvlc.weights.quantized import SolvedWeight

#: Name in a plan for the solver of a matrix whose levels are taken as they are.
STORED = "stored"

_SMALLEST_BLOCK = 16  # of com.microsoft.MatMulNBits


class Prequantized(Expression):
    """A float32 matrix `[out, in]` that may have a block-wise form, from which it differs by float rounding at most.

    Attributes:
        origin: the format that it has in the checkpoint, for people.
        format: its block-wise form, or None when it has none.
        obstacle: why it has none.
    """

    origin: str
    format: WeightFormat | None
    obstacle: str = ""

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type of the values."""
        return np.dtype(np.float32)

    @abstractmethod
    def levels(self, start: int, stop: int) -> np.ndarray:
        """Levels of some rows, uint8 `[rows, blocks, block_size]`."""

    @abstractmethod
    def scales(self, start: int, stop: int) -> np.ndarray:
        """Scales of some rows, float32 `[rows, blocks]`, exact in the format's scale type."""

    @abstractmethod
    def zero_points(self, start: int, stop: int) -> np.ndarray:
        """Zero points of some rows, uint8 `[rows, blocks]`, where the format stores them."""

    def middles(self, start: int, stop: int) -> np.ndarray:
        """Values of the middle level of some rows, float32 `[rows, blocks]`, where the format stores them.

        Raises:
            TypeError: it has none.
        """
        raise TypeError(f"{self.origin} has no float zero points")

    def formats(self) -> Iterator[WeightFormat]:
        """Its form, and the same in smaller blocks, which repeat scale and zero point: as exact."""
        size = self.format.block_size if self.format else 0
        while self.format and size >= _SMALLEST_BLOCK:
            yield self.format.in_blocks(size)
            if size % 2:
                return
            size //= 2

    def form(self, format: WeightFormat) -> SolvedWeight:
        """Stored form in one of `formats`."""
        rows, columns = self.shape
        return SolvedWeight((rows, columns), format, tuple(TakenPart(self, format, s) for s in format.streams))

    def narrow(self, axis: int, start: int, stop: int) -> Expression:
        """Positions of one axis; a range of rows is pre-quantized as the whole is, since no block spans two rows."""
        found = super().narrow(axis, start, stop)
        return PrequantizedRows(self, start, stop) if axis == 0 and found is not self else found


@dataclass(frozen=True)
class PrequantizedRows(Prequantized):
    """Some rows of a pre-quantized matrix, as of projections that are stored as one.

    Attributes:
        of: the matrix.
        start: first row.
        stop: the row after the last.
    """

    of: Prequantized
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """`[rows, in]`."""
        return self.stop - self.start, self.of.shape[1]

    @property
    def origin(self) -> str:  # type: ignore[override]
        """Origin of the matrix."""
        return self.of.origin

    @property
    def format(self) -> WeightFormat | None:  # type: ignore[override]
        """Format of the matrix."""
        return self.of.format

    @property
    def obstacle(self) -> str:  # type: ignore[override]
        """Obstacle of the matrix."""
        return self.of.obstacle

    def parts(self) -> Iterator[Expression]:
        """The matrix."""
        yield self.of

    def box(self, box: Box) -> np.ndarray:
        """The matrix's box, moved."""
        return self.of.box((slice(self.start + box[0].start, self.start + box[0].stop), box[1]))

    def levels(self, start: int, stop: int) -> np.ndarray:
        """Levels of the matrix's rows."""
        return self.of.levels(self.start + start, self.start + stop)

    def scales(self, start: int, stop: int) -> np.ndarray:
        """Scales of the matrix's rows."""
        return self.of.scales(self.start + start, self.start + stop)

    def zero_points(self, start: int, stop: int) -> np.ndarray:
        """Zero points of the matrix's rows."""
        return self.of.zero_points(self.start + start, self.start + stop)

    def middles(self, start: int, stop: int) -> np.ndarray:
        """Values of the middle level of the matrix's rows."""
        return self.of.middles(self.start + start, self.start + stop)


@dataclass(frozen=True)
class TakenPart(Expression):
    """One stored tensor of a matrix whose levels are known."""

    of: Prequantized
    format: WeightFormat
    stream: Stream

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape in which onnxruntime stores the stream."""
        rows, columns = self.of.shape
        return self.format.shape(self.stream, (rows, columns))

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type in which onnxruntime stores the stream."""
        return self.format.dtype(self.stream)

    def parts(self) -> Iterator[Expression]:
        """The matrix."""
        yield self.of

    def box(self, box: Box) -> np.ndarray:
        """The stream of the box's rows."""
        rows = box[0].start, box[0].stop
        match self.stream:
            case Stream.LEVELS:
                values = self._in_blocks(self.of.levels(*rows))
            case Stream.SCALES:
                values = self._repeated(self.of.scales(*rows))
            case Stream.ZERO_POINTS:
                values = self._repeated(self.of.zero_points(*rows))
            case Stream.MIDDLES:
                values = self._repeated(self.of.middles(*rows))
            case _:
                cause = f"internal error: {self.of.origin} has no {self.stream}"
                raise HvlcError("plan.format", cause, "please report it")
        return self.format.encode(self.stream, values)[(slice(None), *box[1:])]

    @property
    def _blocks(self) -> int:
        return -(-self.of.shape[1] // self.format.block_size)

    def _in_blocks(self, levels: np.ndarray) -> np.ndarray:
        """Levels in blocks of the wanted size, without blocks that are padding alone."""
        return np.ascontiguousarray(levels.reshape(len(levels), -1, self.format.block_size)[:, : self._blocks])

    def _repeated(self, values: np.ndarray) -> np.ndarray:
        """A value for each block of the wanted size."""
        whole = self.of.format.block_size if self.of.format else self.format.block_size
        return np.repeat(values, whole // self.format.block_size, 1)[:, : self._blocks]
