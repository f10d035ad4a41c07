"""Join what an encoder makes of an image's pieces into the visual tokens of the image."""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role, Wire
from hvlc.graphs.facts import ImageRule
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class MergePieces(BundlePass):
    """Add the component that joins an image's pieces after a vision encoder.

    Attributes:
        rule: how an image became pieces.
        hidden_size: width of a visual token.
    """

    rule: ImageRule
    hidden_size: int
    requires = frozenset({Trait.FRONT_GRAPH, Trait.SEPARATE_ENCODERS})
    promises = frozenset({Trait.WIRED_TOKENS})

    def transform(self, bundle: Bundle) -> Outcome:
        """Add component "stitch".

        Inputs `tile_features` float32 `[pieces, tokens, hidden]`, `grid` int64 `[2]`, and, where the rule has one,
        `overview_features` float32 `[1, tokens, hidden]`; output `image_features` float32 `[visual tokens, hidden]` in
        the order of the placeholders.
        """
        if "stitch" in bundle.components:
            return Outcome()
        encoders = bundle.with_role(Role.VISION_ENCODER)
        b = GraphBuilder("stitch")
        features = b.input("tile_features", ir.DataType.FLOAT, encoders[0].graph.outputs[0].shape or ())
        grid = b.input("grid", ir.DataType.INT64, [2])
        merged = self.rule.merged(b, features, grid, self.hidden_size)
        if self.rule.has_overview:
            overview = b.input("overview_features", ir.DataType.FLOAT, [1, "overview_tokens", self.hidden_size])
            last = b.op("Reshape", overview, b.ints(-1, self.hidden_size))
            merged = b.op("Concat", merged, last, axis=0, name="overview_last")
        b.output(merged, "image_features", ir.DataType.FLOAT, ["visual_tokens", self.hidden_size])
        bundle.add(Component("stitch", Role.VISION_MERGER, b.model(), "front"))
        for encoder in encoders:
            bundle.wires.append(Wire(f"{encoder.name}.tile_features", "stitch.tile_features"))
            bundle.wires.append(Wire("front.pixel_values", f"{encoder.name}.pixel_values"))
        bundle.wires.append(Wire("front.grid", "stitch.grid"))
        bundle.wires.append(Wire("stitch.image_features", "embedding.image_features"))
        return Outcome(1)
