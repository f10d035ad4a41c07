"""Raster tiles (HyperVL): scale, pad right and below to whole tiles, cut row by row, one token a cell.

The operations and their order are those of `hvlc/models/hypervl/processing.py`, in float32, so both agree on every
size.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import capped_scale, ceil_div, f32, scaled_size
from hvlc.imaging.pieces import rows_of
from hvlc.imaging.rule import Answer, ImageRule, Normalization, Request


@dataclass(frozen=True)
class RasterTiles(ImageRule):
    """Tiles of one size whose cells join into one grid, each row of it ended by a row token.

    Attributes:
        tile_size: side of a tile in pixels.
        cell_size: side in pixels of the square behind one visual token.
        normalization: of the pixels, which are not rounded to grey levels; `rescale` is 1/255.
        image_token: id that stands for a cell.
        row_token: id that ends a row of cells.
        max_visual_tokens: bound of a package where a request has none.
    """

    kind: ClassVar[str] = "raster_tiles"
    tile_size: int
    cell_size: int
    normalization: Normalization
    image_token: int
    row_token: int
    max_visual_tokens: int = 4096

    @property
    def most_visual_tokens(self) -> int:
        return self.max_visual_tokens

    @property
    def piece_shape(self) -> tuple[int, int]:
        return self.tile_size, self.tile_size

    @property
    def tokens_per_piece(self) -> int:
        side: int = self.tile_size // self.cell_size
        return side * side

    def pieces(self, rows: int, columns: int) -> int:
        """Number of tiles that hold these cells."""
        side = self.tile_size // self.cell_size
        return -(-rows // side) * -(-columns // side)

    def merged(self, b: GraphBuilder, features: ir.Value, grid: ir.Value, hidden: int) -> ir.Value:
        """Lay the tiles' cells side by side as one raster and crop the padding; see `ImageRule.merged`."""
        cells = self.tile_size // self.cell_size
        down, across = b.ops("Split", [ceil_div(b, grid, cells)], 2, axis=0, num_outputs=2)
        side, width = b.ints(cells), b.ints(hidden)
        tiled = b.op("Reshape", features, b.op("Concat", down, across, side, side, width, axis=0))
        rows = b.op("Transpose", tiled, perm=[0, 2, 1, 3, 4])
        full = b.op("Concat", b.op("Mul", down, side), b.op("Mul", across, side), width, axis=0)
        raster = b.op("Slice", b.op("Reshape", rows, full), b.ints(0, 0), grid, b.ints(0, 1))
        return b.op("Reshape", raster, b.ints(-1, hidden))

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Resize by the capped scale, cut, and count the cells."""
        used = capped_scale(b, request.size, request.scale, request.limit, self.cell_size)
        target = scaled_size(b, request.size, used)
        normalized = resized_and_normalized(b, request.pixels, target, self.normalization.mean, self.normalization.std)
        grid = ceil_div(b, target, self.cell_size)
        tiles = _cut(b, normalized, target, self.tile_size)
        return Answer(tiles, rows_of(b, grid, self.image_token, self.row_token), grid, used)


def resized_and_normalized(
    b: GraphBuilder, pixels: ir.Value, size: ir.Value, mean: tuple[float, ...], std: tuple[float, ...]
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
