"""Materialize the target shape of every Reshape: no 0 and no -1.

A 0 ("as before") or -1 ("what is left") in the target of a Reshape is read by onnxruntime, which joins two Reshapes in
a row into one with the same signs; Qualcomm's compiler then refuses it (onnxruntime-qnn 2.7, "_new_reshape"). Where
shapes are fixed, the numbers are known.
"""

from dataclasses import dataclass

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import drop_unread, register_dims
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class MaterializeReshapeShapes(ComponentPass):
    """Write the static shape of the output into every Reshape."""

    roles = frozenset({Role.DECODER, Role.VISION_ENCODER})
    requires = frozenset({Trait.INFERRED_SHAPES})
    promises = frozenset({Trait.EXPLICIT_RESHAPES})
    ends = frozenset({Trait.COMPUTED_SHAPES})

    def transform(self, component: Component) -> Outcome:
        """Materialize the shape of every Reshape whose output has a fixed one."""
        changed, skipped = 0, []
        for node in [n for n in component.graph if n.op_type == "Reshape" and not n.domain]:
            shape, asked = node.outputs[0].shape, node.inputs[1]
            if shape is None or not shape.is_static() or asked is None:
                skipped.append(Skip(str(node.name), "its output has no fixed shape"))
                continue
            dims = tuple(int(d) for d in shape if isinstance(d, int))
            if asked.const_value is None or tuple(asked.const_value.numpy().tolist()) != dims:
                node.replace_input_with(1, register_dims(component.graph, dims))
                drop_unread(component.graph, asked)
                changed += 1
        return Outcome(changed, tuple(skipped))
