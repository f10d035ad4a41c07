"""Trim rotary tables to the length of the KV cache: later positions never occur.

A checkpoint's tables have a row for each position of its context, 32,768 of them in many; a cache of fixed length ends
far before.
"""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT, POSITIONS
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import replace_weight
from hvlc.graphs.linears import operand
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import expression_of

_TABLES = (7, 8)  # cosines and sines, by input of GroupQueryAttention


@dataclass(frozen=True)
class TrimRotaryTables(ComponentPass):
    """Trim the tables of every attention to their first rows, before parts of the decoder share them.

    Attributes:
        context: positions of the KV cache.
    """

    context: int
    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.GROUP_ATTENTION, Trait.WHOLE_DECODER})

    def transform(self, component: Component) -> Outcome:
        """Cut every table once, however many layers read it."""
        attentions = [n for n in component.graph if n.op_type == "GroupQueryAttention" and n.domain == MICROSOFT]
        found = [v for n in attentions for at, v in enumerate(n.inputs) if at in _TABLES and v is not None]
        tables = list(dict.fromkeys([*found, *_picked(component.graph)]))
        changed = sum(self._cut(table) for table in tables)
        return Outcome(changed, () if tables else (Skip("*", "rotates with no table"),))

    def _cut(self, table: ir.Value) -> int:
        """1 if the table was longer."""
        tensor = table.const_value
        if tensor is None or expression_of(tensor).shape[0] <= self.context:
            return 0
        replace_weight(table, expression_of(tensor).narrow(0, 0, self.context))
        table.shape = ir.Shape(table.const_value.shape.numpy()) if table.const_value is not None else None
        return 1


def _picked(graph: ir.Graph) -> list[ir.Value]:
    """Tables whose rows are picked by positions that the graph is given, none of which is beyond the cache."""
    readers = [use.node for value in graph.inputs if value.name == POSITIONS for use in value.uses()]
    return [operand(node, 0) for node in readers if node.op_type == "Gather"]
