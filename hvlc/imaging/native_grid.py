"""A grid of the image's own shape (the Qwen-VL families): both sides become multiples of the cell, within an area.

The arithmetic is that of `smart_resize`, in float64 and with halves rounded to even. A scale lowers the most pixels to
its square's share of what the image would have, but never below the fewest pixels; a bound of visual tokens lowers
both. Where rounding up would break the bound, sides are rounded down instead, and cut where the image is so narrow that
a side is one cell already.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, INT64, f64
from hvlc.imaging.pieces import normalized, planes, repeated
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, ImageRule, Normalization, Request

_MOST_RATIO = 200  # of the sides of an image that processors take


@dataclass(frozen=True)
class NativeGrid(ImageRule):
    """One piece of the image's shape; `grid` counts its visual tokens, in rows and columns.

    A processor refuses images more than 200 times as long as wide; the graph goes on by the same rule.

    Attributes:
        cell_size: side in pixels of the square behind one visual token: patch times merge.
        min_pixels: fewest pixels of an image.
        max_pixels: most pixels of an image.
        resampling: of the resize.
        normalization: of grey levels.
        image_token: id that stands for a visual token.
        before: ids before the image, where the template does not write them.
        after: ids after the image, where the template does not write them.
    """

    kind: ClassVar[str] = "native_grid"
    cell_size: int
    min_pixels: int
    max_pixels: int
    resampling: Resampling
    normalization: Normalization
    image_token: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def most_visual_tokens(self) -> int:
        """Visual tokens of `max_pixels`, or more where sides of narrow images are rounded up to a cell.

        With `r` as the ratio of the sides an image of `n` cells has sides of `sqrt(n r)` and `sqrt(n / r)` cells.
        """
        least, most = (pixels / self.cell_size**2 for pixels in (self.min_pixels, self.max_pixels))
        one_cell_high = math.isqrt(int(most * _MOST_RATIO))
        long, short = math.sqrt(least * _MOST_RATIO), math.sqrt(least / _MOST_RATIO)
        return max(int(most), one_cell_high, int((long + 1) * (short + 1)), 1)

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
        grid, used = self._grid(b, request)
        image = resized(b, request.image, b.op("Mul", grid, b.ints(self.cell_size)), self.resampling, "native")
        images = repeated(b, [self.image_token], b.op("ReduceProd", grid, keepdims=1))
        runs = [b.ints(*ids) for ids in (self.before, self.after) if ids]
        ids = [*runs[: bool(self.before)], images, *runs[bool(self.before) :]]
        return Answer(normalized(b, planes(b, image), self.normalization), b.op("Concat", *ids, axis=0), grid, used)

    def _grid(self, b: GraphBuilder, request: Request) -> tuple[ir.Value, ir.Value]:
        """Rows and columns, int64 `[2]`, and the scale that gives them, float32 `[1]`."""
        size = b.op("Cast", b.op("Shape", request.image, start=0, end=2), to=DOUBLE)
        pixels = b.op("ReduceProd", size, keepdims=1)
        cell, area = f64(b, self.cell_size), f64(b, self.cell_size**2)
        scale = b.op("Cast", request.scale, to=DOUBLE)
        rounded = b.op("Round", b.op("Div", size, cell))
        whole = b.op("Mul", b.op("ReduceProd", rounded, keepdims=1), area)
        basis = b.op("Min", whole, f64(b, self.max_pixels))
        asked = b.op("Floor", b.op("Mul", b.op("Mul", basis, scale), scale))
        asked = b.op("Max", asked, f64(b, self.min_pixels))
        allowed = b.op("Mul", b.op("Cast", request.limit, to=DOUBLE), area)
        most, least = b.op("Min", asked, allowed), b.op("Min", f64(b, self.min_pixels), allowed)
        enlarged = b.op("Mul", size, b.op("Sqrt", b.op("Div", least, pixels)))
        enlarged = b.op("Ceil", b.op("Div", enlarged, cell))
        cells = b.op("Where", b.op("Less", whole, least), enlarged, rounded)
        cells = b.op("Where", b.op("Greater", whole, most), shrunk(b, size, pixels, most, cell), cells)
        grid = b.op("Cast", cells, to=INT64)
        is_over = b.op("Greater", b.op("ReduceProd", grid, keepdims=1), request.limit)
        fitted = kept(b, shrunk(b, size, pixels, allowed, cell), request.limit)
        grid = b.op("Where", is_over, fitted, grid)
        made = b.op("Mul", b.op("Cast", b.op("ReduceProd", grid, keepdims=1), to=DOUBLE), area)
        found = b.op("Cast", b.op("Sqrt", b.op("Div", made, basis)), to=FLOAT)
        is_bounded = b.op("Or", is_over, b.op("Less", allowed, asked))
        return grid, b.op("Where", is_bounded, b.op("Min", request.scale, found), request.scale)


def shrunk(b: GraphBuilder, size: ir.Value, pixels: ir.Value, most: ir.Value, cell: ir.Value) -> ir.Value:
    """Rows and columns of an image with the area `most`, rounded down to 1 or more, float64 `[2]`."""
    factor = b.op("Sqrt", b.op("Div", pixels, most))
    cells = b.op("Floor", b.op("Div", b.op("Div", size, factor), cell))
    return b.op("Max", cells, f64(b, 1.0))


def kept(b: GraphBuilder, cells: ir.Value, limit: ir.Value) -> ir.Value:
    """float64 `[2]` rows and columns with the columns, or the rows alone, cut to `limit` cells, int64 `[2]`."""
    limit = b.op("Max", limit, b.ints(1))
    within = b.op("Min", b.op("Cast", cells, to=INT64), limit)
    rows, columns = b.ops("Split", [within], 2, axis=0, num_outputs=2)
    columns = b.op("Min", columns, b.op("Div", limit, rows))
    return b.op("Concat", rows, columns, axis=0)
