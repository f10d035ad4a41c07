"""Quantize weights as the plan says: matrices to com.microsoft.MatMulNBits, tied tables to GatherBlockQuantized.

The pass decides nothing. Levels are lazy: they are computed when they are written.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import drop_unread, register, replace_node
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.quantize.add_middles import add_middles
from hvlc.passes.traits import Trait
from hvlc.weights.formats import Stream, WeightFormat
from hvlc.weights.lazy import Expression, LazyTensor, expression_of
from hvlc.weights.quantized import Quantization, SolvedWeight, Solver

_FLOAT_COMPUTE, _INT8_COMPUTE = 1, 4  # accuracy_level of MatMulNBits
_INPUTS = (Stream.LEVELS, Stream.SCALES, Stream.ZERO_POINTS)  # of the operators, in their order


@dataclass(frozen=True)
class QuantizeWeights(ComponentPass):
    """Replace every planned product and look-up of a component.

    Attributes:
        plan: what to do.
        solvers: name to function.
        solved: levels that are known already, by node name within a component's name; the others are solved when
            they are written.
        roles: components whose assignments it performs.
        reads: streams that its nodes read; a format that stores another one is an error.
    """

    plan: Plan
    solvers: Mapping[str, Solver]
    solved: Mapping[tuple[str, str], SolvedWeight] = field(default_factory=dict)
    roles: frozenset[Role] = frozenset({Role.DECODER, Role.VISION_ENCODER, Role.EMBEDDING})
    requires = frozenset({Trait.WHOLE_DECODER, Trait.SEPARATE_ENCODERS})
    promises = frozenset({Trait.QUANTIZED_WEIGHTS})
    ends = frozenset({Trait.FLOAT_WEIGHTS})
    reads: ClassVar[frozenset[Stream]] = frozenset({*_INPUTS, Stream.MIDDLES})

    def transform(self, component: Component) -> Outcome:
        """Perform the assignments of this component."""
        assignments = self.plan.for_component(component.name)
        nodes = {str(node.name): node for node in component.graph}
        changed, skipped = 0, []
        for name, assignment in assignments.items():
            if assignment.action is Action.KEEP:
                skipped.append(Skip(assignment.weight, assignment.reason))
                continue
            if assignment.format is not None and assignment.format.integer_product:
                skipped.append(Skip(assignment.weight, "is planned as a product of integers"))
                continue
            node = nodes.get(name)
            if node is None or node.domain or _weight(node).const_value is None:
                continue  # done before
            self._replace(component.graph, node, assignment)
            changed += 1
        return Outcome(changed, tuple(skipped))

    def _replace(self, graph: ir.Graph, node: ir.Node, assignment: Assignment) -> None:
        lookup = node.op_type == "Gather"
        weight = _weight(node)
        format = assignment.format
        if format is None or weight.const_value is None:
            raise HvlcError("plan.incomplete", f"{assignment.weight} has no format or no value", "report it")
        known = self.solved.get((assignment.component, assignment.node))
        quantization = known or self._unsolved(expression_of(weight.const_value), assignment, format, lookup)
        self._check_read(quantization.format)
        stored = self._initializers(graph, assignment.weight, quantization, rows=lookup)
        stored[Stream.SCALES] = self._float_scales(graph, node, stored[Stream.SCALES])
        new = _lookup(node, stored, format) if lookup else self._product(node, stored, assignment, format)
        replace_node(node, new)
        if Stream.MIDDLES in stored:
            add_middles(graph, new, stored[Stream.MIDDLES], format.block_size)
        drop_unread(graph, weight)

    def _check_read(self, format: WeightFormat) -> None:
        """Hold the streams of a format against those that nodes read: one that is left out changes the numbers.

        Raises:
            HvlcError: it stores another (a bug).
        """
        unread = [stream for stream in format.streams if stream not in self.reads]
        if unread:
            cause = f"internal error: {self.name} reads no {unread[0]}, which {format} stores"
            raise HvlcError("pass.stream", cause, "please report it")

    def _initializers(
        self, graph: ir.Graph, weight: str, quantization: Quantization | SolvedWeight, *, rows: bool
    ) -> dict[Stream, ir.Value]:
        """Initializers of the streams that the format stores; `rows` is the look-up's 2-D view of the bytes."""
        values = {}
        for stream in quantization.streams:
            part = quantization.stream(stream)
            count, size = part.shape[0], math.prod(part.shape[1:])
            shape = (count, size) if rows else (count * size,) if stream is Stream.SCALES else part.shape
            name = f"{weight}.{quantization.format.stored_name(stream)}{'_rows' if rows else ''}"
            values[stream] = register(graph, LazyTensor(name, part, shape))
        return values

    def _unsolved(self, values: Expression, assignment: Assignment, format: WeightFormat, lookup: bool) -> Quantization:
        return Quantization(values if lookup else values.transpose(), format, self.solvers[str(assignment.solver)])

    def _float_scales(self, graph: ir.Graph, node: ir.Node, scales: ir.Value) -> ir.Value:
        """Scales stored as float16 are widened once, at load: onnxruntime folds a Cast of a constant."""
        if scales.dtype != ir.DataType.FLOAT16:
            return scales
        for reader in scales.consumers():  # another product reads the same matrix
            return reader.outputs[0]
        cast = ir.node("Cast", [scales], {"to": int(ir.DataType.FLOAT)}, name=f"{scales.name}.widened")
        cast.outputs[0].name = f"{scales.name}.float32"
        graph.insert_before(node, cast)
        return cast.outputs[0]

    def _product(
        self, node: ir.Node, stored: Mapping[Stream, ir.Value], assignment: Assignment, format: WeightFormat
    ) -> ir.Node:
        attributes = {
            "K": assignment.in_features,
            "N": assignment.out_features,
            "bits": format.bits,
            "block_size": format.block_size,
            "accuracy_level": _FLOAT_COMPUTE if self.plan.float_compute else _INT8_COMPUTE,
        }
        inputs = [node.inputs[0], *(stored[stream] for stream in _INPUTS if stream in stored)]
        return ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=f"{node.name}")


def _weight(node: ir.Node) -> ir.Value:
    """The matrix or table that a node reads."""
    value = node.inputs[0 if node.op_type == "Gather" else 1]
    if value is None:
        raise HvlcError("plan.incomplete", f"{node.name} reads no matrix", "report it")
    return value


def _lookup(node: ir.Node, stored: Mapping[Stream, ir.Value], format: WeightFormat) -> ir.Node:
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": format.block_size, "bits": format.bits}
    levels, *others = (stored[stream] for stream in _INPUTS if stream in stored)
    inputs = [levels, node.inputs[1], *others]
    return ir.node("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT, name=str(node.name))
