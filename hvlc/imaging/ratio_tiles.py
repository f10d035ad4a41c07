"""Tiles by the nearest aspect ratio, with a thumbnail (InternVL, Qianfan-OCR; the GotOcr2 processor).

Of all grids with an allowed number of tiles the one whose aspect ratio is nearest to the image's is taken, and the
image stretched to it; among equals the larger one, as long as the image has more than half its pixels. More than one
tile are followed by the whole image as one tile. A bound of visual tokens bounds the tiles; a scale bounds them by its
square's share of what the image would have: either way the answer is that of the processor with fewer patches at most.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, INT64
from hvlc.imaging.nearest_grid import nearest_grid
from hvlc.imaging.pieces import cut, normalized, planes, repeated
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, Normalization, Request
from hvlc.imaging.square_tiles import SquareTiles


@dataclass(frozen=True)
class RatioTiles(SquareTiles):
    """Stretched tiles, row by row, then a thumbnail where there is more than one.

    Attributes:
        tile_size: side of a tile in pixels.
        min_tiles: fewest tiles of an image; a smaller bound or scale wins.
        max_tiles: most tiles of an image, without the thumbnail.
        tile_tokens: visual tokens of a tile.
        resampling: of both resizes.
        normalization: of grey levels.
        before: ids before the image.
        image_token: id that stands for a feature.
        after: ids after the image.
    """

    kind: ClassVar[str] = "ratio_tiles"
    tile_size: int
    min_tiles: int
    max_tiles: int
    tile_tokens: int
    resampling: Resampling
    normalization: Normalization
    before: tuple[int, ...]
    image_token: int
    after: tuple[int, ...]

    @property
    def most_visual_tokens(self) -> int:
        return self.tile_tokens * (self.max_tiles + 1 if self.max_tiles > 1 else 1)

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Choose a grid, stretch to it and cut; shrink to the thumbnail."""
        grid, used = self._grid(b, request)
        tile = b.ints(self.tile_size)
        stretched = resized(b, request.image, b.op("Mul", grid, tile), self.resampling, "stretched")
        tiles = cut(b, stretched, grid, self.tile_size)
        thumbnail = resized(b, request.image, b.ints(self.tile_size, self.tile_size), self.resampling, "thumbnail")
        both = b.op("Concat", tiles, planes(b, thumbnail), axis=0)
        count = _with_thumbnail(b, b.op("ReduceProd", grid, keepdims=1))
        pieces = b.op("Slice", both, b.ints(0), count, b.ints(0))
        images = repeated(b, [self.image_token], b.op("Mul", count, b.ints(self.tile_tokens)))
        ids = b.op("Concat", b.ints(*self.before), images, b.ints(*self.after), axis=0)
        return Answer(normalized(b, pieces, self.normalization), ids, grid, used)

    def _grid(self, b: GraphBuilder, request: Request) -> tuple[ir.Value, ir.Value]:
        """Rows and columns, int64 `[2]`, and the scale that gives them, float32 `[1]`."""
        pieces = b.op("Div", request.limit, b.ints(self.tile_tokens))
        bounded = b.op("Where", b.op("Less", pieces, b.ints(3)), b.ints(1), b.op("Sub", pieces, b.ints(1)))
        tiles = b.op("ReduceProd", self._nearest(b, request, b.ints(self.max_tiles)), keepdims=1)
        tiles = b.op("Cast", tiles, to=DOUBLE)
        scale = b.op("Cast", request.scale, to=DOUBLE)
        share = b.op("Cast", b.op("Floor", b.op("Mul", b.op("Mul", tiles, scale), scale)), to=INT64)
        scaled = b.op("Max", share, b.ints(1))
        grid = self._nearest(b, request, b.op("Min", scaled, bounded))
        root = b.op("Sqrt", b.op("Div", b.op("Cast", bounded, to=DOUBLE), tiles))
        used = b.op("Min", request.scale, b.op("Cast", root, to=FLOAT))
        return grid, b.op("Where", b.op("Less", bounded, scaled), used, request.scale)

    def _nearest(self, b: GraphBuilder, request: Request, most: ir.Value) -> ir.Value:
        """Rows and columns of the best grid of at most int64 `[1]` tiles, int64 `[2]`."""
        least = b.op("Min", b.ints(self.min_tiles), most)
        return nearest_grid(b, request.image, _grids(self.max_tiles), self.tile_size, least, most)


def _grids(most: int) -> np.ndarray:
    """Rows and columns of every grid of at most `most` tiles, int64 `[n, 2]`.

    They are sorted by tiles, among equals the tallest first.
    """
    grids = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return np.array(sorted(grids, key=lambda grid: grid[0] * grid[1]), np.int64)


def _with_thumbnail(b: GraphBuilder, tiles: ir.Value) -> ir.Value:
    """Pieces of int64 `[1]` tiles."""
    return b.op("Where", b.op("Greater", tiles, b.ints(1)), b.op("Add", tiles, b.ints(1)), tiles)
