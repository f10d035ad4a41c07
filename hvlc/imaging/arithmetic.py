"""Arithmetic of sizes in a graph: constants, rounding, casts."""

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import GraphBuilder

FLOAT, DOUBLE = int(ir.DataType.FLOAT), int(ir.DataType.DOUBLE)
INT64, UINT8 = int(ir.DataType.INT64), int(ir.DataType.UINT8)


def f32(b: GraphBuilder, *values: float) -> ir.Value:
    """A float32 constant: a scalar for one value, else 1-D."""
    array = np.array(values, np.float32)
    return b.constant(array[0] if len(values) == 1 else array)


def f64(b: GraphBuilder, value: float) -> ir.Value:
    """A float64 scalar."""
    return b.constant(np.array(value, np.float64))


def ceil_div(b: GraphBuilder, value: ir.Value, divisor: int) -> ir.Value:
    """Ceiling of a positive int64 division."""
    return b.op("Div", b.op("Add", value, b.ints(divisor - 1)), b.ints(divisor))


def scaled_size(b: GraphBuilder, size: ir.Value, scale: ir.Value) -> ir.Value:
    """int64 `[2]`: `max(1, floor(size * scale))` of float32 `size` `[2]`."""
    floored = b.op("Floor", b.op("Mul", size, scale))
    return b.op("Cast", b.op("Max", floored, f32(b, 1.0)), to=INT64)


def capped_scale(b: GraphBuilder, size: ir.Value, scale: ir.Value, limit: ir.Value, cell: int) -> ir.Value:
    """The largest scale up to `scale` that keeps the image within `limit` cells (processing.cap_scale)."""
    cells = b.op("ReduceProd", ceil_div(b, scaled_size(b, size, scale), cell), keepdims=1)
    sides = b.op("Div", size, f32(b, cell))
    a, c = b.ops("Split", [sides], 2, axis=0, num_outputs=2)
    total = b.op("Add", a, c)
    free = b.op("Sub", b.op("Cast", limit, to=FLOAT), f32(b, 1.0))
    inner = b.op("Mul", b.op("Mul", b.op("Mul", f32(b, 4.0), a), c), free)
    root = b.op("Sqrt", b.op("Add", b.op("Mul", total, total), inner))
    bound = b.op("Div", b.op("Sub", root, total), b.op("Mul", b.op("Mul", f32(b, 2.0), a), c))
    return b.op("Where", b.op("LessOrEqual", cells, limit), scale, b.op("Min", scale, bound))
