"""Vision towers over an image's own grid of patches (transformers' Qwen2-VL, Qwen2.5-VL and Qwen3-VL vision models).

The graph takes a plain image, float `[1, 3, H, W]`, and keeps its patches row by row. transformers orders them by the
squares that merge, or by windows, and says by index tensors which is where; attention over all patches does not care,
windows and merged squares are reshapes, and positions follow from H and W. So nothing but the image enters the graph,
and with H and W fixed all that describes the grid is constant.

The nodes of norms and sums are named as those of other towers, so that whoever cuts a graph at its layers finds them;
weights keep the checkpoint's names.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError, raise_all
from hvlc.export import siglip
from hvlc.export.activations import activation_name
from hvlc.export.settings import refuse_surplus
from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import FLOAT, f32
from hvlc.weights.lazy import Computed

_EPSILON = 1e-6  # of all norms: none of the configurations says it
_QUICK = 1.702  # slope of the sigmoid in quick_gelu
# Added to scores of what a window does not have: a softmax makes 0 of it, and float16 of NPUs holds it. Qualcomm's
# compiler takes no masks of bits (onnxruntime-qnn 2.7).
_HIDDEN = -3e4
_ACTIVATIONS = ("silu", "quick_gelu", "gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Parts:
    """Names of a tower's layers inside a block and inside a merger.

    Attributes:
        mlp: of a block's MLP: its two linears, or gate, up and down.
        norm: of a merger.
        linears: of a merger.
    """

    mlp: tuple[str, ...]
    norm: str
    linears: tuple[str, str]


@dataclass(frozen=True)
class Windows:
    """Attention inside squares of patches.

    Attributes:
        side: of a window, in merged squares.
        full: layers whose patches see the whole image all the same.
    """

    side: int
    full: frozenset[int]


@dataclass(frozen=True)
class GridTower:
    """Sizes and parts of a tower.

    Attributes:
        width: of a patch's features.
        inner: width inside the MLPs.
        output: width of a visual token.
        heads: of the attention.
        layers: how many.
        patch: side of a patch in pixels.
        frames: of which a patch has a kernel each; a picture is so many equal ones.
        merge: side of the squares of patches that become one visual token.
        activation: transformers' name of that inside the MLPs.
        frequencies: float32 `[head width / 4]`, of the rotation by rows, and by columns.
        parts: names inside blocks and mergers.
        is_rms: whether norms are RMS norms.
        has_patch_bias: whether the patch embedding has a bias.
        positions: rows of the table of positions, a square; None: there is none.
        windows: None: all patches see each other in every layer.
        taps: layers whose output is merged too (DeepStack), in the order of their mergers.
    """

    width: int
    inner: int
    output: int
    heads: int
    layers: int
    patch: int
    frames: int
    merge: int
    activation: str
    frequencies: np.ndarray
    parts: Parts
    is_rms: bool = False
    has_patch_bias: bool = False
    positions: int | None = None
    windows: Windows | None = None
    taps: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Grid:
    """The patches of an image, inside the graph.

    Attributes:
        height: int64 `[1]`, rows.
        width: int64 `[1]`, columns.
        turns: cosines and sines of the rotation, float32 `[1, patches, head width / 2]`.
        windowed: the same for windows, float32 `[windows, patches, head width / 2]`, and what is added to scores, 0
            where a patch is there, float32 `[windows, 1, patches, patches]`; None: the tower has no windows.
    """

    height: ir.Value
    width: ir.Value
    turns: tuple[ir.Value, ir.Value]
    windowed: tuple[ir.Value, ir.Value, ir.Value] | None


def check_tower(shape: GridTower) -> None:
    """Compare a tower's sizes with each other.

    Raises:
        UserError: what the sizes, windows or taps contradict, all of it at once.
    """
    causes = []
    if shape.width % shape.heads or shape.width // shape.heads % 4:
        causes.append(f"a width of {shape.width} does not split into {shape.heads} heads of a multiple of 4")
    if shape.windows and not shape.windows.side:
        causes.append("window_size is smaller than the patches that merge")
    if shape.positions is not None and math.isqrt(shape.positions) ** 2 != shape.positions:
        causes.append(f"{shape.positions} num_position_embeddings are not a square table")
    layers = f"layers of the vision tower, which has {shape.layers}"
    outside = [tap for tap in shape.taps if not 0 <= tap < shape.layers]
    if outside or len(set(shape.taps)) < len(shape.taps):
        causes.append(f"deepstack_visual_indexes is {list(shape.taps)}, expected are different {layers}")
    raise_all([UserError("checkpoint.config", f"config.json: {cause}", "correct it") for cause in causes])


def tower(b: GraphBuilder, pixel_values: ir.Value, prefix: str, shape: GridTower) -> ir.Value:
    """Visual tokens of one image.

    Args:
        b: the graph under construction.
        pixel_values: float `[1, 3, H, W]`, both sides multiples of patch times merge.
        prefix: what the names of the vision model's parameters begin with in the checkpoint, the dot included.
        shape: of the tower, as `check_tower` takes it.

    Returns:
        float `[1, visual tokens, (1 + taps) * output]`, row-major tokens: of the last layer, then of each tap in the
        order of the layers.

    Raises:
        UserError: the activation is not exported, or more layers or mergers are stored than configured.
    """
    x, height, width = _patches(b, pixel_values, f"{prefix}patch_embed.proj", shape)
    grid = _grid(b, height, width, shape)
    if shape.positions is not None:
        x = b.op("Add", x, _positions(b, f"{prefix}pos_embed.weight", grid, shape.positions, shape.width))
    tapped = []
    for index in range(shape.layers):
        x = _block(b, x, prefix, index, grid, shape)
        if index in shape.taps:
            path = f"{prefix}deepstack_merger_list.{shape.taps.index(index)}"
            tapped.append(_merged(b, x, path, grid, shape))
    refuse_surplus(b, f"{prefix}blocks.{shape.layers}.norm1.weight")
    refuse_surplus(b, f"{prefix}deepstack_merger_list.{len(shape.taps)}.norm.weight")
    last = _merged(b, x, f"{prefix}merger", grid, shape, f"{prefix}post_layernorm")
    return b.op("Concat", last, *tapped, axis=-1) if tapped else last


def _patches(b: GraphBuilder, pixels: ir.Value, path: str, shape: GridTower) -> tuple[ir.Value, ir.Value, ir.Value]:
    """float `[1, patches, width]`, row by row, and the numbers of rows and columns, int64 `[1]`.

    A patch embedding that sees several frames sees the one image in each of them: its kernels are added up.
    """
    width, patch = shape.width, shape.patch
    name = f"{path}.weight"
    frames = b.parameter(name, (width, 3, shape.frames, patch, patch))
    kernel = b.initializer(name, Computed(_summed, (frames,), (width, 3, patch, patch), np.dtype(np.float32)))
    bias = [b.weight(f"{path}.bias", (width,))] if shape.has_patch_bias else []
    if not shape.has_patch_bias:
        refuse_surplus(b, f"{path}.bias")
    x = b.op("Conv", pixels, kernel, *bias, strides=[patch, patch], kernel_shape=[patch, patch], name=path)
    rows, columns = (b.op("Shape", x, start=axis, end=axis + 1) for axis in (2, 3))
    x = b.op("Transpose", b.op("Reshape", x, b.ints(1, width, -1)), perm=[0, 2, 1])
    return x, rows, columns


def _summed(frames: np.ndarray) -> np.ndarray:
    return np.asarray(np.sum(frames, 2, dtype=np.float32))


def _grid(b: GraphBuilder, height: ir.Value, width: ir.Value, shape: GridTower) -> _Grid:
    """Rotations by rows and columns, and the windows."""
    count = len(shape.frequencies)
    turns = rotations(b, height, width, shape.frequencies, shape.frequencies)
    grid = _Grid(height, width, turns, None)
    if shape.windows is None:
        return grid
    side = shape.windows.side * shape.merge
    cosines, sines = (_into_windows(b, turn, grid, side, 2 * count) for turn in turns)
    there = b.op("Expand", f32(b, 1.0), b.op("Concat", height, width, b.ints(1), axis=0))
    missing = b.op("Sub", f32(b, 1.0), _into_windows(b, there, grid, side, 1))
    hidden = b.op("Mul", b.op("Reshape", missing, b.ints(-1, 1, 1, side * side)), f32(b, _HIDDEN))
    mask = b.op("Expand", hidden, b.ints(1, 1, side * side, 1))
    return _Grid(height, width, turns, (cosines, sines, mask))


def rotations(
    b: GraphBuilder, height: ir.Value, width: ir.Value, by_row: np.ndarray, by_column: np.ndarray
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines of the rotation of each patch, first those of its row.

    Args:
        b: the graph under construction.
        height: int64 `[1]`, rows.
        width: int64 `[1]`, columns.
        by_row: float32 `[n]`, frequencies of the rotation by rows.
        by_column: as many, of that by columns.

    Returns:
        float32 `[1, patches, 2 * n]` each, row by row.
    """
    count = len(by_row)
    full = b.op("Concat", height, width, b.ints(count), axis=0)
    rows, columns = (b.constant(np.asarray(frequencies, np.float32)) for frequencies in (by_row, by_column))
    row_angles = b.op("Mul", b.op("Unsqueeze", _counted(b, height), b.ints(1, 2)), rows)
    column_angles = b.op("Mul", b.op("Unsqueeze", _counted(b, width), b.ints(0, 2)), columns)
    turns = []
    for function in ("Cos", "Sin"):
        halves = [b.op("Expand", b.op(function, angle), full) for angle in (row_angles, column_angles)]
        turns.append(b.op("Reshape", b.op("Concat", *halves, axis=-1), b.ints(1, -1, 2 * count)))
    return turns[0], turns[1]


def _counted(b: GraphBuilder, count: ir.Value) -> ir.Value:
    """float32 `[count]`: 0, 1, 2 ... of int64 `[1]`."""
    zero, one = (b.constant(np.array(number, np.int64)) for number in (0, 1))
    return b.op("Cast", b.op("Range", zero, b.op("Squeeze", count), one), to=FLOAT)


def _positions(b: GraphBuilder, name: str, grid: _Grid, count: int, width: int) -> ir.Value:
    """The learned table, resized to the grid with its corners on the image's, float `[1, patches, width]`.

    Bilinear: a matrix takes two rows of the table for each row of patches, another two columns for each column.
    """
    side = math.isqrt(count)
    rows = b.op("Reshape", b.weight(name, (count, width)), b.ints(side, side * width))
    rows = b.op("MatMul", _shares(b, grid.height, side), rows)
    rows = b.op("Reshape", rows, b.ints(-1, side, width))
    return b.op("Reshape", b.op("MatMul", _shares(b, grid.width, side), rows), b.ints(1, -1, width))


def _shares(b: GraphBuilder, count: ir.Value, side: int) -> ir.Value:
    """float32 `[count, side]`: the two weights of each position, by distance, as transformers' arithmetic has them."""
    last = b.op("Max", b.op("Cast", b.op("Sub", count, b.ints(1)), to=FLOAT), f32(b, 1.0))
    places = b.op("Div", b.op("Mul", _counted(b, count), f32(b, side - 1)), last)
    source = b.constant(np.arange(side, dtype=np.float32))
    distance = b.op("Abs", b.op("Sub", b.op("Unsqueeze", places, b.ints(1)), source))
    return b.op("Max", b.op("Sub", f32(b, 1.0), distance), f32(b, 0.0))


def _block(b: GraphBuilder, x: ir.Value, prefix: str, index: int, grid: _Grid, shape: GridTower) -> ir.Value:
    """Attention and MLP, each after a norm, float `[1, patches, width]`."""
    path, name = f"{prefix}blocks.{index}", f"{prefix}encoder.layers.{index}"
    y = _norm(b, x, f"{path}.norm1", f"{name}.layer_norm1", shape.width, shape)
    qkv = siglip.linear(b, y, f"{path}.attn.qkv", shape.width, 3 * shape.width)
    is_windowed = shape.windows is not None and index not in shape.windows.full
    attend = _attended_in_windows if is_windowed else _attended
    y = siglip.linear(b, attend(b, qkv, f"{path}.attn", grid, shape), f"{path}.attn.proj", shape.width, shape.width)
    x = b.op("Add", x, y, name=f"{name}.residual1")
    y = _norm(b, x, f"{path}.norm2", f"{name}.layer_norm2", shape.width, shape)
    return b.op("Add", x, _mlp(b, y, f"{path}.mlp", shape), name=f"{name}.residual2")


def _attended(b: GraphBuilder, qkv: ir.Value, path: str, grid: _Grid, shape: GridTower) -> ir.Value:
    """Every patch sees every other, float `[1, patches, width]`."""
    return _attention(b, qkv, path, grid.turns, None, shape)


def _attended_in_windows(b: GraphBuilder, qkv: ir.Value, path: str, grid: _Grid, shape: GridTower) -> ir.Value:
    """Every patch sees those of its window, float `[1, patches, width]`; windows at the border may be cut off."""
    if shape.windows is None or grid.windowed is None:
        raise ValueError("the tower has no windows")
    side = shape.windows.side * shape.merge
    cosines, sines, mask = grid.windowed
    windows = _into_windows(b, qkv, grid, side, 3 * shape.width)
    return _out_of_windows(b, _attention(b, windows, path, (cosines, sines), mask, shape), grid, side, shape.width)


def _attention(
    b: GraphBuilder,
    qkv: ir.Value,
    path: str,
    turns: tuple[ir.Value, ir.Value],
    mask: ir.Value | None,
    shape: GridTower,
) -> ir.Value:
    """Attention of queries, keys and values that are side by side, float `[batch, patches, 3 * width]`."""
    parts = b.ops("Split", [qkv], 3, axis=-1, num_outputs=3, name=f"{path}.split")
    return rotated_attention(b, parts, path, turns, shape.heads, shape.width // shape.heads, mask)


def rotated_attention(
    b: GraphBuilder,
    parts: Sequence[ir.Value],
    path: str,
    turns: tuple[ir.Value, ir.Value],
    heads: int,
    head_width: int,
    mask: ir.Value | None = None,
) -> ir.Value:
    """Attention between patches whose queries and keys turn.

    Args:
        b: the graph under construction.
        parts: queries, keys and values, float `[batch, patches, width]` each.
        path: dotted name of the attention.
        turns: cosines and sines, float32 `[batch, patches, head width / 2]`.
        heads: how many.
        head_width: channels of each.
        mask: what is added to scores, float32 `[batch, 1, patches, patches]`; None: nothing.

    Returns:
        float `[batch, patches, width]`.
    """
    q, k, v = parts
    q, k = (
        b.op("RotaryEmbedding", part, *turns, num_heads=heads, interleaved=0, name=f"{path}.{letter}_rotary")
        for letter, part in (("q", q), ("k", k))
    )
    masks = [] if mask is None else [mask]
    scale = 1 / math.sqrt(head_width)
    return b.op("Attention", q, k, v, *masks, q_num_heads=heads, kv_num_heads=heads, scale=scale, name=path)


def _into_windows(b: GraphBuilder, x: ir.Value, grid: _Grid, side: int, channels: int) -> ir.Value:
    """`[1, patches, channels]` to `[windows, side * side, channels]`; windows at the border are filled with zeros."""
    x = b.op("Reshape", x, b.op("Concat", grid.height, grid.width, b.ints(channels), axis=0))
    missing = [b.op("Mod", b.op("Neg", size), b.ints(side)) for size in (grid.height, grid.width)]
    x = b.op("Pad", x, b.op("Concat", b.ints(0, 0, 0), *missing, b.ints(0), axis=0))
    squares = b.op("Concat", b.ints(-1, side), _windows_of(b, grid.width, side), b.ints(side, channels), axis=0)
    x = b.op("Reshape", x, squares)
    return b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3, 4]), b.ints(-1, side * side, channels))


def _out_of_windows(b: GraphBuilder, x: ir.Value, grid: _Grid, side: int, channels: int) -> ir.Value:
    """`[windows, side * side, channels]` to `[1, patches, channels]`."""
    across = _windows_of(b, grid.width, side)
    x = b.op("Reshape", x, b.op("Concat", b.ints(-1), across, b.ints(side, side, channels), axis=0))
    x = b.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    whole = b.op("Concat", b.ints(-1), b.op("Mul", across, b.ints(side)), b.ints(channels), axis=0)
    x = b.op("Reshape", x, whole)
    x = b.op("Slice", x, b.ints(0, 0), b.op("Concat", grid.height, grid.width, axis=0), b.ints(0, 1))
    return b.op("Reshape", x, b.ints(1, -1, channels))


def _windows_of(b: GraphBuilder, size: ir.Value, side: int) -> ir.Value:
    """Number of windows of a side that a number of patches needs, int64 `[1]`."""
    return b.op("Div", b.op("Add", size, b.ints(side - 1)), b.ints(side))


def _mlp(b: GraphBuilder, x: ir.Value, path: str, shape: GridTower) -> ir.Value:
    """Two linears, or a gated MLP."""
    *into, out = (f"{path}.{part}" for part in shape.parts.mlp)
    first, *rest = (siglip.linear(b, x, part, shape.width, shape.inner) for part in into)
    x = activation(b, first, shape.activation)
    for up in rest:
        x = b.op("Mul", x, up, name=f"{path}.gated")
    return siglip.linear(b, x, out, shape.inner, shape.width)


def activation(b: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    """The activation of a transformers name inside an MLP.

    Raises:
        UserError: it is not exported.
    """
    usual = activation_name(name, _ACTIVATIONS, "hidden_act")
    if usual == "silu":
        return b.op("Mul", x, b.op("Sigmoid", x))
    if usual == "quick_gelu":
        return b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, f32(b, _QUICK))))
    return siglip.activation(b, x, usual)


def _merged(
    b: GraphBuilder, x: ir.Value, path: str, grid: _Grid, shape: GridTower, named: str | None = None
) -> ir.Value:
    """Squares of patches become visual tokens: a norm, two linears; float `[1, visual tokens, output]`.

    Args:
        b: the graph under construction.
        x: float `[1, patches, width]`.
        path: dotted name of the merger.
        grid: of the patches.
        shape: of the tower.
        named: of the norm's node, which is over each patch. None: a tap's, which is over a whole square.
    """
    square, norm = shape.merge**2 * shape.width, f"{path}.{shape.parts.norm}"
    if named is not None:
        x = _norm(b, x, norm, named, shape.width, shape)
    x = squares(b, x, grid.width, shape.merge, shape.width)
    if named is None:
        x = _norm(b, x, norm, norm, square, shape)
    first, second = (f"{path}.{part}" for part in shape.parts.linears)
    x = siglip.activation(b, siglip.linear(b, x, first, square, square), "gelu")
    return siglip.linear(b, x, second, square, shape.output)


def squares(b: GraphBuilder, x: ir.Value, columns: ir.Value, merge: int, width: int) -> ir.Value:
    """Join squares of patches: a pixel shuffle over any grid.

    Args:
        b: the graph under construction.
        x: float `[1, patches, width]`, row by row.
        columns: int64 `[1]`, patches of a row.
        merge: side of a square.
        width: of a patch's features.

    Returns:
        float `[1, visual tokens, merge * merge * width]`.
    """
    across = b.op("Div", columns, b.ints(merge))
    x = b.op("Reshape", x, b.op("Concat", b.ints(-1, merge), across, b.ints(merge * width), axis=0))
    return b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3]), b.ints(1, -1, merge * merge * width))


def _norm(b: GraphBuilder, x: ir.Value, path: str, name: str, width: int, shape: GridTower) -> ir.Value:
    """A norm over the last axis, of the tower's kind."""
    weight = b.weight(f"{path}.weight", (width,))
    if shape.is_rms:
        return b.op("RMSNormalization", x, weight, axis=-1, epsilon=_EPSILON, name=name)
    bias = b.weight(f"{path}.bias", (width,))
    return b.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=_EPSILON, name=name)
