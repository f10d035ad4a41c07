"""Rotation of queries and keys by positions that are given: in three axes, of text, rows and columns (M-RoPE).

GroupQueryAttention rotates by the positions of the cache. Where a token's position is another, or one of several, its
cosines and sines are picked once for all layers, and the standard RotaryEmbedding turns queries and keys before they
get there.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.export.decoder.rotary import RotaryTables, layer_tables
from hvlc.export.decoder.shape import DecoderShape, GridPositions
from hvlc.graphs.builder import POSITIONS, GraphBuilder

_AXES = 3


@dataclass(frozen=True)
class Turns:
    """Rotation of queries and keys.

    Attributes:
        tables: cosines and sines float `[context, angles]`, by the position in the cache; none where no layer rotates.
        given: cosines and sines float `[batch, sequence, angles]` of each token, where its positions are given.
    """

    tables: tuple[ir.Value, ...] = ()
    given: tuple[ir.Value, ...] = ()

    def turned(self, b: GraphBuilder, x: ir.Value, heads: int, name: str) -> ir.Value:
        """float `[batch, sequence, heads * head_size]`, turned where positions are given."""
        return b.op("RotaryEmbedding", x, *self.given, num_heads=heads, name=name) if self.given else x


def layer_turns(b: GraphBuilder, tables: RotaryTables, shape: DecoderShape) -> list[Turns]:
    """Rotation of each layer: by the position in the cache, or by positions that the graph is given."""
    found = layer_tables(b, tables, shape)
    if shape.grid_positions is None:
        return [Turns(mine) for mine in found]
    given = b.input(POSITIONS, ir.DataType.INT64, [_AXES, "batch", "sequence"])
    made = {mine: picked(b, mine, given, shape.grid_positions) for mine in dict.fromkeys(found) if mine}
    return [made.get(mine, Turns()) for mine in found]


def picked(b: GraphBuilder, tables: tuple[ir.Value, ...], given: ir.Value, positions: GridPositions) -> Turns:
    """Pick the rows of both tables by the positions, each angle those of its axis.

    Args:
        b: the graph.
        tables: cosines and sines float `[context, angles]`.
        given: int64 `[3, batch, sequence]`.
        positions: the axis of each angle.
    """
    mine = np.eye(_AXES, dtype=np.float32)[:, list(positions.axes)]  # one of three terms counts: the sum is exact
    mask = b.constant(mine.reshape(_AXES, 1, 1, -1))
    rows = [b.op("Gather", table, given, axis=0) for table in tables]
    return Turns(given=tuple(b.op("ReduceSum", b.op("Mul", row, mask), b.ints(0), keepdims=0) for row in rows))
