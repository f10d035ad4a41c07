"""Reshapes that say every dimension.

A 0 ("as before") or -1 ("what is left") in the target of a Reshape is read by onnxruntime, which joins two Reshapes in
a row into one with the same signs; Qualcomm's compiler then refuses it (onnxruntime-qnn 2.7, "_new_reshape"). Where
shapes are fixed, the numbers are known.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.passes.base import ComponentPass, Outcome, register
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class SpellReshapes(ComponentPass):
    """Writes the fixed shape of its output into every Reshape."""

    roles = frozenset({Role.DECODER, Role.VISION_ENCODER})
    requires = frozenset({Trait.INFERRED_SHAPES})
    promises = frozenset({Trait.EXPLICIT_RESHAPES})
    ends = frozenset({Trait.COMPUTED_SHAPES})

    def transform(self, component: Component) -> Outcome:
        """Spell every Reshape whose output has a fixed shape."""
        changed, skipped = 0, []
        for node in [n for n in component.graph if n.op_type == "Reshape" and not n.domain]:
            shape, asked = node.outputs[0].shape, node.inputs[1]
            if shape is None or not shape.is_static() or asked is None:
                skipped.append(Skip(str(node.name), "its output has no fixed shape"))
                continue
            dims = tuple(int(d) for d in shape if isinstance(d, int))
            if asked.const_value is None or tuple(asked.const_value.numpy().tolist()) != dims:
                node.replace_input_with(1, dims_of(component.graph, dims))
                drop_unread(component.graph, asked)
                changed += 1
        return Outcome(changed, tuple(skipped))


def dims_of(graph: ir.Graph, dims: tuple[int, ...]) -> ir.Value:
    """The constant int64 `[rank]` of a shape."""
    return register(graph, ir.tensor(np.array(dims, np.int64), name=f"{'x'.join(map(str, dims))}_dims"))


def drop_unread(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    if not value.uses() and value.name in graph.initializers:
        del graph.initializers[str(value.name)]
