"""Performs a plan in QDQ form: levels behind DequantizeLinear, which compilers of NPUs read as an integer product.

A matrix keeps the order `[out, in]`, two's complement and low nibble first, and is transposed behind its
DequantizeLinear: so it is still solved and written some rows at a time, and a tied table reads the very bytes of the
head (com.microsoft.GatherBlockQuantized takes int4). A block as long as a row is one scale for an output channel.

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
from hvlc.lazy import Box, Elementwise, LazyTensor
from hvlc.passes.base import Outcome, register
from hvlc.passes.quantize_weights import QuantizeWeights
from hvlc.plan import Assignment, WeightFormat
from hvlc.quantized import Levels, Quantization, Solved, Stream

_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


@dataclass(frozen=True)
class QuantizeWeightsQDQ(QuantizeWeights):
    """Puts every planned matrix behind a DequantizeLinear; look-ups become GatherBlockQuantized of the same levels."""

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
        """Levels int4 or int8 `[out, in]`; scales `[out, blocks]`, or `[out]` for a product with one block a row."""
        bits, signed = quantization.format.bits, _signed(quantization)
        levels, scales = signed.stream(Stream.LEVELS), signed.stream(Stream.SCALES)
        out, blocks = scales.shape
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
        dequantized = readers[0] if readers else _dequantize(node, levels, scales, assignment, format)
        transposed = dequantized.outputs[0].consumers()[0].outputs[0]
        return ir.node("MatMul", [node.inputs[0], transposed], name=str(node.name))


def _dequantize(
    node: ir.Node, levels: ir.Value, scales: ir.Value, assignment: Assignment, format: WeightFormat
) -> ir.Node:
    """DequantizeLinear and Transpose of a matrix, before the product that reads it."""
    whole_rows = format.block_size == assignment.in_features
    settings = {"axis": 0} if whole_rows else {"axis": 1, "block_size": format.block_size}
    name = assignment.weight
    dequantize = ir.node("DequantizeLinear", [levels, scales], settings, name=f"{name}.dequantize")
    dequantize.outputs[0].name = f"{name}.dequantized"
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
