"""Lazy weights: expressions over stored tensors, evaluated box by box when they are written.

An expression knows its shape and dtype and computes any box (a slice of every axis) of its value from boxes of its
operands. Results are not cached, so a build's memory is that of the boxes in flight, whatever the size of the model.
Expressions compare by value: equal expressions have equal bytes and are stored once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from hvlc.weights.checkpoint import StoredTensor

#: One slice an axis, with plain starts and stops.
Box = tuple[slice, ...]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOAT32 = np.dtype(np.float32)


class Expression(ABC):
    """A tensor that is computed when it is read.

    Attributes:
        shape: dimensions.
        dtype: numpy dtype of the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @abstractmethod
    def box(self, box: Box) -> np.ndarray:
        """The values inside `box`, which lies within the shape; may be a view of mapped memory."""

    def parts(self) -> Iterator["Expression"]:
        """Operands of this expression."""
        return iter(())

    def read(self) -> np.ndarray:
        """All values."""
        return self.box(full_box(self.shape))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Values `start` to `stop` along the first axis; all of a scalar."""
        if not self.shape:
            return self.read()
        return self.box((slice(start, stop), *full_box(self.shape[1:])))

    def stored(self) -> Iterator[StoredTensor]:
        """Every stored tensor that it reads, once for each place."""
        for part in self.parts():
            yield from part.stored()

    @property
    def whole(self) -> bool:
        """Whether any box costs as much as all values, so that it had better be read once."""
        return any(part.whole for part in self.parts())

    def cast(self, dtype: Any) -> "Expression":
        """The same values in another dtype, rounded as numpy's `astype` rounds."""
        wanted = np.dtype(dtype)
        return self if wanted == self.dtype else Cast(self, wanted)

    def transpose(self, *axes: int) -> "Expression":
        """Axes permuted; reversed when none are given."""
        order = axes or tuple(reversed(range(len(self.shape))))
        if sorted(order) != list(range(len(self.shape))):
            raise ValueError(f"{order} is not a permutation of the axes of {self.shape}")
        if order == tuple(range(len(order))):
            return self
        if isinstance(self, Transpose):
            return self.of.transpose(*(self.axes[axis] for axis in order))
        return Transpose(self, order)

    def narrow(self, axis: int, start: int, stop: int) -> "Expression":
        """Positions `start` to `stop` along one axis."""
        if not 0 <= axis < len(self.shape) or not 0 <= start <= stop <= self.shape[axis]:
            raise ValueError(f"{start}:{stop} lies outside axis {axis} of {self.shape}")
        if (start, stop) == (0, self.shape[axis]):
            return self
        return Narrow(self, axis, start, stop)

    def scale(self, factors: "Expression", axis: int) -> "Expression":
        """Multiplied along one axis by a factor for each position: `[shape[axis]]`, of the same dtype."""
        if not 0 <= axis < len(self.shape) or factors.shape != (self.shape[axis],) or factors.dtype != self.dtype:
            raise ValueError(f"{factors.shape} {factors.dtype} do not scale axis {axis} of {self.shape} {self.dtype}")
        return Scaled(self, factors, axis)

    def reshape(self, *shape: int) -> "Expression":
        """The same values in row-major order under another shape."""
        if math.prod(shape) != math.prod(self.shape) or min(shape, default=0) < 0:
            raise ValueError(f"{self.shape} does not reshape to {shape}")
        source = self.of if isinstance(self, Reshape) else self
        return source if shape == source.shape else Reshape(source, shape)


def full_box(shape: Sequence[int]) -> Box:
    """The box that holds everything."""
    return tuple(slice(0, size) for size in shape)


def concat(parts: Sequence[Expression], axis: int = 0) -> Expression:
    """Expressions of one dtype joined along an axis."""
    kinds = {(p.dtype, len(p.shape), p.shape[:axis], p.shape[axis + 1 :]) for p in parts}
    if len(kinds) != 1 or not 0 <= axis < len(parts[0].shape):
        raise ValueError(f"cannot join {[(p.shape, str(p.dtype)) for p in parts]} along axis {axis}")
    return parts[0] if len(parts) == 1 else Concat(tuple(parts), axis)


@dataclass(frozen=True)
class Stored(Expression):
    """A tensor of the checkpoint."""

    tensor: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Stored shape."""
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Stored type."""
        return self.tensor.dtype

    def box(self, box: Box) -> np.ndarray:
        """A view of the mapped file."""
        return self.tensor.read()[box]

    def stored(self) -> Iterator[StoredTensor]:
        """The tensor itself."""
        yield self.tensor


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """Values in memory, for small tables; equal to itself only."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the values."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type of the values."""
        return self.values.dtype

    def box(self, box: Box) -> np.ndarray:
        """A view."""
        return self.values[box]


@dataclass(frozen=True)
class Cast(Expression):
    """Another dtype."""

    of: Expression
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the source."""
        return self.of.shape

    def parts(self) -> Iterator[Expression]:
        """The source."""
        yield self.of

    def box(self, box: Box) -> np.ndarray:
        """Converted values, in memory of their own."""
        values = self.of.box(box)
        if values.dtype == BFLOAT16 and self.dtype == _FLOAT32:
            # A bfloat16 is the upper half of a float32; unlike its astype, the shift runs without the GIL.
            return np.left_shift(values.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
        return values.astype(self.dtype)


@dataclass(frozen=True)
class _View(Expression):
    """The values of one other expression, in other places."""

    of: Expression

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type of the source."""
        return self.of.dtype

    def parts(self) -> Iterator[Expression]:
        """The source."""
        yield self.of


@dataclass(frozen=True)
class Transpose(_View):
    """Axes permuted: axis `i` is the source's axis `axes[i]`."""

    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The source's, permuted."""
        return tuple(self.of.shape[axis] for axis in self.axes)

    def box(self, box: Box) -> np.ndarray:
        """A permuted view of the source's box."""
        source = [slice(0, 0)] * len(box)
        for position, axis in enumerate(self.axes):
            source[axis] = box[position]
        return self.of.box(tuple(source)).transpose(self.axes)


@dataclass(frozen=True)
class Narrow(_View):
    """A range of one axis."""

    axis: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The source's, with one axis shorter."""
        return (*self.of.shape[: self.axis], self.stop - self.start, *self.of.shape[self.axis + 1 :])

    def box(self, box: Box) -> np.ndarray:
        """The source's box, moved."""
        return self.of.box(_moved(box, self.axis, self.start))


@dataclass(frozen=True)
class Reshape(_View):
    """The same values in row-major order under another shape."""

    shape: tuple[int, ...]

    def box(self, box: Box) -> np.ndarray:
        """Values from the source's rows that cover the box's rows."""
        if not self.shape or not self.of.shape or 0 in self.shape:
            return self.of.read().reshape(self.shape)[box]
        row, source_row = math.prod(self.shape[1:]), math.prod(self.of.shape[1:])
        start, stop = box[0].start * row, box[0].stop * row
        first, last = start // source_row, -(-stop // source_row)
        values = self.of.rows(first, last).reshape(-1)[start - first * source_row : stop - first * source_row]
        return values.reshape(-1, *self.shape[1:])[(slice(None), *box[1:])]


@dataclass(frozen=True)
class Elementwise(_View):
    """Other values in the same places: a base of expressions that change each element by itself."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the source."""
        return self.of.shape


@dataclass(frozen=True)
class Scaled(Elementwise):
    """Another expression multiplied along an axis by a factor for each position, rounded once."""

    factors: Expression
    axis: int

    def parts(self) -> Iterator[Expression]:
        """The source and the factors."""
        yield self.of
        yield self.factors

    def box(self, box: Box) -> np.ndarray:
        """The source's box times the factors of its range."""
        factors = self.factors.box((box[self.axis],))
        return self.of.box(box) * factors.reshape(-1, *[1] * (len(box) - self.axis - 1))


@dataclass(frozen=True)
class Concat(Expression):
    """Expressions one after another along an axis."""

    of: tuple[Expression, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The joined dimensions."""
        first = self.of[0].shape
        return (*first[: self.axis], sum(p.shape[self.axis] for p in self.of), *first[self.axis + 1 :])

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type of every part."""
        return self.of[0].dtype

    def parts(self) -> Iterator[Expression]:
        """The joined expressions."""
        return iter(self.of)

    def box(self, box: Box) -> np.ndarray:
        """Boxes of the parts that the box touches, joined."""
        wanted, found, offset = box[self.axis], [], 0
        for part in self.of:
            size = part.shape[self.axis]
            start, stop = max(wanted.start - offset, 0), min(wanted.stop - offset, size)
            if start < stop:
                found.append(part.box((*box[: self.axis], slice(start, stop), *box[self.axis + 1 :])))
            offset += size
        if not found:  # an empty box
            empty = slice(0, 0)
            return self.of[0].box((*box[: self.axis], empty, *box[self.axis + 1 :]))
        return found[0] if len(found) == 1 else np.concatenate(found, self.axis)


@dataclass(frozen=True)
class Computed(Expression):
    """A function of whole tensors, for small weights that a graph wants in another form (a folded batch norm).

    Attributes:
        function: gets the values of `of` in order.
        of: what it needs.
        shape: dimensions of the result.
        dtype: of the result.
    """

    function: Callable[..., np.ndarray]
    of: tuple[Expression, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def whole(self) -> bool:
        """Always."""
        return True

    def parts(self) -> Iterator[Expression]:
        """Operands of the function."""
        return iter(self.of)

    def box(self, box: Box) -> np.ndarray:
        """The box of the whole result."""
        return self.function(*(part.read() for part in self.of)).astype(self.dtype, copy=False)[box]


def _moved(box: Box, axis: int, offset: int) -> Box:
    along = slice(box[axis].start + offset, box[axis].stop + offset)
    return (*box[:axis], along, *box[axis + 1 :])


class LazyTensor(ir.LazyTensor):
    """An initializer whose values are an expression, computed anew on every access.

    Attributes:
        expression: its values, of any shape with as many elements (a view of the same bytes); or the bytes uint8 of
            values of another type, two to a byte where they have 4 bits.
    """

    __slots__ = ("expression",)

    def __init__(
        self,
        name: str,
        expression: Expression,
        shape: tuple[int, ...] | None = None,
        of_bytes: ir.DataType | None = None,
    ) -> None:
        self.expression = expression
        dims = expression.shape if shape is None else shape
        dtype = of_bytes or ir.DataType.from_numpy(expression.dtype)

        def evaluate() -> ir.TensorProtocol:
            values = np.ascontiguousarray(expression.read())
            if dtype.bitwidth == 4:
                return ir.PackedTensor(values.reshape(-1), dtype, shape=ir.Shape(dims), name=name)
            values = values.reshape(dims) if of_bytes is None else values.view(dtype.numpy()).reshape(dims)
            return ir.Tensor(values, dtype=dtype, shape=ir.Shape(dims), name=name)

        super().__init__(evaluate, dtype, ir.Shape(dims), cache=False, name=name)


def expression_of(tensor: ir.TensorProtocol) -> Expression:
    """The values of any initializer as an expression."""
    return tensor.expression if isinstance(tensor, LazyTensor) else Constant(tensor.numpy())
