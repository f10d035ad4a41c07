"""Multiple tiles with an overview (SmolVLM, Idefics3): both sides become multiples of a tile, the whole image one more.

The arithmetic is that of the processors, which divide in float64: the longest edge becomes what the processor says, the
other side follows and is rounded up to an even number, then both go up to multiples of the tile; each step resizes. A
bound of visual tokens lets the longest edge be that many tiles whose grid and overview keep it; a scale multiplies the
longest edge. Either way the answer is that of the processor with another longest edge.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError
from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, INT64, f64
from hvlc.imaging.pieces import cut, normalized, planes, repeated
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, Normalization, Request
from hvlc.imaging.square_tiles import SquareTiles

_MOST_PIXELS = 4096  # MAX_IMAGE_SIZE of the processors: of a side, whatever the longest edge is


@dataclass(frozen=True)
class OverviewTokens:
    """Ids of the tokens around tiles. The runs between special tokens were tokenized whole.

    Attributes:
        image: stands for a feature.
        around: before the name of a tile, and at the end.
        overview: name of the whole image.
        row_column: name of the tile in a row and column.
        newline: what ends a row of tiles.
        newlines: what ends the last row, before the whole image.
    """

    image: int
    around: tuple[int, ...]
    overview: tuple[int, ...]
    row_column: tuple[tuple[int, ...], ...]
    newline: tuple[int, ...]
    newlines: tuple[int, ...]


class _Sizes(NamedTuple):
    """Sizes for each of several longest edges, float64 `[k]`: after the first resize, and the grid of tiles."""

    height: ir.Value
    width: ir.Value
    rows: ir.Value
    columns: ir.Value


@dataclass(frozen=True)
class MultipleTiles(SquareTiles):
    """Rows and columns of tiles, then the whole image as one tile; the latter alone where there is one tile only.

    Attributes:
        tile_size: side of a tile in pixels.
        longest_edge: of the image in pixels, before it is rounded up to tiles.
        tile_tokens: visual tokens of a tile.
        resampling: of every resize.
        normalization: of grey levels.
        tokens: ids of the prompt.
        is_split: False: the whole image alone.
    """

    kind: ClassVar[str] = "multiple_tiles"
    tile_size: int
    longest_edge: int
    tile_tokens: int
    resampling: Resampling
    normalization: Normalization
    tokens: OverviewTokens
    is_split: bool = True

    def __post_init__(self) -> None:
        table = self.tokens.row_column
        if self.is_split and min((len(row) for row in (table, *table)), default=0) < self.most_rows > 1:
            cause = f"an image may have {self.most_rows} rows and columns of tiles; the tokenizer names fewer"
            fix = "add its <row_r_col_c> tokens, or lower size.longest_edge of the image processor"
            raise UserError("checkpoint.tokenizer", cause, fix)

    @property
    def most_rows(self) -> int:
        """Rows, and columns, that an image has at most."""
        longest = min(self.longest_edge, _MOST_PIXELS)
        return -(-(longest + longest % 2) // self.tile_size)

    @property
    def ignores(self) -> tuple[tuple[str, str], ...]:
        if self.is_split:
            return ()
        reason = "the processor does not split images: each is one tile"
        return ("scale", reason), ("max_visual_tokens", reason)

    @property
    def most_visual_tokens(self) -> int:
        tiles = self.most_rows**2 + 1 if self.is_split and self.most_rows > 1 else 1
        return tiles * self.tile_tokens

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Resize to the longest edge and to whole tiles; cut, and add the whole image."""
        edges, chosen, used = self._longest_edge(b, request)
        sizes = _Sizes(*(b.op("Gather", size, chosen) for size in self._sizes(b, request, edges)))
        first = b.op("Cast", b.op("Concat", sizes.height, sizes.width, axis=0), to=INT64)
        image = resized(b, request.image, first, self.resampling, "longest_edge")
        tile = b.ints(self.tile_size)
        if not self.is_split:
            grid = b.ints(1, 1)
        else:
            grid = b.op("Cast", b.op("Concat", sizes.rows, sizes.columns, axis=0), to=INT64)
            image = resized(b, image, b.op("Mul", grid, tile), self.resampling, "whole_tiles")
        overview = planes(b, resized(b, image, b.op("Concat", tile, tile, axis=0), self.resampling, "overview"))
        count = b.op("ReduceProd", grid, keepdims=1)
        count = b.op("Where", b.op("Equal", count, b.ints(1)), b.ints(0), count)
        if self.is_split:
            tiles = b.op("Slice", cut(b, image, grid, self.tile_size), b.ints(0), count, b.ints(0))
            overview = b.op("Concat", tiles, overview, axis=0)
        return Answer(normalized(b, overview, self.normalization), self._ids(b, grid, count), grid, used)

    def _longest_edge(self, b: GraphBuilder, request: Request) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Candidates for the longest edge, float64 `[k]`; index of the chosen, int64 `[1]`; its scale, float32 `[1]`.

        Candidates are multiples of the tile, and last the edge that the scale asks for, which caps them all. An odd
        multiple is one less: the processor would round the other side of a square up beyond it.
        """
        if not self.is_split:
            return b.constant(np.array([float(self.longest_edge)])), b.ints(0), b.constant(np.ones(1, np.float32))
        tile, longest = self.tile_size, float(self.longest_edge)
        multiples = [k * tile - k * tile % 2 for k in range(1, self.most_rows + 1)]
        asked = b.op("Floor", b.op("Mul", b.op("Cast", request.scale, to=DOUBLE), f64(b, longest)))
        asked = b.op("Max", asked, f64(b, 1.0))
        edges = b.op("Min", b.constant(np.array([*multiples, longest], np.float64)), asked)
        sizes = self._sizes(b, request, edges)
        tiles = b.op("Mul", sizes.rows, sizes.columns)
        one = f64(b, 1.0)
        pieces = b.op("Where", b.op("Greater", tiles, one), b.op("Add", tiles, one), one)
        allowed = b.op("Cast", b.op("Div", request.limit, b.ints(self.tile_tokens)), to=DOUBLE)
        numbers = b.ints(*range(len(multiples) + 1))
        fitting = b.op("Where", b.op("LessOrEqual", pieces, allowed), numbers, b.ints(0))
        chosen = b.op("ReduceMax", fitting, keepdims=1)
        edge = b.op("Gather", edges, chosen)
        capped = b.op("Cast", b.op("Div", edge, f64(b, longest)), to=FLOAT)
        return edges, chosen, b.op("Where", b.op("Less", edge, asked), capped, request.scale)

    def _sizes(self, b: GraphBuilder, request: Request, edges: ir.Value) -> _Sizes:
        """Sizes that the processor finds with each longest edge."""
        size = b.op("Cast", b.op("Shape", request.image, start=0, end=2), to=DOUBLE)
        height, width = b.ops("Split", [size], 2, axis=0, num_outputs=2)
        height, width = _to_edge(b, height, width, edges, is_even=True)
        if self.longest_edge > _MOST_PIXELS:
            most = f64(b, _MOST_PIXELS)
            is_long = b.op("Greater", b.op("Max", height, width), most)
            bounded = _to_edge(b, height, width, most, is_even=False)
            height, width = (b.op("Where", is_long, *pair) for pair in zip(bounded, (height, width), strict=True))
        tile = f64(b, self.tile_size)
        longest = b.op("Mul", b.op("Ceil", b.op("Div", b.op("Max", height, width), tile)), tile)
        sides = _to_edge(b, height, width, longest, is_even=False)
        rows, columns = (b.op("Ceil", b.op("Div", side, tile)) for side in sides)
        return _Sizes(height, width, rows, columns)

    def _ids(self, b: GraphBuilder, grid: ir.Value, count: ir.Value) -> ir.Value:
        """int64 `[n]`: the tiles by rows where there are any, then the whole image."""
        tokens = self.tokens
        last = b.ints(*tokens.around, *tokens.overview, *[tokens.image] * self.tile_tokens, *tokens.around)
        if not self.is_split or self.most_rows == 1:
            return last
        rows = b.op("Slice", grid, b.ints(0), b.ints(1))
        table = b.constant(np.array(tokens.row_column, np.int64))
        names = b.op("Unsqueeze", b.op("Slice", table, b.ints(0, 0), grid, b.ints(0, 1)), b.ints(2))
        around = b.op("Expand", b.ints(*tokens.around), b.op("Concat", grid, b.ints(len(tokens.around)), axis=0))
        images = b.op("Expand", b.ints(tokens.image), b.op("Concat", grid, b.ints(self.tile_tokens), axis=0))
        by_row = b.op("Concat", rows, b.ints(-1), axis=0)
        tiles = b.op("Reshape", b.op("Concat", around, names, images, axis=2), by_row)
        ends = b.op("Reshape", repeated(b, tokens.newline, rows), by_row)
        lines = b.op("Reshape", b.op("Concat", tiles, ends, axis=1), b.ints(-1))
        before_last_end = b.op("Sub", b.op("Shape", lines), b.ints(len(tokens.newline)))
        lines = b.op("Slice", lines, b.ints(0), before_last_end, b.ints(0))
        split = b.op("Concat", lines, b.ints(*tokens.newlines), axis=0)
        length = b.op("Mul", b.op("Min", count, b.ints(1)), b.op("Shape", split))
        return b.op("Concat", b.op("Slice", split, b.ints(0), length, b.ints(0)), last, axis=0)


def _to_edge(
    b: GraphBuilder, height: ir.Value, width: ir.Value, edge: ir.Value, *, is_even: bool
) -> tuple[ir.Value, ir.Value]:
    """Height and width with the longest side `edge`, at least 1, as float64; operations in the processors' order.

    Args:
        b: builder of the graph.
        height: whole pixels, float64.
        width: whole pixels, float64.
        edge: the longest side to come.
        is_even: whether the other side goes up to an even number.
    """
    is_wide = b.op("GreaterOrEqual", width, height)
    aspect = b.op("Div", width, height)
    other = b.op("Where", is_wide, b.op("Div", edge, aspect), b.op("Mul", edge, aspect))
    other = b.op("Floor", other)
    if is_even:
        half = b.op("Ceil", b.op("Mul", other, f64(b, 0.5)))
        other = b.op("Mul", half, f64(b, 2.0))
    other = b.op("Max", other, f64(b, 1.0))
    return b.op("Where", is_wide, other, edge), b.op("Where", is_wide, edge, other)
