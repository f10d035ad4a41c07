"""The grid of tiles whose aspect ratio is nearest to an image's."""

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, f64

_FARTHEST = 1e300  # above every difference of aspect ratios; graphs hold no infinity


def nearest_grid(
    b: GraphBuilder, image: ir.Value, grids: np.ndarray, tile: int, least: ir.Value, most: ir.Value
) -> ir.Value:
    """Rows and columns of the best grid, int64 `[2]`.

    Among equals the first is taken, or the last of which the image has more than half the pixels.

    Args:
        b: builder of the graph.
        image: uint8 `[h, w, 3]`.
        grids: rows and columns, int64 `[n, 2]`, in the order in which they are tried.
        tile: side of a tile in pixels.
        least: fewest tiles, int64 `[1]`.
        most: most tiles, int64 `[1]`; some grid is within both.
    """
    areas = b.constant(np.prod(grids, axis=1))
    size = b.op("Cast", b.op("Shape", image, start=0, end=2), to=DOUBLE)
    height, width = b.ops("Split", [size], 2, axis=0, num_outputs=2)
    aspects = b.constant(np.array([columns / rows for rows, columns in grids.tolist()]))
    away = b.op("Abs", b.op("Sub", b.op("Div", width, height), aspects))
    is_allowed = b.op("And", b.op("LessOrEqual", areas, most), b.op("GreaterOrEqual", areas, least))
    away = b.op("Where", is_allowed, away, f64(b, _FARTHEST))
    is_best = b.op("Equal", away, b.op("ReduceMin", away, keepdims=1))
    numbers = b.ints(*range(len(grids)))
    first = b.op("ReduceMin", b.op("Where", is_best, numbers, b.ints(len(grids))), keepdims=1)
    half = b.constant(0.5 * tile**2 * np.prod(grids, axis=1))
    is_filled = b.op("Greater", b.op("Mul", width, height), half)
    chosen = b.op("ReduceMax", b.op("Where", b.op("And", is_best, is_filled), numbers, first), keepdims=1)
    return b.op("Squeeze", b.op("Gather", b.constant(grids), chosen), b.ints(0))
