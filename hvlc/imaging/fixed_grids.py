"""The nearest of a few grids, for encoders that a compiler fixes: an image is resized to exactly that one.

Nearest by the ratio of the sides, then by area: shapes are kept as far as the grids allow, and among grids of one shape
the one is taken whose area is nearest to what the image would have on its own grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError, raise_all
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.facts import ImageRule
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, f64
from hvlc.imaging.native_grid import NativeGrid
from hvlc.imaging.rule import Request

_FAR = 1e9  # beyond any distance: packages hold no infinity
MOST_GRIDS = 16  # a graph is compiled for each


@dataclass(frozen=True)
class FixedGrids(NativeGrid):
    """One piece of one of several shapes; `grid` counts its visual tokens, in rows and columns.

    A scale and a bound of visual tokens change the area that is looked for; grids above the bound are left out, but for
    the smallest.

    Attributes:
        grids: heights and widths in pixels, multiples of the cell.
    """

    kind: ClassVar[str] = "fixed_grids"
    grids: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("there are no grids")

    @property
    def most_visual_tokens(self) -> int:
        """Visual tokens of the largest grid."""
        return int(self._cells().prod(1).max())

    def _cells(self) -> np.ndarray:
        """Rows and columns of each grid, int64 `[grids, 2]`."""
        return np.array(self.grids, np.int64) // self.cell_size

    def _grid(self, b: GraphBuilder, request: Request) -> tuple[ir.Value, ir.Value]:
        """Rows and columns of the nearest grid, int64 `[2]`, and the scale that gives them, float32 `[1]`."""
        native, used = super()._grid(b, request)
        made, cells = b.op("ReduceProd", native, keepdims=1), self._cells()
        counts = b.constant(cells.prod(1))
        smallest = b.constant(cells.prod(1) == cells.prod(1).min())
        fits = b.op("Or", b.op("LessOrEqual", counts, request.limit), smallest)
        shapes = b.constant(np.array([math.log(height / width) for height, width in self.grids]))
        sides = b.op("Cast", b.op("Shape", request.image, start=0, end=2), to=DOUBLE)
        height, width = b.ops("Split", [sides], 2, axis=0, num_outputs=2)
        apart = b.op("Abs", b.op("Sub", b.op("Log", b.op("Div", height, width)), shapes))
        nearest = _least(b, apart, fits)
        areas = b.constant(np.log(cells.prod(1)))
        apart = b.op("Abs", b.op("Sub", b.op("Log", b.op("Cast", made, to=DOUBLE)), areas))
        beyond = b.op("Where", b.op("And", nearest, fits), apart, f64(b, _FAR))
        index = b.op("ArgMin", b.op("Cast", beyond, to=FLOAT), axis=0, keepdims=0)
        grid = b.op("Gather", b.constant(cells), index, axis=0)
        share = b.op(
            "Div", b.op("ReduceProd", b.op("Cast", grid, to=DOUBLE), keepdims=1), b.op("Cast", made, to=DOUBLE)
        )
        smaller = b.op("Cast", b.op("Min", b.op("Sqrt", share), f64(b, 1.0)), to=FLOAT)
        return grid, b.op("Mul", used, smaller)


def _least(b: GraphBuilder, distances: ir.Value, allowed: ir.Value) -> ir.Value:
    """Mask of the allowed distances, float64 `[n]`, that are the least of these, bool `[n]`."""
    among = b.op("Where", allowed, distances, f64(b, _FAR))
    return b.op("Equal", among, b.op("ReduceMin", among, keepdims=1))


def fixed_grids(rule: ImageRule, grids: Sequence[tuple[int, int]]) -> FixedGrids:
    """A rule whose images are resized to one of a few grids.

    Args:
        rule: of the image's own grid, or of fixed ones.
        grids: heights and widths in pixels.

    Raises:
        UserError: the rule's pieces have one shape; or there are no grids or too many, one is there twice,
            or a side is not a multiple of the cell; all of it at once.
    """
    if not isinstance(rule, NativeGrid):
        cause = f"the images of this model become pieces of one shape ({rule.kind})"
        raise UserError("build.grids", cause, "leave --grids out")
    cell, causes = rule.cell_size, []
    if not 1 <= len(grids) <= MOST_GRIDS:
        causes.append(f"{len(grids)} grids are asked for, 1 to {MOST_GRIDS} are possible")
    if len(set(grids)) < len(grids):
        causes.append("a grid is asked for twice")
    wrong = [f"{height}x{width}" for height, width in grids if height % cell or width % cell or not (height and width)]
    if wrong:
        causes.append(f"{', '.join(wrong)}: sides of this model's images are multiples of {cell} pixels")
    raise_all([UserError("build.grids", cause, "name others with --grids") for cause in causes])
    own = {field.name: getattr(rule, field.name) for field in fields(NativeGrid)}
    return FixedGrids(**own, grids=tuple(grids))
