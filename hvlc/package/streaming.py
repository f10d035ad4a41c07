"""Write lazy weights: worker threads evaluate some rows at a time, one writer writes them in file order.

A data file's layout is settled before anything is evaluated, because every shape is known. Writing in file order
makes the bytes, and the digest that is taken on the way, independent of the number of threads.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from hvlc.errors import HvlcError, UserError
from hvlc.weights.integer_matrix import IntegerMatrix, IntegerPart, Part
from hvlc.weights.lazy import BFLOAT16, Concat, Expression, Reshape
from hvlc.weights.quantized import Quantization, StoredPart

#: Elements that one job evaluates: 4 MB of float32. Fewer make the threads wait for each other more often.
CHUNK = 1 << 20
_PAGE = 4096
_LARGE, _ALIGNED = 1 << 20, 64  # large tensors start a page, so that they can be mapped
AHEAD = 4  # results that a thread may be ahead of the writer, so that neither waits for the other
_FLUSHED = 64 << 20  # bytes after which the disk is set to work

#: Called with the bytes written so far.
Written = Callable[[int], None]


class Unit(Protocol):
    """Tensors that are evaluated together and lie one after another."""

    def sections(self) -> tuple[Hashable, ...]:
        """Identity of each section's bytes."""

    def sizes(self) -> tuple[int, ...]:
        """Bytes of each section."""

    def jobs(self) -> list[Callable[[], Sequence[np.ndarray]]]:
        """Functions whose results, joined in order, are the sections."""

    def release(self) -> None:
        """Give back what was mapped."""


@dataclass(frozen=True)
class PlainUnit:
    """One expression, written as it is."""

    expression: Expression

    def sections(self) -> tuple[Hashable, ...]:
        """The expression itself: equal expressions have equal bytes."""
        return (self.expression,)

    def sizes(self) -> tuple[int, ...]:
        """Bytes of the values."""
        return (prod(self.expression.shape) * self.expression.dtype.itemsize,)

    def jobs(self) -> list[Callable[[], Sequence[np.ndarray]]]:
        """Some rows each; a function of whole tensors is called once."""
        shape = self.expression.shape
        if not shape or self.expression.whole:
            return [lambda: [check_finite(self.expression.read(), self.expression)]]
        return [partial(self._rows, start, stop) for start, stop in _ranges(shape[0], prod(shape[1:]))]

    def _rows(self, start: int, stop: int) -> Sequence[np.ndarray]:
        return [check_finite(self.expression.rows(start, stop), self.expression)]

    def release(self) -> None:
        """Give back the pages of its stored tensors."""
        for tensor in self.expression.stored():
            tensor.release()


@dataclass(frozen=True)
class QuantizedUnit:
    """Matrices quantized to one format, stacked: all levels, then all scales, then all zero points."""

    matrices: tuple[Quantization, ...]

    def sections(self) -> tuple[Hashable, ...]:
        """The matrices and the stream."""
        return tuple((self.matrices, stream) for stream in self.matrices[0].streams)

    def sizes(self) -> tuple[int, ...]:
        """Bytes of each stream."""
        parts = [[matrix.stream(stream) for matrix in self.matrices] for stream in self.matrices[0].streams]
        return tuple(sum(prod(part.shape) * part.dtype.itemsize for part in some) for some in parts)

    def jobs(self) -> list[Callable[[], Sequence[np.ndarray]]]:
        """Some rows of a matrix each."""
        return [
            partial(_solve, matrix, start, stop)
            for matrix in self.matrices
            for start, stop in _ranges(*matrix.weight.shape)
        ]

    def release(self) -> None:
        """Give back the pages of the weights."""
        for matrix in self.matrices:
            for tensor in matrix.weight.stored():
                tensor.release()


@dataclass(frozen=True)
class IntegerUnit:
    """A matrix of products of integers: its levels, scales and sums, which take one solution."""

    matrix: IntegerMatrix

    def sections(self) -> tuple[Hashable, ...]:
        """The matrix and the part."""
        return tuple((self.matrix, part) for part in Part)

    def sizes(self) -> tuple[int, ...]:
        """Bytes of each part."""
        return tuple(prod(self.matrix.shape(part)) * self.matrix.dtype(part).itemsize for part in Part)

    def jobs(self) -> list[Callable[[], Sequence[np.ndarray]]]:
        """The whole matrix: its columns are stored first."""
        return [lambda: [check_finite(part, self.matrix.of.weight) for part in self.matrix.solve().values()]]

    def release(self) -> None:
        """Give back the pages of the weight."""
        for tensor in self.matrix.of.weight.stored():
            tensor.release()


def _solve(matrix: Quantization, start: int, stop: int) -> Sequence[np.ndarray]:
    rows = check_finite(matrix.weight.rows(start, stop), matrix.weight)
    return list(matrix.solve(rows).values())


def _ranges(rows: int, row_size: int) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK // max(1, row_size))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def check_finite(values: np.ndarray, source: Expression) -> np.ndarray:
    """The values, held against NaN and infinity.

    Raises:
        UserError: a value is neither.
    """
    if (values.dtype.kind == "f" or values.dtype == BFLOAT16) and not np.isfinite(values).all():
        names = ", ".join(dict.fromkeys(tensor.name for tensor in source.stored())) or "a constant"
        raise UserError("checkpoint.not_finite", f"{names} holds NaN or infinity", "repair or retrain the checkpoint")
    return values


def unit_of(expression: Expression) -> tuple[Unit, Hashable]:
    """The unit that an initializer's bytes belong to, and the key of its section there."""
    expression = _unshaped(expression)
    if isinstance(expression, IntegerPart):
        return IntegerUnit(expression.of), (expression.of, expression.part)
    pieces = expression.of if isinstance(expression, Concat) and expression.axis == 0 else (expression,)
    parts = [part for part in map(_unshaped, pieces) if isinstance(part, StoredPart)]
    if len(parts) == len(pieces) and len({(part.stream, part.of.format) for part in parts}) == 1:
        unit = QuantizedUnit(tuple(part.of for part in parts))
        return unit, (unit.matrices, parts[0].stream)
    return PlainUnit(expression), expression


def _unshaped(expression: Expression) -> Expression:
    """Another shape has the same bytes."""
    return expression.of if isinstance(expression, Reshape) else expression


@dataclass
class Layout:
    """Layout of one data file: offset and length of every initializer."""

    units: dict[tuple[Hashable, ...], Unit] = field(default_factory=dict)
    places: dict[Hashable, tuple[int, int]] = field(default_factory=dict)
    total: int = 0

    def add(self, expression: Expression) -> tuple[int, int]:
        """Offset and length in bytes of an initializer's values; equal values get one place."""
        unit, key = unit_of(expression)
        if key not in self.places:
            self.units[unit.sections()] = unit
            for section, size in zip(unit.sections(), unit.sizes(), strict=True):
                offset = self.total + -self.total % (_PAGE if size >= _LARGE else _ALIGNED)
                self.places[section] = (offset, size)
                self.total = offset + size
        return self.places[key]


class _Output:
    """A file that is written once from start to end, hashed on the way, and kept moving to the disk."""

    def __init__(self, path: Path, flusher: Executor) -> None:
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._flusher = flusher
        self._flush: Future[None] | None = None
        self._unflushed = 0
        self.position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._flush:
                self._flush.result()
        finally:
            self._file.close()

    def write(self, data: bytes | np.ndarray) -> None:
        view = memoryview(data) if isinstance(data, bytes) else _bytes(data).data
        self._digest.update(view)
        while view:
            view = view[self._file.write(view) :]
        size = len(data) if isinstance(data, bytes) else data.nbytes
        self.position += size
        self._unflushed += size
        if self._unflushed >= _FLUSHED and (self._flush is None or self._flush.done()):
            if self._flush:
                self._flush.result()  # the system tells of a failed write-back once
            self._flush = self._flusher.submit(os.fsync, self._file.fileno())
            self._unflushed = 0

    def begin(self, position: int) -> None:
        """Fill up to the start of a section."""
        self.write(bytes(position - self.position))

    def end(self, position: int) -> None:
        """Hold the end of a section against the layout: graphs already name its bytes."""
        if self.position != position:
            raise HvlcError(
                "package.layout", f"a weight ends at byte {self.position}, its place at byte {position}", "report it"
            )

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _bytes(values: np.ndarray) -> np.ndarray:
    """Row-major little-endian bytes of an array, without a copy where it has them."""
    values = np.ascontiguousarray(values)
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    return values.reshape(-1).view(np.uint8)


def write_data(path: Path, layout: Layout, threads: int, written: Written) -> str:
    """Evaluate and write everything in a layout.

    Args:
        path: the file to write.
        layout: what lies where.
        threads: how many evaluate.
        written: told of progress.

    Returns:
        Hex SHA-256 of the file.

    Raises:
        UserError: a weight is not finite.
    """
    units = list(layout.units.values())
    jobs = [unit.jobs() for unit in units]
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as flusher, _Output(path, flusher) as output:
        try:
            results = _in_order(pool, (job for some in jobs for job in some), AHEAD * threads)
            for unit, some in zip(units, jobs, strict=True):
                _write_unit(output, unit, layout, (next(results) for _ in some), written)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return output.sha256


def _in_order(
    pool: Executor, jobs: Iterator[Callable[[], Sequence[np.ndarray]]], ahead: int
) -> Iterator[Sequence[np.ndarray]]:
    """Results in the order of the jobs, no more than `ahead` of them waiting."""
    pending: deque[Future[Sequence[np.ndarray]]] = deque()
    for job in jobs:
        pending.append(pool.submit(job))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _write_unit(
    output: _Output, unit: Unit, layout: Layout, results: Iterator[Sequence[np.ndarray]], written: Written
) -> None:
    """The first section goes down as it comes; the later ones (scales, small) wait for its end."""
    first, *later = [layout.places[key] for key in unit.sections()]
    waiting: list[list[np.ndarray]] = [[] for _ in later]
    output.begin(first[0])
    for head, *rest in results:
        output.write(head)
        for store, values in zip(waiting, rest, strict=True):
            store.append(values)
        written(output.position)
    output.end(sum(first))
    for place, held in zip(later, waiting, strict=True):
        output.begin(place[0])
        for values in held:
            output.write(values)
        output.end(sum(place))
    unit.release()
    written(output.position)
