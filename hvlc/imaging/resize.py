"""Resizing in a graph, byte for byte as Pillow or torch do it: filters that ONNX `Resize` has not, and their rounding.

A pass along one axis is a product with a matrix of weights: for every output row the kernel around its centre, as wide
as the filter or, antialiased, as the step between two outputs where that is wider; normalized, and rounded to 22 bits
after the point (Pillow's `Resample.c`), or to 16 bits in all (torch's `UpSampleKernel.cpp`). The products of bytes and
weights are summed in float64, which holds them exactly, in whatever order a runtime sums; so every platform finds the
same bytes. Only a band of the matrix is not zero. Output rows are therefore made in blocks, each from the input rows
that its weights reach, in a `Scan` that keeps whole images as bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError
from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import DOUBLE, INT64, UINT8, f64

_WEIGHT_BITS = 22  # after the point; PRECISION_BITS of Pillow's Resample.c for 8 bits a channel, and torch's most
_SHORT = 1 << 15  # torch's weights are below it
_BLOCK = 16  # output rows of a block: larger ones multiply more zeros, smaller ones copy more rows twice
_SUPPORT = {"bilinear": 1, "bicubic": 2, "lanczos": 3}


@dataclass(frozen=True)
class Resampling:
    """Filter and sizes by which a processor resizes.

    Attributes:
        filter: "bilinear", "bicubic" or "lanczos".
        antialias: whether the kernel widens where an image becomes smaller, as Pillow's always does. False is torch's
            `interpolate`: its cubic has another constant, and taps outside the image count for the border.
        width_first: whether the width is resized first whatever the sizes are, as torch and Pillow before 13 do.
            False: the height first where it loses more than twice as many pixels as the width, as Pillow 13 does.
            What differs are roundings between the two, and clipping of noise.
        short_weights: whether weights have as many bits after the point as keep them within 16 bits, as torch's have
            for bytes on processors with AVX2 (elsewhere it computes in float32, within a grey level). False: 22 bits.
    """

    filter: str
    antialias: bool = True
    width_first: bool = False
    short_weights: bool = False

    def __post_init__(self) -> None:
        fix = "set `resample` and `antialias` of the image processor to what hvlc has"
        if self.filter not in _SUPPORT:
            cause = f"images are resized by {self.filter}; hvlc has {', '.join(_SUPPORT)}"
            raise UserError("checkpoint.processor", cause, fix)
        if self.filter == "lanczos" and not self.antialias:
            cause = "images are resized by lanczos without antialiasing, which no library does"
            raise UserError("checkpoint.processor", cause, fix)


class _Taps(NamedTuple):
    """Weights of output rows, and the input rows that they apply to.

    Attributes:
        first: first input row of every output row, int64 `[rows, 1]`; may lie outside.
        end: one past the last, int64 `[rows, 1]`.
        inputs: input row of every weight, int64 `[rows, taps]`.
        weights: float64 `[rows, taps]`, multiples of a power of two; zero from `end` on.
    """

    first: ir.Value
    end: ir.Value
    inputs: ir.Value
    weights: ir.Value


def resized(b: GraphBuilder, image: ir.Value, size: ir.Value, resampling: Resampling, name: str) -> ir.Value:
    """uint8 `[h, w, 3]` resized to int64 `size` `[height, width]`: one axis, rounded to bytes, then the other.

    An axis that keeps its size keeps its bytes.

    Args:
        b: builder of the graph.
        image: uint8 `[h, w, 3]`.
        size: int64 `[2]`.
        resampling: filter, antialiasing and order.
        name: prefix of the names of subgraphs; unique in the graph.
    """
    height, width = b.ops("Split", [size], 2, axis=0, num_outputs=2)
    height_first = _height_first(b, image, size, resampling)
    rows = _either(b, height_first, image, (0, 1, 2), (1, 2, 0), f"{name}_in")
    first = _resized_rows(b, rows, b.op("Where", height_first, height, width), resampling, f"{name}_first")
    turned = _either(b, height_first, first, (1, 2, 0), (2, 0, 1), f"{name}_between")
    second = _resized_rows(b, turned, b.op("Where", height_first, width, height), resampling, f"{name}_second")
    return _either(b, height_first, second, (2, 0, 1), (0, 1, 2), f"{name}_out")


def _height_first(b: GraphBuilder, image: ir.Value, size: ir.Value, resampling: Resampling) -> ir.Value:
    """Whether the height is resized before the width, bool `[1]`."""
    if resampling.width_first:
        return b.constant(np.array([False]))
    lost = b.op("Sub", b.op("Shape", image, start=0, end=2), size)
    down, across = b.ops("Split", [lost], 2, axis=0, num_outputs=2)
    is_more = b.op("Greater", down, b.op("Mul", across, b.ints(2)))
    return b.op("And", b.op("Greater", down, b.ints(0)), is_more)


_Axes = tuple[int, int, int]


def _either(b: GraphBuilder, condition: ir.Value, image: ir.Value, yes: _Axes, no: _Axes, name: str) -> ir.Value:
    """Axes of a 3-D image permuted by `yes` where bool `[1]` `condition` holds, else by `no`.

    Only one axis of three moves in what is asked here: onnxruntime is several times slower at swapping the outer two.
    """
    branches = []
    for suffix, axes in (("yes", yes), ("no", no)):
        inner = GraphBuilder(f"{name}_{suffix}", subgraph=True)
        moved = inner.op("Transpose", image, perm=axes) if axes != (0, 1, 2) else inner.op("Identity", image)
        inner.output(moved, f"{name}_{suffix}/image", ir.DataType.UINT8, [None, None, None])
        branches.append(inner.graph)
    return b.op("If", b.op("Squeeze", condition), then_branch=branches[0], else_branch=branches[1], name=name)


def _resized_rows(b: GraphBuilder, image: ir.Value, target: ir.Value, resampling: Resampling, name: str) -> ir.Value:
    """uint8 `[rows, n, m]` resized along its first axis to int64 `[1]` rows."""
    source = b.op("Shape", image, start=0, end=1)
    kept, changed = (GraphBuilder(f"{name}_{branch}", subgraph=True) for branch in ("kept", "changed"))
    made = _changed_rows(changed, image, source, target, resampling, name)
    for branch, value in ((kept, kept.op("Identity", image)), (changed, made)):
        branch.output(value, f"{branch.graph.name}/image", ir.DataType.UINT8, [None, None, None])
    is_kept = b.op("Squeeze", b.op("Equal", source, target))
    return b.op("If", is_kept, then_branch=kept.graph, else_branch=changed.graph, name=name)


def _changed_rows(
    b: GraphBuilder, image: ir.Value, source: ir.Value, target: ir.Value, resampling: Resampling, name: str
) -> ir.Value:
    """The same, by blocks of output rows; rows that fill up the last block repeat the last row."""
    block = b.op("Min", target, b.ints(_BLOCK))
    blocks = b.op("Div", b.op("Sub", b.op("Add", target, block), b.ints(1)), block)
    outputs = b.op("Min", _range(b, b.op("Mul", blocks, block)), b.op("Sub", target, b.ints(1)))
    taps = _taps(b, resampling, source, target, b.op("Unsqueeze", outputs, b.ints(1)))
    starts, bands = _bands(b, taps, source, blocks, block)
    body = _block_of_rows(f"{name}_block", b.op("Reshape", image, b.ints(0, -1)))
    made = b.op("Scan", starts, bands, body=body, num_scan_inputs=2)
    shape = b.op("Concat", b.ints(-1), b.op("Shape", image, start=1, end=3), axis=0)
    return b.op("Slice", b.op("Reshape", made, shape), b.ints(0), target, b.ints(0))


def _taps(b: GraphBuilder, resampling: Resampling, source: ir.Value, target: ir.Value, outputs: ir.Value) -> _Taps:
    """Weights of the output rows int64 `[rows, 1]`; every operation in the order of Pillow's `precompute_coeffs`."""
    half, support = f64(b, 0.5), _SUPPORT[resampling.filter]
    step = b.op("Div", b.op("Cast", source, to=DOUBLE), b.op("Cast", target, to=DOUBLE))
    stretch = b.op("Max", step, f64(b, 1.0)) if resampling.antialias else b.constant(np.array([1.0]))
    reach = b.op("Mul", f64(b, support), stretch)
    centre = b.op("Mul", b.op("Add", b.op("Cast", outputs, to=DOUBLE), half), step)
    first = _floored(b, b.op("Add", b.op("Sub", centre, reach), half))
    if resampling.antialias:
        first = b.op("Max", first, b.ints(0))
        end = b.op("Min", _floored(b, b.op("Add", b.op("Add", centre, reach), half)), source)
    else:
        end = b.op("Add", first, b.ints(2 * support))
    count = b.op("Add", b.op("Mul", b.op("Cast", b.op("Ceil", reach), to=INT64), b.ints(2)), b.ints(1))
    index = b.op("Add", first, _range(b, count))
    offset = b.op("Add", b.op("Sub", b.op("Cast", index, to=DOUBLE), centre), half)
    distance = b.op("Mul", offset, b.op("Div", f64(b, 1.0), stretch))
    kernel = _KERNELS[resampling.filter](b, distance, resampling.antialias)
    values = b.op("Where", b.op("Less", index, end), kernel, f64(b, 0.0))
    weights = b.op("Div", values, _sum(b, values))
    scale = _short_scale(b, weights) if resampling.short_weights else f64(b, 2.0**_WEIGHT_BITS)
    return _Taps(first, end, index, _rounded(b, weights, scale))


def _sum(b: GraphBuilder, values: ir.Value) -> ir.Value:
    """Sums of rows, added from left to right as a C loop does."""
    return b.op("Slice", b.op("CumSum", values, b.ints(1)), b.ints(-1), b.ints(1 << 62), b.ints(1))


def _short_scale(b: GraphBuilder, weights: ir.Value) -> ir.Value:
    """The largest power of two, up to 2^22, with which the largest weight is rounded to below 2^15; float64 `[1]`."""
    powers = b.constant(2.0 ** np.arange(_WEIGHT_BITS + 1))
    largest = b.op("Reshape", b.op("ReduceMax", weights, keepdims=0), b.ints(1))
    rounded = b.op("Floor", b.op("Add", b.op("Mul", largest, powers), f64(b, 0.5)))
    fits = b.op("Less", rounded, f64(b, _SHORT))
    return b.op("ReduceMax", b.op("Where", fits, powers, f64(b, 1.0)), keepdims=1)


def _rounded(b: GraphBuilder, weights: ir.Value, scale: ir.Value) -> ir.Value:
    """Float64 rounded to multiples of 1 / `scale`, halves away from zero."""
    scaled = b.op("Mul", weights, scale)
    nearest = b.op("Floor", b.op("Add", b.op("Abs", scaled), f64(b, 0.5)))
    return b.op("Div", b.op("Mul", b.op("Sign", scaled), nearest), scale)


def _bands(
    b: GraphBuilder, taps: _Taps, source: ir.Value, blocks: ir.Value, block: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """First input row of every block, int64 `[blocks]`, and its weights, float64 `[blocks, block, length]`.

    Taps outside the image count for its border.
    """
    last = b.op("Sub", source, b.ints(1))
    zero = b.ints(0)
    shape = b.op("Concat", blocks, block, axis=0)
    firsts = b.op("Reshape", b.op("Min", b.op("Max", taps.first, zero), last), shape)
    ends = b.op("Reshape", b.op("Min", taps.end, source), shape)
    starts = b.op("Slice", firsts, zero, b.ints(1), b.ints(1))
    reached = b.op("Slice", ends, b.ints(-1), b.ints(1 << 62), b.ints(1))
    length = b.op("Reshape", b.op("ReduceMax", b.op("Sub", reached, starts), keepdims=0), b.ints(1))
    starts = b.op("Min", starts, b.op("Sub", source, length))
    inside = b.op("Min", b.op("Max", taps.inputs, zero), last)
    by_block = b.op("Concat", shape, b.ints(-1), axis=0)
    position = b.op("Sub", b.op("Reshape", inside, by_block), b.op("Unsqueeze", starts, b.ints(2)))
    position = b.op("Min", position, b.op("Sub", length, b.ints(1)))  # beyond the end, where weights are zero
    empty = b.op("Expand", f64(b, 0.0), b.op("Concat", shape, length, axis=0))
    weights = b.op("Reshape", taps.weights, by_block)
    bands = b.op("ScatterElements", empty, position, weights, axis=2, reduction="add")
    return b.op("Squeeze", starts, b.ints(1)), bands


def _block_of_rows(name: str, rows: ir.Value) -> ir.Graph:
    """The body of the scan: the first input row and the weights of a block to its output rows, uint8 `[block, n]`."""
    b = GraphBuilder(name, subgraph=True)
    first = b.input(f"{name}/first", ir.DataType.INT64, [])
    weights = b.input(f"{name}/weights", ir.DataType.DOUBLE, ["block", "length"])
    start = b.op("Unsqueeze", first, b.ints(0))
    end = b.op("Add", start, b.op("Shape", weights, start=1, end=2))
    window = b.op("Cast", b.op("Slice", rows, start, end, b.ints(0)), to=DOUBLE)
    sums = b.op("Add", b.op("MatMul", weights, window), f64(b, 0.5))
    levels = b.op("Cast", b.op("Clip", sums, f64(b, 0.0), f64(b, 255.0)), to=UINT8)
    b.output(levels, f"{name}/levels", ir.DataType.UINT8, ["block", "row_bytes"])
    return b.graph


def _range(b: GraphBuilder, count: ir.Value) -> ir.Value:
    """int64 `[count]`: 0, 1, 2 ... of int64 `[1]`."""
    return b.op("Range", b.constant(np.array(0)), b.op("Squeeze", count), b.constant(np.array(1)))


def _floored(b: GraphBuilder, value: ir.Value) -> ir.Value:
    return b.op("Cast", b.op("Floor", value), to=INT64)


def _bilinear(b: GraphBuilder, distance: ir.Value, _: bool) -> ir.Value:
    """`max(0, 1 - |x|)`."""
    return b.op("Max", b.op("Sub", f64(b, 1.0), b.op("Abs", distance)), f64(b, 0.0))


def _bicubic(b: GraphBuilder, distance: ir.Value, antialias: bool) -> ir.Value:
    """Keys' cubic convolution with a = -0.5, torch's -0.75 without antialiasing."""
    a = -0.5 if antialias else -0.75
    x = b.op("Abs", distance)
    inner = b.op("Mul", b.op("Sub", b.op("Mul", f64(b, a + 2), x), f64(b, a + 3)), x)
    inner = b.op("Add", b.op("Mul", inner, x), f64(b, 1.0))
    outer = b.op("Add", b.op("Mul", b.op("Sub", x, f64(b, 5.0)), x), f64(b, 8.0))
    outer = b.op("Mul", b.op("Sub", b.op("Mul", outer, x), f64(b, 4.0)), f64(b, a))
    far = b.op("Where", b.op("Less", x, f64(b, 2.0)), outer, f64(b, 0.0))
    return b.op("Where", b.op("Less", x, f64(b, 1.0)), inner, far)


def _lanczos(b: GraphBuilder, distance: ir.Value, _: bool) -> ir.Value:
    """`sinc(x) sinc(x / 3)` for -3 <= x < 3."""
    product = b.op("Mul", _sinc(b, distance), _sinc(b, b.op("Div", distance, f64(b, 3.0))))
    inside = b.op("And", b.op("LessOrEqual", f64(b, -3.0), distance), b.op("Less", distance, f64(b, 3.0)))
    return b.op("Where", inside, product, f64(b, 0.0))


def _sinc(b: GraphBuilder, x: ir.Value) -> ir.Value:
    angle = b.op("Mul", x, f64(b, np.pi))
    is_zero = b.op("Equal", x, f64(b, 0.0))
    angle = b.op("Where", is_zero, f64(b, 1.0), angle)
    return b.op("Where", is_zero, f64(b, 1.0), b.op("Div", b.op("Sin", angle), angle))


_KERNELS: dict[str, Callable[[GraphBuilder, ir.Value, bool], ir.Value]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}
