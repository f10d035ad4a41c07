"""Lays the visual tokens of an image's tiles side by side as one raster and crops the padding cells."""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role, Wire
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait
from hvlc.passes.vision.tile_images import ceil_div


def stitched(b: GraphBuilder, features: ir.Value, grid: ir.Value, cells_per_side: int, hidden: int) -> ir.Value:
    """float `[tiles, t * t, hidden]` of one image to float `[rows * columns, hidden]` in raster order.

    Args:
        b: the graph under construction.
        features: visual tokens of the tiles, row-major.
        grid: int64 `[2]`, rows and columns of cells that hold image.
        cells_per_side: visual tokens along one side of a tile.
        hidden: width of a visual token.
    """
    down, across = b.ops("Split", [ceil_div(b, grid, cells_per_side)], 2, axis=0, num_outputs=2)
    side, width = b.ints(cells_per_side), b.ints(hidden)
    tiled = b.op("Reshape", features, b.op("Concat", down, across, side, side, width, axis=0))
    rows = b.op("Transpose", tiled, perm=[0, 2, 1, 3, 4])
    full = b.op("Concat", b.op("Mul", down, side), b.op("Mul", across, side), width, axis=0)
    raster = b.op("Slice", b.op("Reshape", rows, full), b.ints(0, 0), grid, b.ints(0, 1))
    return b.op("Reshape", raster, b.ints(-1, hidden))


@dataclass(frozen=True)
class StitchTiles(BundlePass):
    """Adds the component that joins an image's tiles after a vision encoder.

    Attributes:
        cells_per_side: visual tokens along one side of a tile.
        hidden_size: width of a visual token.
    """

    cells_per_side: int
    hidden_size: int
    requires = frozenset({Trait.FRONT_GRAPH, Trait.SEPARATE_ENCODERS})
    promises = frozenset({Trait.WIRED_TOKENS})

    def transform(self, bundle: Bundle) -> Outcome:
        """Add component "stitch".

        Inputs `tile_features` float32 `[tiles, t * t, hidden]`, `grid` int64 `[2]`; output
        `image_features` float32 `[rows * columns, hidden]` in raster order.
        """
        if "stitch" in bundle.components:
            return Outcome()
        t, hidden = self.cells_per_side, self.hidden_size
        b = GraphBuilder("stitch")
        features = b.input("tile_features", ir.DataType.FLOAT, ["tiles", t * t, hidden])
        grid = b.input("grid", ir.DataType.INT64, [2])
        raster = stitched(b, features, grid, t, hidden)
        b.output(raster, "image_features", ir.DataType.FLOAT, ["visual_tokens", hidden])
        bundle.add(Component("stitch", Role.VISION_MERGER, b.model(), "front"))
        for encoder in bundle.with_role(Role.VISION_ENCODER):
            bundle.wires.append(Wire(f"{encoder.name}.tile_features", "stitch.tile_features"))
            bundle.wires.append(Wire("front.pixel_values", f"{encoder.name}.pixel_values"))
        bundle.wires.append(Wire("front.grid", "stitch.grid"))
        bundle.wires.append(Wire("stitch.image_features", "embedding.image_features"))
        return Outcome(1)
