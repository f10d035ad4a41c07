"""SigLIP2 over images of any shape (NaFlex): its square table of positions is resized to the patches of each image."""

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.export import siglip
from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import FLOAT, f32


def tower(b: GraphBuilder, pixels: ir.Value, prefix: str, config: Any) -> ir.Value:
    """Patch features of images of one shape, float `[images, patches, width]`, row by row; see `siglip.tower`.

    Args:
        b: the graph under construction.
        pixels: float `[images, 3, H, W]`, of whole patches.
        prefix: what the names of the tower's parameters begin with, the dot included.
        config: its Siglip2VisionConfig.
    """
    return siglip.tower(b, pixels, prefix, config, partial(_positions, pixels=pixels, config=config))


def _positions(b: GraphBuilder, table: ir.Value, pixels: ir.Value, config: Any) -> ir.Value:
    """The table resized to the grid of patches, float `[patches, width]`.

    Columns first, then rows, each a product with a matrix of shares: torch's `interpolate`, bilinear and antialiased,
    where the pass along an axis that keeps its size is the identity.
    """
    side, width = siglip.patches_per_side(config), config.hidden_size
    rows, columns = patch_grid(b, pixels, config.patch_size)
    square = b.op("Reshape", table, b.ints(side, side, width))
    wide = b.op("MatMul", _shares(b, columns, side), square)
    wide = b.op("Reshape", wide, b.op("Concat", b.ints(side), b.op("Mul", columns, b.ints(width)), axis=0))
    return b.op("Reshape", b.op("MatMul", _shares(b, rows, side), wide), b.ints(-1, width))


def patch_grid(b: GraphBuilder, pixels: ir.Value, patch: int) -> tuple[ir.Value, ir.Value]:
    """Rows and columns of patches, int64 `[1]` each."""
    sides = ((2, 3), (3, 4))
    rows, columns = (b.op("Div", b.op("Shape", pixels, start=s, end=e), b.ints(patch)) for s, e in sides)
    return rows, columns


def _shares(b: GraphBuilder, count: ir.Value, side: int) -> ir.Value:
    """float32 `[count, side]`: what each of `count` places takes of each of `side` entries.

    The triangle around its centre is as wide as the step between places, or as that between entries where that is
    wider.
    """
    places = b.op("Range", b.constant(np.array(0)), b.op("Squeeze", count), b.constant(np.array(1)))
    step = b.op("Div", f32(b, side), b.op("Cast", count, to=FLOAT))
    half, one = f32(b, 0.5), f32(b, 1.0)
    centres = b.op("Mul", b.op("Add", b.op("Cast", places, to=FLOAT), half), step)
    entries = b.constant(np.arange(side, dtype=np.float32) + np.float32(0.5))
    distance = b.op("Abs", b.op("Sub", entries, b.op("Unsqueeze", centres, b.ints(1))))
    shares = b.op("Max", b.op("Sub", one, b.op("Div", distance, b.op("Max", step, one))), f32(b, 0.0))
    return b.op("Div", shares, b.op("ReduceSum", shares, b.ints(1), keepdims=1))


def unshuffled(b: GraphBuilder, x: ir.Value, pixels: ir.Value, patch: int, factor: int, width: int) -> ir.Value:
    """The patches of each cell together: float `[images, patches, width]` to `[images, cells, factor**2 * width]`.

    Args:
        b: the graph under construction.
        x: features, row by row.
        pixels: float `[images, 3, H, W]` that they were made of.
        patch: side of a patch in pixels.
        factor: side of a cell in patches; it divides both sides of the grid.
        width: of a patch's features.
    """
    rows, columns = (b.op("Div", count, b.ints(factor)) for count in patch_grid(b, pixels, patch))
    shape = b.op("Concat", b.ints(-1), rows, b.ints(factor), columns, b.ints(factor * width), axis=0)
    squares = b.op("Transpose", b.op("Reshape", x, shape), perm=[0, 1, 3, 2, 4])
    cells = b.op("Concat", b.ints(-1), b.op("Mul", rows, columns), b.ints(factor * factor * width), axis=0)
    return b.op("Reshape", squares, cells)
