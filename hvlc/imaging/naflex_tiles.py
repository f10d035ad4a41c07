"""Images of their own shape, large ones as tiles before that (LFM2-VL): pieces of one shape, and one of another.

An image becomes a native piece: both sides are multiples of the cell, within a number of visual tokens (`smart_resize`
of the processor, in float64 and with halves rounded to even). One that has too many pixels for that is stretched to
the grid of tiles with the nearest aspect ratio first, and the native piece after the tiles is its thumbnail. A bound of
visual tokens, or a scale's share of those that the image would have, bounds the tiles; where it holds no grid of tiles,
it bounds the native piece, which is alone then. Either way the answer is that of the processor with fewer tiles, or
without splitting and with fewer tokens.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, INT64, f64
from hvlc.imaging.native_grid import kept, shrunk
from hvlc.imaging.nearest_grid import nearest_grid
from hvlc.imaging.pieces import cut, normalized, planes, repeated
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, ImageRule, Normalization, Request

_MOST_RATIO = 200  # of the sides of an image that the default bound restricts not


@dataclass(frozen=True)
class TileTokens:
    """Ids of the tokens around pieces.

    Attributes:
        image: stands for a feature.
        start: before the first piece.
        row_column: before the tile in a row and column.
        thumbnail: before the native piece where there are tiles.
        end: after the last piece.
    """

    image: int
    start: tuple[int, ...]
    row_column: tuple[tuple[int, ...], ...]
    thumbnail: tuple[int, ...]
    end: tuple[int, ...]


class _Plan(NamedTuple):
    """Plan by which an image is cut.

    Attributes:
        grid: rows and columns of tiles, int64 `[2]`; of no tiles 1 and 1.
        tiles: how many, int64 `[1]`; 0: the image is native alone.
        native: rows and columns of cells of the native piece, int64 `[2]`.
        used: scale that gives these, float32 `[1]`.
    """

    grid: ir.Value
    tiles: ir.Value
    native: ir.Value
    used: ir.Value


@dataclass(frozen=True)
class NaflexTiles(ImageRule):
    """Tiles where an image is large, and the image in its own shape, which the front graph gives as `overview`.

    Attributes:
        tile_size: side of a tile in pixels.
        min_tiles: fewest tiles of a large image, at least 2.
        max_tiles: most tiles; below 2: no image is cut.
        cell_size: side in pixels of the square behind one visual token: patch times merge.
        patch_size: side of a patch in pixels.
        min_tokens: fewest visual tokens of the native piece.
        max_tokens: most visual tokens of the native piece.
        tolerance: how many times the pixels of `max_tokens` an image has at most that is not cut.
        resampling: of every resize.
        normalization: of grey levels.
        tokens: ids of the prompt.
    """

    kind: ClassVar[str] = "naflex_tiles"
    tile_size: int
    min_tiles: int
    max_tiles: int
    cell_size: int
    patch_size: int
    min_tokens: int
    max_tokens: int
    tolerance: float
    resampling: Resampling
    normalization: Normalization
    tokens: TileTokens

    @property
    def splits(self) -> bool:
        """Whether large images are cut."""
        return self.max_tiles > 1

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of a tile."""
        return (self.tile_size // self.cell_size) ** 2

    @property
    def most_visual_tokens(self) -> int:
        """Visual tokens of the most tiles and of a native piece whose short side is one cell."""
        tiles = self.max_tiles * self.tile_tokens if self.splits else 0
        least = math.sqrt(self.min_tokens * _MOST_RATIO) + 1, math.sqrt(self.min_tokens / _MOST_RATIO) + 1
        return tiles + max(self.max_tokens, math.isqrt(self.max_tokens * _MOST_RATIO), int(least[0] * least[1]))

    @property
    def piece_shape(self) -> tuple[int, int]:
        return self.tile_size, self.tile_size

    @property
    def tokens_per_piece(self) -> int:
        return self.tile_tokens

    @property
    def has_overview(self) -> bool:
        return True

    def pieces(self, rows: int, columns: int) -> int:
        """Tiles, without the native piece."""
        return rows * columns if rows * columns > 1 else 0

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Choose a grid of tiles and one of cells; stretch and cut, and resize to the native piece."""
        plan = self._plan(b, request)
        native = b.op("Mul", plan.native, b.ints(self.cell_size))
        overview = planes(b, resized(b, request.image, native, self.resampling, "native"))
        tiles = self._tiles(b, request, plan)
        pieces, whole = (normalized(b, part, self.normalization) for part in (tiles, overview))
        return Answer(pieces, self._ids(b, plan), plan.grid, plan.used, whole)

    def _tiles(self, b: GraphBuilder, request: Request, plan: _Plan) -> ir.Value:
        """uint8 `[tiles, 3, T, T]`; an image that is not cut is not stretched either."""
        made, none = (GraphBuilder(f"tiles_{branch}", subgraph=True) for branch in ("made", "none"))
        size = made.op("Mul", plan.grid, made.ints(self.tile_size))
        stretched = resized(made, request.image, size, self.resampling, "stretched")
        empty = np.zeros((0, 3, self.tile_size, self.tile_size), np.uint8)
        found = cut(made, stretched, plan.grid, self.tile_size), none.op("Identity", none.constant(empty))
        for branch, value in zip((made, none), found, strict=True):
            branch.output(value, f"{branch.graph.name}/tiles", ir.DataType.UINT8, [None, 3, *self.piece_shape])
        is_cut = b.op("Squeeze", b.op("Greater", plan.tiles, b.ints(0)))
        return b.op("If", is_cut, then_branch=made.graph, else_branch=none.graph, name="tiles")

    def _plan(self, b: GraphBuilder, request: Request) -> _Plan:
        size = b.op("Cast", b.op("Shape", request.image, start=0, end=2), to=DOUBLE)
        least, most = (f64(b, tokens) for tokens in (self.min_tokens, self.max_tokens))
        thumbnail = self._native(b, size, least, most)
        beside = b.op("ReduceProd", thumbnail, keepdims=1)
        full = self._grid(b, request, size, b.ints(self.max_tiles))
        whole = b.op("Add", b.op("Mul", _count(b, full), b.ints(self.tile_tokens)), beside)
        asked = b.op("Max", _share(b, whole, request.scale), b.op("Min", whole, b.ints(self.min_tokens)))
        budget = b.op("Min", asked, request.limit)
        room = b.op("Div", b.op("Sub", budget, beside), b.ints(self.tile_tokens))
        grid = self._grid(b, request, size, b.op("Max", room, b.ints(0)))
        tiles = _count(b, grid)
        is_less = b.op("Less", budget, beside)
        allowed = b.op("Where", is_less, b.op("Cast", budget, to=DOUBLE), most)
        alone = self._native(b, size, b.op("Min", least, allowed), allowed)
        is_over = b.op("Greater", b.op("ReduceProd", alone, keepdims=1), request.limit)
        cells = f64(b, self.cell_size)
        area = b.op("Mul", b.op("Cast", request.limit, to=DOUBLE), f64(b, self.cell_size**2))
        fitted = kept(b, shrunk(b, size, b.op("ReduceProd", size, keepdims=1), area, cells), request.limit)
        alone = b.op("Where", is_over, fitted, alone)
        native = b.op("Where", b.op("Greater", tiles, b.ints(0)), thumbnail, alone)
        made = b.op("Mul", tiles, b.ints(self.tile_tokens))
        made = b.op("Add", made, b.op("ReduceProd", native, keepdims=1))
        ratio = b.op("Div", *(b.op("Cast", value, to=DOUBLE) for value in (made, whole)))
        found = b.op("Min", request.scale, b.op("Cast", b.op("Sqrt", ratio), to=FLOAT))
        is_bounded = b.op("Or", is_over, b.op("Less", request.limit, asked))
        return _Plan(grid, tiles, native, b.op("Where", is_bounded, found, request.scale))

    def _grid(self, b: GraphBuilder, request: Request, size: ir.Value, most: ir.Value) -> ir.Value:
        """Rows and columns of tiles of a large image, int64 `[2]`; 1 and 1 where it is not cut into so few."""
        if not self.splits:
            return b.ints(1, 1)
        cell = f64(b, self.cell_size)
        sides = b.op("Mul", b.op("Round", b.op("Div", size, cell)), cell)
        sides = b.op("Max", sides, f64(b, self.patch_size))
        pixels = b.op("ReduceProd", sides, keepdims=1)
        is_large = b.op("Greater", pixels, f64(b, self.max_tokens * self.cell_size**2 * self.tolerance))
        is_cut = b.op("And", is_large, b.op("GreaterOrEqual", most, b.ints(self.min_tiles)))
        grids, least = tried_grids(self.min_tiles, self.max_tiles), b.ints(self.min_tiles)
        nearest = nearest_grid(b, request.image, grids, self.tile_size, least, most)
        return b.op("Where", is_cut, nearest, b.ints(1, 1))

    def _native(self, b: GraphBuilder, size: ir.Value, least: ir.Value, most: ir.Value) -> ir.Value:
        """Rows and columns of cells by `smart_resize`, int64 `[2]`; fewest and most are float64 numbers of tokens."""
        cell, area, one = f64(b, self.cell_size), f64(b, self.cell_size**2), f64(b, 1.0)
        pixels = b.op("ReduceProd", size, keepdims=1)
        rounded = b.op("Max", b.op("Round", b.op("Div", size, cell)), one)
        count = b.op("ReduceProd", rounded, keepdims=1)
        stretch = b.op("Sqrt", b.op("Div", b.op("Mul", least, area), pixels))
        enlarged = b.op("Ceil", b.op("Div", b.op("Mul", size, stretch), cell))
        cells = b.op("Where", b.op("Less", count, least), enlarged, rounded)
        smaller = shrunk(b, size, pixels, b.op("Mul", most, area), cell)
        return b.op("Cast", b.op("Where", b.op("Greater", count, most), smaller, cells), to=INT64)

    def _ids(self, b: GraphBuilder, plan: _Plan) -> ir.Value:
        """int64 `[n]`: the tiles row by row where there are any, then the native piece."""
        tokens = self.tokens
        native = repeated(b, [tokens.image], b.op("ReduceProd", plan.native, keepdims=1))
        start, end = b.ints(*tokens.start), b.ints(*tokens.end)
        if not self.splits:
            return b.op("Concat", start, native, end, axis=0)
        table = b.constant(np.array(tokens.row_column, np.int64))
        names = b.op("Reshape", b.op("Slice", table, b.ints(0, 0), plan.grid, b.ints(0, 1)), b.ints(-1, 1))
        names = b.op("Slice", names, b.ints(0), plan.tiles, b.ints(0))
        images = b.op("Expand", b.ints(tokens.image), b.op("Concat", plan.tiles, b.ints(self.tile_tokens), axis=0))
        tiles = b.op("Reshape", b.op("Concat", names, images, axis=1), b.ints(-1))
        is_cut = b.op("Min", plan.tiles, b.ints(1))
        thumbnail = repeated(b, tokens.thumbnail, is_cut)
        return b.op("Concat", start, tiles, thumbnail, native, end, axis=0)


def tried_grids(fewest: int, most: int) -> np.ndarray:
    """Rows and columns of the grids of some tiles, int64 `[n, 2]`, in the order in which transformers tries them.

    That is the order of a set of pairs, sorted by area: among grids of one area it is that of the pairs' hashes, which
    is the same in every CPython.
    """
    pairs = [
        (columns, rows)
        for count in range(fewest, most + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if fewest <= columns * rows <= most
    ]
    found = sorted(set(pairs), key=lambda pair: pair[0] * pair[1])
    return np.array([(rows, columns) for columns, rows in found], np.int64)


def _count(b: GraphBuilder, grid: ir.Value) -> ir.Value:
    """Tiles of a grid, int64 `[1]`; 0 of 1 and 1."""
    count = b.op("ReduceProd", grid, keepdims=1)
    return b.op("Where", b.op("Greater", count, b.ints(1)), count, b.ints(0))


def _share(b: GraphBuilder, tokens: ir.Value, scale: ir.Value) -> ir.Value:
    """int64 `[1]` times the square of a scale, rounded down."""
    factor = b.op("Cast", scale, to=DOUBLE)
    return b.op(
        "Cast", b.op("Floor", b.op("Mul", b.op("Mul", b.op("Cast", tokens, to=DOUBLE), factor), factor)), to=INT64
    )
