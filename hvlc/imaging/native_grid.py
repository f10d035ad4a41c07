"""The image's own shape, in whole cells (Qwen2-VL to Qwen3.5, PaddleOCR-VL, LightOnOCR; `smart_resize`).

Both sides are rounded to multiples of a cell; an image of more or fewer pixels than allowed is scaled by the square
root of what it has too much or too little. A bound of visual tokens and a scale lower the most pixels. The arithmetic
is that of the processors, in float64, with Python's rounding of halves to even.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from hvlc.errors import UserError
from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, INT64, f64
from hvlc.imaging.pieces import normalized, planes, repeated
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, ImageRule, Normalization, Request

_LONGEST_RATIO = 200  # of the sides: longer images are refused by the processors


@dataclass(frozen=True)
class NativeGrid(ImageRule):
    """One piece whose sides follow the image; a visual token stands for a cell.

    Attributes:
        cell_size: side of a cell in pixels: patch size times merge size.
        min_pixels: fewest pixels of an image; a smaller bound or scale wins.
        max_pixels: most pixels of an image.
        resampling: of the resize.
        normalization: of grey levels.
        image_token: id that stands for a cell.
    """

    kind: ClassVar[str] = "native_grid"
    cell_size: int
    min_pixels: int
    max_pixels: int
    resampling: Resampling
    normalization: Normalization
    image_token: int

    def __post_init__(self) -> None:
        if not self.cell_size**2 <= self.max_pixels or self.min_pixels > self.max_pixels:
            cause = f"images have {self.min_pixels} to {self.max_pixels} pixels, a visual token {self.cell_size**2}"
            raise UserError("checkpoint.processor", cause, "save the processor again")

    @property
    def most_visual_tokens(self) -> int:
        """The most pixels in cells, or, of an image one cell high, as many as the longest ratio makes of them."""
        thin = math.isqrt(self.max_pixels * _LONGEST_RATIO) // self.cell_size + 1
        return max(self.max_pixels // self.cell_size**2, thin)

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
        """One."""
        return 1

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Resize to whole cells."""
        grid, used = self._grid(b, request)
        size = b.op("Mul", grid, b.ints(self.cell_size))
        image = planes(b, resized(b, request.image, size, self.resampling, "native"))
        ids = repeated(b, [self.image_token], b.op("ReduceProd", grid, keepdims=1))
        return Answer(normalized(b, image, self.normalization), ids, grid, used)

    def _grid(self, b: GraphBuilder, request: Request) -> tuple[ir.Value, ir.Value]:
        """Rows and columns of cells, int64 `[2]`, and the scale that gives them, float32 `[1]`."""
        size = b.op("Cast", b.op("Shape", request.image, start=0, end=2), to=DOUBLE)
        pixels = b.op("ReduceProd", size, keepdims=1)
        rounded = b.op("Round", b.op("Div", size, f64(b, self.cell_size)))
        cell = f64(b, self.cell_size**2)
        area = b.op("Mul", b.op("ReduceProd", rounded, keepdims=1), cell)
        most, fewest = f64(b, self.max_pixels), f64(b, self.min_pixels)
        smaller = self._within(b, size, pixels, most)
        beta = b.op("Sqrt", b.op("Div", fewest, pixels))
        larger = b.op("Ceil", b.op("Div", b.op("Mul", size, beta), f64(b, self.cell_size)))
        kept = b.op("Where", b.op("Less", area, fewest), larger, rounded)
        whole = b.op("Where", b.op("Greater", area, most), smaller, kept)
        cells = b.op("ReduceProd", whole, keepdims=1)
        allowed = self._allowed(b, request, cells)
        is_lowered = b.op("Less", allowed, cells)
        lowered = self._lowered(b, size, pixels, rounded, allowed)
        grid = b.op("Where", is_lowered, lowered, whole)
        root = b.op("Cast", b.op("Sqrt", b.op("Div", allowed, cells)), to=FLOAT)
        used = b.op("Where", is_lowered, b.op("Min", request.scale, root), request.scale)
        return b.op("Cast", grid, to=INT64), used

    def _allowed(self, b: GraphBuilder, request: Request, cells: ir.Value) -> ir.Value:
        """Cells that bound and scale leave of the image's own, at least 1, float64 `[1]`."""
        scale = b.op("Cast", request.scale, to=DOUBLE)
        share = b.op("Floor", b.op("Mul", b.op("Mul", cells, scale), scale))
        least = b.op("Min", share, b.op("Cast", request.limit, to=DOUBLE))
        return b.op("Max", least, f64(b, 1.0))

    def _within(self, b: GraphBuilder, size: ir.Value, pixels: ir.Value, most: ir.Value) -> ir.Value:
        """Cells of each side of an image of at most so many pixels, but for one cell a side, float64 `[2]`."""
        beta = b.op("Sqrt", b.op("Div", pixels, most))
        sides = b.op("Floor", b.op("Div", b.op("Div", size, beta), f64(b, self.cell_size)))
        return b.op("Max", sides, f64(b, 1.0))

    def _lowered(
        self, b: GraphBuilder, size: ir.Value, pixels: ir.Value, rounded: ir.Value, allowed: ir.Value
    ) -> ir.Value:
        """Cells of each side when bound or scale decide: no more than allowed, also of a thin image."""
        most = b.op("Mul", allowed, f64(b, self.cell_size**2))
        fits = b.op("LessOrEqual", b.op("ReduceProd", rounded, keepdims=1), allowed)
        sides = b.op("Where", fits, b.op("Max", rounded, f64(b, 1.0)), self._within(b, size, pixels, most))
        rows, columns = b.ops("Split", [sides], 2, axis=0, num_outputs=2)
        rows = b.op("Min", rows, allowed)
        columns = b.op("Min", columns, b.op("Floor", b.op("Div", allowed, rows)))
        return b.op("Concat", rows, columns, axis=0)
