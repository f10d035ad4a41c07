"""Quantize weights as the plan says, in QDQ form, which compilers of NPUs read as an integer product.

A matrix keeps the order `[out, in]`, two's complement and low nibble first, and is transposed after its
DequantizeLinear: so it is still solved and written some rows at a time, and a tied table reads the very bytes of the
head (com.microsoft.GatherBlockQuantized takes int4). A block as long as a row is one scale for an output channel. LPBQ
scales have a DequantizeLinear of their own, of a block's whole number by its row's factor. Qualcomm's compiler wants
the DequantizeLinear right before the product (onnxruntime-qnn 2.7: "does not support a standalone DQ op with
per-channel quantization"): for such targets the matrix is stored `[in, out]`, scales as float32.

onnxruntime 1.31's CPU provider dequantizes the matrix in every run: the form is for devices that compile it. Where a
DequantizeLinear of 8 bits and one scale a channel feeds a product with float output, its optimizer makes a MatMulNBits
with int8 activations of the two, unless the session option `session.qdq_matmulnbits_accuracy_level` is "1".
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError, raise_all
from hvlc.graphs.bundle import Component
from hvlc.graphs.editing import register
from hvlc.graphs.plan import Assignment
from hvlc.passes.base import Outcome
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.targets import Grain
from hvlc.weights.formats import Levels, Stream, WeightFormat
from hvlc.weights.formats.packing import pack, sign_mask, unpack
from hvlc.weights.lazy import Box, Constant, Elementwise, Expression, LazyTensor
from hvlc.weights.quantized import Quantization, SolvedWeight

_ROWS = 256  # of a matrix that are read at a time, and perhaps solved
_PACKED = 1 << 20  # bytes that are packed at a time
_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
#: Levels of 4 bits with one scale a channel, or LPBQ's, say that their zero point is 0, which is what leaving it out
#: means: without it Qualcomm's compiler makes a product of other numbers, or refuses LPBQ (docs/snapdragon.md).
_INT4 = 4


@dataclass(frozen=True)
class QuantizeWeightsQDQ(QuantizeWeights):
    """Put a DequantizeLinear after every planned matrix; look-ups become GatherBlockQuantized of the same levels.

    Attributes:
        direct: whether a matrix is stored `[in, out]`, so that nothing stands between it and its product.
    """

    direct: bool = False
    reads: ClassVar[frozenset[Stream]] = frozenset({Stream.LEVELS, Stream.SCALES, Stream.FACTORS})

    def transform(self, component: Component) -> Outcome:
        """Perform the assignments of this component.

        Raises:
            UserError: a format has zero points, or rows that are not a whole number of blocks; all of them at once.
        """
        assignments = self.plan.for_component(component.name).values()
        obstacles = {a.weight: a.format.static_obstacle(a.in_features) for a in assignments if a.format}
        raise_all(
            [
                UserError("plan.static", f"{weight}: {cause}", "choose another format")
                for weight, cause in obstacles.items()
                if cause
            ]
        )
        return super().transform(component)

    def _initializers(
        self, graph: ir.Graph, weight: str, quantization: Quantization | SolvedWeight, *, rows: bool
    ) -> dict[Stream, ir.Value]:
        """Levels int4 or int8 `[out, in]`; scales `[out, blocks]`, or `[out]` for a product with one block a row;
        int4 zero points of the scales' shape where a compiler needs them; factors `[out]` where scales have any.
        """
        signed = _signed(quantization)
        made = _across(graph, weight, signed) if self.direct and not rows else _along(graph, weight, signed, rows)
        if Stream.FACTORS in signed.streams:
            factors = signed.stream(Stream.FACTORS)
            stored = LazyTensor(f"{weight}.factors", _Turned(factors) if self.direct else factors)
            made[Stream.FACTORS] = register(graph, stored)
        return made

    def _product(
        self, node: ir.Node, stored: Mapping[Stream, ir.Value], assignment: Assignment, format: WeightFormat
    ) -> ir.Node:
        readers = [n for n in stored[Stream.LEVELS].consumers() if n.op_type == "DequantizeLinear"]
        if not readers:
            readers = [_dequantize(node, stored, assignment, format, self.direct)]
        matrix = readers[0].outputs[0]
        if not self.direct:
            matrix = matrix.consumers()[0].outputs[0]
        return ir.node("MatMul", [node.inputs[0], matrix], name=str(node.name))


def _across(graph: ir.Graph, weight: str, quantization: Quantization | SolvedWeight) -> dict[Stream, ir.Value]:
    """Levels `[in, out]`, scales float32 (whole numbers as they are) `[blocks, out]`, and zero points of 4 bits."""
    format, scales = quantization.format, quantization.stream(Stream.SCALES)
    (out, blocks), bits = scales.shape, format.bits
    matrix = (blocks * format.block_size, out)
    levels = _LevelsTurned(quantization.stream(Stream.LEVELS), bits)
    turned = _Turned(scales.cast(np.float32) if scales.dtype.kind == "f" else scales)
    grain = Grain(format.grain(matrix[0]))
    dims = (out,) if grain is Grain.CHANNEL else (blocks, out)
    made = {
        Stream.LEVELS: register(graph, LazyTensor(f"{weight}.int{bits}", levels, matrix, _TYPES[bits])),
        Stream.SCALES: register(graph, LazyTensor(f"{weight}.scales", turned, dims)),
    }
    if bits == _INT4 and grain is not Grain.BLOCK:
        zeros = Constant(pack(np.zeros(blocks * out, np.uint8), bits))
        made[Stream.ZERO_POINTS] = register(graph, LazyTensor(f"{weight}.zero_points", zeros, dims, _TYPES[bits]))
    return made


def _along(
    graph: ir.Graph, weight: str, quantization: Quantization | SolvedWeight, rows: bool
) -> dict[Stream, ir.Value]:
    """Levels `[out, in]` and scales `[out, blocks]`, or `[out]` for a product with one float scale a row."""
    format, scales = quantization.format, quantization.stream(Stream.SCALES)
    (out, blocks), suffix = scales.shape, "_rows" if rows else ""
    for_rows = Grain(format.grain(blocks * format.block_size)) is Grain.CHANNEL and not rows
    levels = LazyTensor(
        f"{weight}.int{format.bits}{suffix}",
        quantization.stream(Stream.LEVELS),
        (out, blocks * format.block_size),
        _TYPES[format.bits],
    )
    stored = LazyTensor(f"{weight}.scales{suffix}", scales, (out,) if for_rows else (out, blocks))
    return {Stream.LEVELS: register(graph, levels), Stream.SCALES: register(graph, stored)}


def _multiplied(node: ir.Node, wholes: ir.Value, factors: ir.Value, direct: bool) -> ir.Value:
    """Float scales before the product that reads their matrix: DequantizeLinear of whole numbers by rows' factors."""
    multiply = ir.node(
        "DequantizeLinear", [wholes, factors], {"axis": 1 if direct else 0}, name=f"{wholes.name}.multiply"
    )
    multiply.outputs[0].name = f"{wholes.name}.multiplied"
    if isinstance(node.graph, ir.Graph):
        node.graph.insert_before(node, multiply)
    return multiply.outputs[0]


def _dequantize(
    node: ir.Node, stored: Mapping[Stream, ir.Value], assignment: Assignment, format: WeightFormat, direct: bool
) -> ir.Node:
    """DequantizeLinear of a matrix before the product that reads it, and Transpose unless it is `direct`."""
    scales = stored[Stream.SCALES]
    if Stream.FACTORS in stored:
        scales = _multiplied(node, scales, stored[Stream.FACTORS], direct)
    constants = [stored[Stream.LEVELS], scales, *(stored[s] for s in stored if s is Stream.ZERO_POINTS)]
    whole_rows = Grain(format.grain(assignment.in_features)) is Grain.CHANNEL
    output, blocked = (1, 0) if direct else (0, 1)  # axes
    settings = {"axis": output} if whole_rows else {"axis": blocked, "block_size": format.block_size}
    name = assignment.weight
    dequantize = ir.node("DequantizeLinear", constants, settings, name=f"{name}.dequantize")
    dequantize.outputs[0].name = f"{name}.dequantized"
    if direct:
        if isinstance(node.graph, ir.Graph):
            node.graph.insert_before(node, dequantize)
        return dequantize
    transpose = ir.node("Transpose", dequantize.outputs, {"perm": [1, 0]}, name=f"{name}.transpose")
    transpose.outputs[0].name = f"{name}.transposed"
    if isinstance(node.graph, ir.Graph):
        node.graph.insert_before(node, [dequantize, transpose])
    return dequantize


@dataclass(frozen=True)
class _TwosComplement:
    """A solver's function whose levels are two's complement instead of offset; equal where what it wraps is equal."""

    solve: Callable[[np.ndarray, WeightFormat], Levels]

    def __call__(self, weight: np.ndarray, format: WeightFormat) -> Levels:
        levels = self.solve(weight, format)
        return replace(levels, levels=levels.levels ^ np.uint8(format.middle))


@dataclass(frozen=True)
class _SignFlipped(Elementwise):
    """Packed offset levels as two's complement: `level - 2 ** (bits - 1)` inverts the upper bit."""

    mask: np.uint8

    def box(self, box: Box) -> np.ndarray:
        """The source's box with the sign of every level inverted."""
        return self.of.box(box) ^ self.mask


@dataclass(frozen=True)
class _Turned(Expression):
    """Stored values of a matrix's rows, `[out]` or `[out, n]`, with the rows along the last axis.

    Any of it takes all rows. They are read some at a time, because reading may be solving.
    """

    of: Expression

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the source, reversed."""
        return self.of.shape[::-1]

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type of the source."""
        return self.of.dtype

    @property
    def whole(self) -> bool:
        """Always."""
        return True

    def parts(self) -> Iterator[Expression]:
        """The source."""
        yield self.of

    def box(self, box: Box) -> np.ndarray:
        """The box of the whole result."""
        filled = np.empty(self.shape, self.dtype)
        for start, rows in _row_by_row(self.of):
            filled[..., start : start + len(rows)] = rows.T
        return filled[box]


@dataclass(frozen=True)
class _LevelsTurned(_Turned):
    """Packed levels `[out, blocks, bytes]` as the bytes of levels `[in, out]`."""

    bits: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the bytes; half of the last one may be padding."""
        return (-(-self._count * self.bits // 8),)

    @property
    def _count(self) -> int:
        return math.prod(self.of.shape) * 8 // self.bits

    def box(self, box: Box) -> np.ndarray:
        """The box of the whole result: unpacked in one piece, packed in many."""
        (size,), per_byte = self.shape, 8 // self.bits
        levels, packed = np.zeros(size * per_byte, np.uint8), np.empty(size, np.uint8)
        matrix = levels[: self._count].reshape(-1, self.of.shape[0])
        for start, rows in _row_by_row(self.of):
            flat = rows.reshape(len(rows), -1)
            matrix[:, start : start + len(rows)] = unpack(flat, self.bits, len(matrix)).T
        for start in range(0, size, _PACKED):
            packed[start : start + _PACKED] = pack(levels[start * per_byte : (start + _PACKED) * per_byte], self.bits)
        return packed[box]


def _row_by_row(of: Expression) -> Iterator[tuple[int, np.ndarray]]:
    """Some rows after another, each with the number of its first."""
    for start in range(0, of.shape[0], _ROWS):
        yield start, of.rows(start, min(start + _ROWS, of.shape[0]))


def _signed(quantization: Quantization | SolvedWeight) -> Quantization | SolvedWeight:
    """The same matrix with levels in two's complement."""
    if isinstance(quantization, Quantization):
        solver = quantization.solver
        return replace(quantization, solver=replace(solver, solve=_TwosComplement(solver.solve)))
    levels, *others = quantization.stored
    flipped = _SignFlipped(levels, sign_mask(quantization.format.bits))
    return replace(quantization, stored=(flipped, *others))
