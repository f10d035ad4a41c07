"""Dynamic vision-encoder selection in one graph: `If` on an encoder id over all vision encoders.

The package's graphs for host use stay as they are; this one is for hosts that want a single vision graph.
It reads the same bytes: weights are hoisted out of the branches, so that an unused encoder stays an unread
mapping (genai.md, section 5, measured there with prepacking off).
"""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.bundle import Bundle, Component, Role, Skip
from hvlc.errors import HvlcError
from hvlc.graph import GraphBuilder
from hvlc.passes.base import BundlePass, Outcome


@dataclass(frozen=True)
class SelectEncoder(BundlePass):
    """Adds component "vision_fused", last of all passes: it copies the encoders as they are by then."""

    def transform(self, bundle: Bundle) -> Outcome:
        """Add the fused graph.

        Inputs `pixel_values` float32 `[tiles, 3, T, T]`, `encoder_id` int64 `[1]` (position in the manifest's
        list of encoders); output `tile_features` float32 `[tiles, t * t, hidden]`.
        """
        encoders = bundle.with_role(Role.VISION_ENCODER)
        if "vision_fused" in bundle.components or len(encoders) < 2:
            return Outcome(0, (Skip("vision_fused", "there is nothing to choose"),) if len(encoders) < 2 else ())
        first = encoders[0].graph
        b = GraphBuilder("vision_fused")
        pixels = b.input("pixel_values", ir.DataType.FLOAT, list(first.inputs[0].shape or ()))
        chosen = b.input("encoder_id", ir.DataType.INT64, [1])
        branches = [_branch(b.graph, encoder, pixels) for encoder in encoders]
        features = _choose(b, chosen, branches, 0)
        b.output(features, "tile_features", ir.DataType.FLOAT, list(first.outputs[0].shape or ()))
        bundle.add(Component("vision_fused", Role.VISION_ROUTER, b.model(), encoders[0].data_group))
        return Outcome(len(encoders))


def _choose(b: GraphBuilder, chosen: ir.Value, branches: list[ir.Graph], index: int) -> ir.Value:
    """`If encoder_id == index then branch[index] else ...`; the last branch answers for every other id."""
    asked = b.op("Equal", chosen, b.ints(index), name=f"encoder_is_{index}")
    if index + 2 == len(branches):
        otherwise = branches[index + 1]
    else:
        nested = GraphBuilder(f"encoders_from_{index + 1}", subgraph=True)
        value = _choose(nested, chosen, branches, index + 1)
        nested.graph.outputs.append(value)
        otherwise = nested.graph
    return b.op("If", asked, name=f"choose_encoder_{index}", then_branch=branches[index], else_branch=otherwise)


def _branch(outer: ir.Graph, encoder: Component, pixels: ir.Value) -> ir.Graph:
    """The encoder's nodes as a subgraph; its weights become initializers of the outer graph, by the same tensors."""
    prefix = f"{encoder.name}/"
    values: dict[ir.Value, ir.Value] = {encoder.graph.inputs[0]: pixels}
    for name, value in encoder.graph.initializers.items():
        if value.const_value is None:
            raise HvlcError("pass.select_encoder", f"{name} has no value", "report it")
        hoisted = ir.Value(name=prefix + name, const_value=value.const_value, type=value.type, shape=value.shape)
        outer.register_initializer(hoisted)
        values[value] = hoisted
    nodes = [_copy(node, values, prefix) for node in encoder.graph]
    result = values[encoder.graph.outputs[0]]
    result.type, result.shape = encoder.graph.outputs[0].type, encoder.graph.outputs[0].shape
    return ir.Graph([], [result], nodes=nodes, name=encoder.name)


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value], prefix: str) -> ir.Node:
    outputs = []
    for output in node.outputs:
        copied = ir.Value(name=prefix + output.name if output.name else "", type=output.type, shape=output.shape)
        values[output] = copied
        outputs.append(copied)
    inputs = [None if v is None else values[v] for v in node.inputs]
    attributes = list(node.attributes.values())
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=f"{prefix}{node.name}")
