"""Dynamic vision-encoder selection in one graph: `If` on an encoder id over all vision encoders.

The package's graphs for host use stay as they are; this one is for hosts that want a single vision graph (an
overlay of genai's `model.vision.filename` is enough). Tiles run one after another in a `Scan`, so its peak memory
is that of one tile. It reads the same bytes as the separate encoders: weights are hoisted out of the branches, so
that an unused encoder stays an unread mapping (measured for `If` with prepacking off: docs/adr/0003).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role, Skip
from hvlc.graphs.facts import ImageRule
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class SelectEncoder(BundlePass):
    """Add component "vision_fused", which copies the encoders as they are by then.

    Attributes:
        rule: how an image became pieces.
        hidden_size: width of a visual token.
    """

    rule: ImageRule
    hidden_size: int
    requires = frozenset({Trait.QUANTIZED_WEIGHTS})
    ends = frozenset({Trait.SEPARATE_ENCODERS})

    def transform(self, bundle: Bundle) -> Outcome:
        """Add the fused graph.

        Inputs `pixel_values` float32 `[tiles, 3, T, T]` and `grid` int64 `[2]` of one image, `encoder_id` int64 `[1]`
        (position in the manifest's list of encoders); output `image_features` float32 `[visual_tokens, hidden]`.
        """
        encoders = bundle.with_role(Role.VISION_ENCODER)
        if "vision_fused" in bundle.components:
            return Outcome()
        if len(encoders) == 1:
            return Outcome(0, (Skip("vision_fused", "there is one encoder: nothing to choose"),))
        tiles = encoders[0].graph.inputs[0].shape
        if tiles is None:
            raise HvlcError("pass.select_encoder", "the encoders' input has no shape", "report it")
        b = GraphBuilder("vision_fused")
        pixels = b.input("pixel_values", ir.DataType.FLOAT, tiles)
        grid = b.input("grid", ir.DataType.INT64, [2])
        chosen = b.input("encoder_id", ir.DataType.INT64, [1])
        branches = [_branch(b.graph, encoder, pixels) for encoder in encoders]
        features = _choose(b, chosen, branches, 0)
        image_features = self.rule.merged(b, features, grid, self.hidden_size)
        b.output(image_features, "image_features", ir.DataType.FLOAT, ["visual_tokens", self.hidden_size])
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
    """A branch that scans the tiles with the encoder."""
    branch = GraphBuilder(f"{encoder.name}_tiles", subgraph=True)
    body = _body(outer, encoder)
    features = branch.op("Scan", pixels, name="tile_by_tile", body=body, num_scan_inputs=1)
    cells = encoder.graph.outputs[0].shape
    branch.output(features, f"{encoder.name}_features", ir.DataType.FLOAT, ["tiles", *(cells or ())[1:]])
    return branch.graph


def _body(outer: ir.Graph, encoder: Component) -> ir.Graph:
    """The encoder over one tile `[3, T, T]`; its weights become initializers of `outer`, by the same tensors."""
    prefix = f"{encoder.name}/"
    b = GraphBuilder(f"{encoder.name}_tile", subgraph=True)
    tile = b.input(f"{encoder.name}_one_tile", ir.DataType.FLOAT, (encoder.graph.inputs[0].shape or ())[1:])
    axis = b.constant(np.array([0], np.int64))
    values: dict[ir.Value, ir.Value] = {encoder.graph.inputs[0]: b.op("Unsqueeze", tile, axis)}
    for name, value in encoder.graph.initializers.items():
        if value.const_value is None:
            raise HvlcError("pass.select_encoder", f"{name} has no value", "report it")
        hoisted = ir.Value(name=prefix + name, const_value=value.const_value, type=value.type, shape=value.shape)
        outer.register_initializer(hoisted)
        values[value] = hoisted
    b.graph.extend([_copy(node, values, prefix) for node in encoder.graph])
    result = encoder.graph.outputs[0]
    squeezed = b.op("Squeeze", values[result], axis)
    b.output(squeezed, f"{encoder.name}_tile_features", ir.DataType.FLOAT, (result.shape or ())[1:])
    return b.graph


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value], prefix: str) -> ir.Node:
    outputs = []
    for output in node.outputs:
        copied = ir.Value(name=prefix + output.name if output.name else "", type=output.type, shape=output.shape)
        values[output] = copied
        outputs.append(copied)
    inputs = [None if v is None else values[v] for v in node.inputs]
    attributes = list(node.attributes.values())
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=f"{prefix}{node.name}")
