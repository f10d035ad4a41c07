"""Flatten the rows of an RMSNormalization over heads into one axis.

Qualcomm's compiler computes garbage from an RMSNormalization over a last axis of up to 32 where the rows before it lie
in several dimensions (onnxruntime-qnn 2.7, run in emulation: errors of 1e5 from the 17th row on; rows in one dimension
are right at every width). Query and key norms are of that kind: `[1, tokens, heads, head_size]`, between two Reshapes.
The first of them can make `[1, tokens * heads, head_size]` just as well, and the numbers are the same.
"""

import math
from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import drop_unread, register_dims
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_FLAT = 3  # dimensions: the first, rows, width


@dataclass(frozen=True)
class FlattenNorms(ComponentPass):
    """Flatten the rows of every RMSNormalization of more than three dimensions that stands between Reshapes."""

    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.EXPLICIT_RESHAPES})

    def transform(self, component: Component) -> Outcome:
        """Flatten every such norm whose shape is fixed."""
        changed, skipped = 0, []
        for norm in [n for n in component.graph if n.op_type == "RMSNormalization" and not n.domain]:
            found = _between_reshapes(norm)
            if isinstance(found, str):
                skipped.append(Skip(str(norm.name), found))
            else:
                _flatten(component.graph, *found)
                changed += 1
        return Outcome(changed, tuple(skipped))


def _between_reshapes(norm: ir.Node) -> tuple[ir.Node, list[ir.Value]] | str:
    """The Reshape before a norm and the values from there to the Reshapes behind it, or why the norm stays."""
    shape = norm.outputs[0].shape
    if shape is None or not shape.is_static():
        return "its shape is not fixed"
    if len(shape) <= _FLAT:
        return "its rows lie in one dimension"
    if norm.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
        return "normalizes over more than the last axis"
    value, values = norm.inputs[0], list[ir.Value]()
    while value is not None and (node := value.producer()) is not None and len(value.uses()) == 1:
        values.append(value)
        if node.op_type == "Reshape":
            return "not only Reshapes after it" if not _reshaped(norm, values) else (node, values)
        if node.op_type not in _ROUNDING:
            break
        value = node.inputs[0]
    return "no Reshape of its own before it"


def _reshaped(node: ir.Node, values: list[ir.Value]) -> bool:
    """Whether all that reads a node, through roundings, are Reshapes; the values on the way are noted."""
    value = node.outputs[0]
    values.append(value)
    readers = [use.node for use in value.uses()]
    return not value.is_graph_output() and all(
        reader.op_type == "Reshape" or (reader.op_type in _ROUNDING and _reshaped(reader, values)) for reader in readers
    )


def _flatten(graph: ir.Graph, reshape: ir.Node, values: list[ir.Value]) -> None:
    """Let a Reshape join all rows, and say so of what follows."""
    first, *rows, width = (int(d) for d in values[0].shape or () if isinstance(d, int))
    dims = (first, math.prod(rows), width)
    asked = reshape.inputs[1]
    reshape.replace_input_with(1, register_dims(graph, dims))
    drop_unread(graph, asked)
    for value in values:
        value.shape = ir.Shape(dims)
