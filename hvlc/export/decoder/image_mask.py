"""Attention mask of a decoder whose visual tokens see each other (Gemma 3), those of one image in a block.

GroupQueryAttention is causal, and a bias of its scores cannot show what causality hides. So it is told not to be
(`causal = 0`), and all of the mask is a bias: a token sees what is not behind it, and the block that it is in; where a
layer has a window, nothing before that (transformers' `create_masks_for_vision_model`). A block is a run of visual
tokens; it lies within one run of the graph, as prompts do.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from hvlc.export.decoder.shape import DecoderShape
from hvlc.graphs.builder import GraphBuilder

_FLOAT, _INT32, _INT64 = (int(t) for t in (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64))
_HIDDEN = float(np.finfo(np.float16).min)  # the weight of such a score is 0 exactly


def image_masks(
    b: GraphBuilder, marks: ir.Value, lengths: tuple[ir.Value, ir.Value], shape: DecoderShape
) -> Mapping[int | None, ir.Value]:
    """Biases of the scores, float `[batch, 1, sequence, total]`, by the window of a layer.

    Args:
        b: the graph.
        marks: float `[batch, sequence, 1]`, 1 for visual tokens and 0 for others.
        lengths: last position of each sequence, int32 `[batch]`, and length of the longest, int32 scalar.
        shape: of the decoder.
    """
    last, total = (b.op("Cast", value, to=_INT64) for value in lengths)
    count = b.op("Squeeze", b.op("Shape", marks, start=1, end=2), b.ints(0))
    one, zero = (b.constant(np.array(value, np.int64)) for value in (1, 0))
    steps = b.op("Range", zero, count, one)
    first = b.op("Add", b.op("Sub", last, count), one)  # position of the first token of this run
    queries = b.op("Unsqueeze", b.op("Add", b.op("Unsqueeze", first, b.ints(1)), steps), b.ints(1, 3))
    keys = b.op("Range", zero, total, one)
    blocks = _blocks(b, marks)
    of_queries = b.op("Unsqueeze", blocks, b.ints(1, 3))
    before = b.op("Reshape", b.op("Sub", total, count), b.ints(1))
    pads = b.op("Concat", b.ints(0), before, b.ints(0, 0), axis=0)
    of_keys = b.op("Unsqueeze", b.op("Pad", blocks, pads), b.ints(1, 2))
    inside = b.op("And", b.op("Equal", of_queries, of_keys), b.op("Greater", of_queries, zero))
    seen = b.op("Or", b.op("LessOrEqual", keys, queries), inside)
    windows = dict.fromkeys(shape.windows[: shape.layers])
    return {window: _bias(b, seen, queries, keys, window) for window in windows}


def _blocks(b: GraphBuilder, marks: ir.Value) -> ir.Value:
    """Number of the block that each token is in, int64 `[batch, sequence]`; 0: it is in none."""
    visual = b.op("Cast", b.op("Squeeze", marks, b.ints(2)), to=_INT64)
    shifted = b.op("Pad", visual, b.ints(0, 1, 0, -1))  # what stands before each token
    begins = b.op("Greater", visual, shifted)
    numbers = b.op("CumSum", b.op("Cast", begins, to=_INT64), b.constant(np.array(1, np.int64)))
    return b.op("Mul", numbers, visual)


def _bias(b: GraphBuilder, seen: ir.Value, queries: ir.Value, keys: ir.Value, window: int | None) -> ir.Value:
    name = "image_mask" if window is None else f"image_mask.window_{window}"
    if window is not None:
        reach = b.op("Sub", queries, b.constant(np.array(window, np.int64)))
        seen = b.op("And", seen, b.op("Greater", keys, reach))
    shown, hidden = (b.constant(np.array(value, np.float32)) for value in (0, _HIDDEN))
    return b.op("Where", seen, shown, hidden, name=name)
