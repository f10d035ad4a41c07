"""Performs a plan in QDQ form: levels behind DequantizeLinear, which compilers of NPUs read as an integer product.

A matrix keeps the order `[out, in]`, two's complement and low nibble first, and is transposed behind its
DequantizeLinear: so it is still solved and written some rows at a time, and a tied table reads the very bytes of the
head (com.microsoft.GatherBlockQuantized takes int4). A block as long as a row is one scale for an output channel.
Qualcomm's compiler wants the DequantizeLinear right before the product (onnxruntime-qnn 2.7: "does not support a
standalone DQ op with per-channel quantization"): for such targets the matrix is stored `[in, out]`, scales as float32.

onnxruntime 1.31's CPU provider dequantizes the matrix in every run: the form is for devices that compile it. Where a
DequantizeLinear of 8 bits and one scale a channel feeds a product with float output, its optimizer makes a MatMulNBits
with int8 activations of the two, unless the session option `session.qdq_matmulnbits_accuracy_level` is "1".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from hvlc.bundle import Component
from hvlc.errors import UserError, raise_all
from hvlc.lazy import Box, Computed, Constant, Elementwise, LazyTensor
from hvlc.passes.base import Outcome, register
from hvlc.passes.quantize_weights import QuantizeWeights
from hvlc.plan import Assignment, WeightFormat
from hvlc.quantized import Levels, Quantization, Solved, Stream, pack_levels

_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
#: Levels of 4 bits with one scale a channel say that their zero point is 0, which is what leaving it out means:
#: without it Qualcomm's compiler makes a product of other numbers (docs/snapdragon.md).
_INT4 = 4


@dataclass(frozen=True)
class QuantizeWeightsQDQ(QuantizeWeights):
    """Puts every planned matrix behind a DequantizeLinear; look-ups become GatherBlockQuantized of the same levels.

    Attributes:
        direct: whether a matrix is stored `[in, out]`, so that nothing stands between it and its product.
    """

    direct: bool = False

    def transform(self, component: Component) -> Outcome:
        """Perform the assignments of this component.

        Raises:
            UserError: a format has zero points, or rows that are no whole number of blocks; all of them at once.
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
        self, graph: ir.Graph, weight: str, quantization: Quantization | Solved, *, rows: bool
    ) -> list[ir.Value]:
        """Levels int4 or int8 `[out, in]`; scales `[out, blocks]`, or `[out]` for a product with one block a row;
        int4 zero points `[out]` where a compiler needs them.
        """
        bits, signed = quantization.format.bits, _signed(quantization)
        levels, scales = signed.stream(Stream.LEVELS), signed.stream(Stream.SCALES)
        out, blocks = scales.shape
        if self.direct and not rows:
            into = blocks * quantization.format.block_size
            across = Computed(_Across(bits), (levels,), (-(-into * out * bits // 8),), np.dtype(np.uint8))
            widened = Computed(_widened_across, (scales,), (blocks, out), np.dtype(np.float32))
            made = [
                register(graph, LazyTensor(f"{weight}.int{bits}", across, (into, out), _TYPES[bits])),
                register(graph, LazyTensor(f"{weight}.scales", widened, (out,) if blocks == 1 else (blocks, out))),
            ]
            if bits == _INT4 and blocks == 1:
                packed = Constant(np.zeros(-(-out // 2), np.uint8))
                made.append(register(graph, LazyTensor(f"{weight}.zero_points", packed, (out,), _TYPES[bits])))
            return made
        suffix = "_rows" if rows else ""
        matrix = (out, blocks * quantization.format.block_size)
        vector = (out,) if blocks == 1 and not rows else scales.shape
        return [
            register(graph, LazyTensor(f"{weight}.int{bits}{suffix}", levels, matrix, _TYPES[bits])),
            register(graph, LazyTensor(f"{weight}.scales{suffix}", scales, vector)),
        ]

    def _product(
        self,
        node: ir.Node,
        levels: ir.Value,
        scales: ir.Value,
        zeros: list[ir.Value],
        assignment: Assignment,
        format: WeightFormat,
    ) -> ir.Node:
        readers = [n for n in levels.consumers() if n.op_type == "DequantizeLinear"]
        dequantized = (
            readers[0] if readers else _dequantize(node, [levels, scales, *zeros], assignment, format, self.direct)
        )
        matrix = dequantized.outputs[0]
        if not self.direct:
            matrix = matrix.consumers()[0].outputs[0]
        return ir.node("MatMul", [node.inputs[0], matrix], name=str(node.name))

    def _float_scales(self, graph: ir.Graph, node: ir.Node, scales: ir.Value, format: WeightFormat) -> ir.Value:
        """Scales of a direct matrix are float32 as they are stored."""
        return scales if scales.dtype == ir.DataType.FLOAT else super()._float_scales(graph, node, scales, format)


def _dequantize(
    node: ir.Node, constants: list[ir.Value], assignment: Assignment, format: WeightFormat, direct: bool
) -> ir.Node:
    """DequantizeLinear of a matrix before the product that reads it, and Transpose unless it is `direct`."""
    whole_rows = format.block_size == assignment.in_features
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
        return replace(levels, levels=levels.levels ^ np.uint8(_sign(format)))


@dataclass(frozen=True)
class _SignFlipped(Elementwise):
    """Packed offset levels as two's complement: `level - 2 ** (bits - 1)` inverts the upper bit."""

    mask: int

    def box(self, box: Box) -> np.ndarray:
        """The source's box with the sign of every level inverted."""
        return self.of.box(box) ^ np.uint8(self.mask)


@dataclass(frozen=True)
class _Across:
    """Packed levels `[out, blocks, bytes]` as the bytes of levels `[in, out]`; equal for equal widths."""

    bits: int

    def __call__(self, packed: np.ndarray) -> np.ndarray:
        rows = packed.reshape(packed.shape[0], -1)
        if self.bits == 8:
            return rows.T.reshape(-1)
        levels = np.stack([rows & 15, rows >> 4], -1).reshape(len(rows), -1).T.reshape(-1)
        return pack_levels(np.pad(levels, (0, levels.size % 2)), self.bits)


def _widened_across(scales: np.ndarray) -> np.ndarray:
    """float32 `[blocks, out]` of scales `[out, blocks]`."""
    return scales.astype(np.float32).T


def _sign(format: WeightFormat) -> int:
    """The upper bit of a level."""
    return 1 << (format.bits - 1)


def _signed(quantization: Quantization | Solved) -> Quantization | Solved:
    """The same matrix with levels in two's complement."""
    if isinstance(quantization, Quantization):
        solver = quantization.solver
        return replace(quantization, solver=replace(solver, solve=_TwosComplement(solver.solve)))
    mask = 0x88 if quantization.format.bits == 4 else 0x80
    levels, *others = quantization.stored
    return replace(quantization, stored=(_SignFlipped(levels, mask), *others))
