"""A grid of the image's own shape (Pixtral): never enlarged, shrunk into a rectangle, sides rounded up to whole cells.

The arithmetic is that of `get_resize_output_image_size`, in float64. A scale, or a bound of visual tokens, shrinks what
fits into the rectangle further.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, capped_scale, ceil_div, f64, scaled_size
from hvlc.imaging.pieces import normalized, planes, repeated, rows_of
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, ImageRule, Normalization, Request


@dataclass(frozen=True)
class BoundedGrid(ImageRule):
    """One piece of the image's shape; `grid` counts its visual tokens, in rows and columns.

    A processor fails on images so narrow that a side is shrunk to nothing; the graph keeps a cell of them.

    Attributes:
        cell_size: side in pixels of the square behind one visual token: patch times merge.
        most_height: pixels of the rectangle that an image is shrunk into.
        most_width: pixels of the same.
        resampling: of the resize.
        normalization: of grey levels.
        image_token: id that stands for a visual token.
        row_tokens: ids that end a row of visual tokens, and the last row. None: rows have no end.
    """

    kind: ClassVar[str] = "bounded_grid"
    cell_size: int
    most_height: int
    most_width: int
    resampling: Resampling
    normalization: Normalization
    image_token: int
    row_tokens: tuple[int, int] | None = None

    @property
    def most_visual_tokens(self) -> int:
        """Visual tokens of an image that fills the rectangle."""
        down, across = (-(-side // self.cell_size) for side in (self.most_height, self.most_width))
        return down * across

    @property
    def piece_shape(self) -> None:
        return None

    @property
    def tokens_per_piece(self) -> None:
        return None

    @property
    def pixels_per_token(self) -> int:
        """Pixels of a cell."""
        return self.cell_size**2

    def pieces(self, rows: int, columns: int) -> int:
        """One, whatever the grid."""
        return 1

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Find the grid, resize to it."""
        fitting = self._fitting(b, request.image)
        used = capped_scale(b, fitting, request.scale, request.limit, self.cell_size)
        grid = ceil_div(b, scaled_size(b, fitting, used), self.cell_size)
        image = resized(b, request.image, b.op("Mul", grid, b.ints(self.cell_size)), self.resampling, "bounded")
        return Answer(normalized(b, planes(b, image), self.normalization), self._ids(b, grid), grid, used)

    def _fitting(self, b: GraphBuilder, image: ir.Value) -> ir.Value:
        """Sides of the image in the rectangle, float32 `[2]`; whole numbers, which float32 has up to 2**24."""
        size = b.op("Cast", b.op("Shape", image, start=0, end=2), to=DOUBLE)
        bounds = b.constant(np.array([self.most_height, self.most_width], np.float64))
        ratio = b.op("ReduceMax", b.op("Div", size, bounds), keepdims=1)
        shrunk = b.op("Floor", b.op("Div", size, b.op("Max", ratio, f64(b, 1.0))))
        return b.op("Cast", b.op("Max", shrunk, f64(b, 1.0)), to=FLOAT)

    def _ids(self, b: GraphBuilder, grid: ir.Value) -> ir.Value:
        """Ids that stand for the image, int64 `[n]`."""
        if self.row_tokens is None:
            return repeated(b, [self.image_token], b.op("ReduceProd", grid, keepdims=1))
        row_end, end = self.row_tokens
        ids = rows_of(b, grid, self.image_token, row_end)
        return b.op("Concat", b.op("Slice", ids, b.ints(0), b.ints(-1)), b.ints(end), axis=0)
