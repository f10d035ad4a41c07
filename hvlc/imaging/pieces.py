"""Bytes of an image cut into pieces and normalized, and the runs of token ids that stand for them."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, FLOAT, f64
from hvlc.imaging.rule import Normalization


def planes(b: GraphBuilder, image: ir.Value) -> ir.Value:
    """uint8 `[h, w, 3]` as one piece, uint8 `[1, 3, h, w]`."""
    return b.op("Unsqueeze", b.op("Transpose", image, perm=[2, 0, 1]), b.ints(0))


def cut(b: GraphBuilder, image: ir.Value, grid: ir.Value, tile: int) -> ir.Value:
    """uint8 `[rows * T, columns * T, 3]` as tiles, row by row, uint8 `[rows * columns, 3, T, T]`.

    Args:
        b: builder of the graph.
        image: whole tiles.
        grid: rows and columns, int64 `[2]`.
        tile: side of a tile in pixels.
    """
    rows, columns = b.ops("Split", [grid], 2, axis=0, num_outputs=2)
    side = b.ints(tile)
    channels = b.op("Transpose", image, perm=[2, 0, 1])
    squares = b.op("Reshape", channels, b.op("Concat", b.ints(3), rows, side, columns, side, axis=0))
    return b.op("Reshape", b.op("Transpose", squares, perm=[1, 3, 0, 2, 4]), b.ints(-1, 3, tile, tile))


def normalized(b: GraphBuilder, pieces: ir.Value, normalization: Normalization) -> ir.Value:
    """uint8 `[n, 3, h, w]` to float32, as transformers' `rescale` and `normalize`: the product alone in float64."""
    mean, std = (
        np.array(numbers, np.float32).reshape(1, -1, 1, 1) for numbers in (normalization.mean, normalization.std)
    )
    if normalization.fused:
        levels = np.float32(1 / normalization.rescale)
        centred = b.op("Sub", b.op("Cast", pieces, to=FLOAT), b.constant(mean * levels))
        return b.op("Div", centred, b.constant(std * levels))
    scaled = b.op("Mul", b.op("Cast", pieces, to=DOUBLE), f64(b, normalization.rescale))
    return b.op("Div", b.op("Sub", b.op("Cast", scaled, to=FLOAT), b.constant(mean)), b.constant(std))


def repeated(b: GraphBuilder, ids: Sequence[int], count: ir.Value) -> ir.Value:
    """int64 `[count * len(ids)]`: a run of ids, int64 `[1]` times."""
    shape = b.op("Concat", count, b.ints(len(ids)), axis=0)
    return b.op("Reshape", b.op("Expand", b.ints(*ids), shape), b.ints(-1))


def rows_of(b: GraphBuilder, grid: ir.Value, image: int, row: int) -> ir.Value:
    """Ids of a grid, row by row.

    Args:
        b: builder of the graph.
        grid: rows and columns, int64 `[2]`.
        image: id of each cell.
        row: id that ends each row.

    Returns:
        int64 `[rows * (columns + 1)]`.
    """
    rows, columns = b.ops("Split", [grid], 2, axis=0, num_outputs=2)
    cells = b.op("Expand", b.ints(image), b.op("Concat", rows, columns, axis=0))
    ends = b.op("Expand", b.ints(row), b.op("Concat", rows, b.ints(1), axis=0))
    return b.op("Reshape", b.op("Concat", cells, ends, axis=1), b.ints(-1))
