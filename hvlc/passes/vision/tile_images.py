"""Image tiling as a graph: decoded RGB in, normalized tiles and their grid out.

As a graph it runs the same in Python, Kotlin and Swift. The operations and their order are those of
`hvlc/models/hypervl/processing.py`, in float32, so both agree on every size.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait

_FLOAT, _INT64 = int(ir.DataType.FLOAT), int(ir.DataType.INT64)


def f32(b: GraphBuilder, *values: float) -> ir.Value:
    """A float32 constant: a scalar for one value, else 1-D."""
    array = np.array(values, np.float32)
    return b.constant(array[0] if len(values) == 1 else array)


def resized_and_normalized(
    b: GraphBuilder, pixels: ir.Value, size: ir.Value, mean: list[float], std: list[float]
) -> ir.Value:
    """float `[1, 3, h, w]` in 0..255 resized to int64 `size` `[height, width]` and normalized.

    Antialiased bilinear as Pillow and torch compute it, without rounding to grey levels.
    """
    sizes = b.op("Concat", b.ints(1, 3), size, axis=0)
    resized = b.op(
        "Resize",
        pixels,
        None,
        None,
        sizes,
        mode="linear",
        antialias=1,
        coordinate_transformation_mode="half_pixel",
        exclude_outside=1,
    )
    shape = (1, 3, 1, 1)
    scaled = b.op("Div", resized, f32(b, 255.0))
    centred = b.op("Sub", scaled, b.constant(np.array(mean, np.float32).reshape(shape)))
    return b.op("Div", centred, b.constant(np.array(std, np.float32).reshape(shape)))


def ceil_div(b: GraphBuilder, value: ir.Value, divisor: int) -> ir.Value:
    """Ceiling of a positive int64 division."""
    return b.op("Div", b.op("Add", value, b.ints(divisor - 1)), b.ints(divisor))


def scaled_size(b: GraphBuilder, size: ir.Value, scale: ir.Value) -> ir.Value:
    """int64 `[2]`: `max(1, floor(size * scale))` of float32 `size` `[2]`."""
    floored = b.op("Floor", b.op("Mul", size, scale))
    return b.op("Cast", b.op("Max", floored, f32(b, 1.0)), to=_INT64)


def _capped(b: GraphBuilder, size: ir.Value, scale: ir.Value, limit: ir.Value, cell: int) -> ir.Value:
    """The largest scale up to `scale` that keeps the image within `limit` cells (processing.cap_scale)."""
    cells = b.op("ReduceProd", ceil_div(b, scaled_size(b, size, scale), cell), keepdims=1)
    sides = b.op("Div", size, f32(b, cell))
    a, c = b.ops("Split", [sides], 2, axis=0, num_outputs=2)
    total = b.op("Add", a, c)
    free = b.op("Sub", b.op("Cast", limit, to=_FLOAT), f32(b, 1.0))
    inner = b.op("Mul", b.op("Mul", b.op("Mul", f32(b, 4.0), a), c), free)
    root = b.op("Sqrt", b.op("Add", b.op("Mul", total, total), inner))
    bound = b.op("Div", b.op("Sub", root, total), b.op("Mul", b.op("Mul", f32(b, 2.0), a), c))
    return b.op("Where", b.op("LessOrEqual", cells, limit), scale, b.op("Min", scale, bound))


def _cut(b: GraphBuilder, pixels: ir.Value, size: ir.Value, tile: int) -> ir.Value:
    """Zero-pad float `[1, 3, h, w]` right and below to whole tiles and cut it, row-major, `[n, 3, T, T]`."""
    counts = ceil_div(b, size, tile)
    missing = b.op("Sub", b.op("Mul", counts, b.ints(tile)), size)
    pads = b.op("Concat", b.ints(0, 0, 0, 0, 0, 0), missing, axis=0)
    padded = b.op("Pad", pixels, pads)
    down, across = b.ops("Split", [counts], 2, axis=0, num_outputs=2)
    side = b.ints(tile)
    cut = b.op("Reshape", padded, b.op("Concat", b.ints(3), down, side, across, side, axis=0))
    return b.op("Reshape", b.op("Transpose", cut, perm=[1, 3, 0, 2, 4]), b.ints(-1, 3, tile, tile))


@dataclass(frozen=True)
class TileImages(BundlePass):
    """Adds the front graph.

    Attributes:
        tile_size: side of a tile in pixels.
        cell_size: side in pixels of the square behind one visual token.
        image_mean: per channel, on the 0..1 scale.
        image_std: per channel, on the 0..1 scale.
    """

    tile_size: int
    cell_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    promises = frozenset({Trait.FRONT_GRAPH})

    def transform(self, bundle: Bundle) -> Outcome:
        """Add component "front".

        Inputs `image` uint8 `[height, width, 3]`, `scale` float32 `[1]` per side, `max_visual_tokens` int64 `[1]`.
        Outputs `pixel_values` float32 `[tiles, 3, T, T]`, `grid` int64 `[2]` (rows and columns of visual
        tokens), `used_scale` float32 `[1]`.
        """
        if "front" in bundle.components:
            return Outcome()
        b = GraphBuilder("front")
        image = b.input("image", ir.DataType.UINT8, ["height", "width", 3])
        scale = b.input("scale", ir.DataType.FLOAT, [1])
        limit = b.input("max_visual_tokens", ir.DataType.INT64, [1])
        pixels = b.op(
            "Unsqueeze", b.op("Transpose", b.op("Cast", image, to=_FLOAT), perm=[2, 0, 1]), b.ints(0), name="pixels"
        )
        size = b.op("Cast", b.op("Shape", image, start=0, end=2), to=_FLOAT, name="size")
        used = _capped(b, size, b.op("Identity", scale, name="chosen_scale"), limit, self.cell_size)
        target = scaled_size(b, size, used)
        normalized = resized_and_normalized(b, pixels, target, list(self.image_mean), list(self.image_std))
        tiles = _cut(b, normalized, target, self.tile_size)
        b.output(tiles, "pixel_values", ir.DataType.FLOAT, ["tiles", 3, self.tile_size, self.tile_size])
        b.output(ceil_div(b, target, self.cell_size), "grid", ir.DataType.INT64, [2])
        b.output(used, "used_scale", ir.DataType.FLOAT, [1])
        bundle.add(Component("front", Role.FRONT, b.model(), "front"))
        return Outcome(1)
