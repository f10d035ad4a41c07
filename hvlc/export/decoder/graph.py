"""Decoders of the Llama shape: pre-norm, GQA, gated MLP, rotary positions.

Which parts a decoder has (query/key norms, biases) is said by its configuration and held against the parameters
it stores. Attention is onnxruntime's GroupQueryAttention, which keeps the KV cache in place and rotates queries
and keys. What a family stores otherwise (fused projections, neighbours that rotate together, multipliers) is brought
to this shape where weights are read, so that every pass knows the graph.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hvlc.export.decoder.attention import attention
from hvlc.export.decoder.embedding import look_up
from hvlc.export.decoder.image_mask import image_masks
from hvlc.export.decoder.parts import gain, last_position, mlp, rms_norm, scaled
from hvlc.export.decoder.rotary import RotaryTables
from hvlc.export.decoder.rotation import Turns, layer_turns
from hvlc.export.decoder.shape import DecoderShape
from hvlc.export.decoder.short_convolution import short_convolution
from hvlc.export.decoder.states import past_states, present_states
from hvlc.export.settings import refuse_surplus
from hvlc.graphs.builder import GraphBuilder


def decoder(
    b: GraphBuilder,
    prefix: str,
    head: str,
    shape: DecoderShape,
    rotary: RotaryTables,
    table: str | None = None,
) -> ir.Model:
    """The decoder as onnxruntime-genai drives it: embeddings or tokens and KV cache in, last logits and KV cache out.

    Args:
        b: an empty graph.
        prefix: dotted name of the decoder in the checkpoint.
        head: dotted name of the parameter of the language-model head (the embedding when tied).
        shape: dimensions and parts.
        rotary: tables by the kind of layers that read them.
        table: dotted name of the embedding to look tokens up in; None when another graph does that.

    Returns:
        Inputs `inputs_embeds` float `[batch, sequence, hidden + side channels]` (or `input_ids` int64
        `[batch, sequence]` with a table), `attention_mask` int64 `[batch, total]`, `position_ids` int64
        `[3, batch, sequence]` where positions are given, `past_key_values.N.key|value` (`past_key_values.N.conv` of a
        layer with a convolution); outputs `logits` float `[batch, 1, vocabulary]` (the last position only: an unpruned
        head on a long image prompt is gigabytes), `present.N.key|value|conv`.

    Raises:
        UserError: the checkpoint stores a bias, norm or layer that its configuration does not have.
    """
    if table is None:
        embeds = b.input("inputs_embeds", ir.DataType.FLOAT, ["batch", "sequence", shape.hidden + shape.side_channels])
        x, taps, marks = _streams(b, embeds, prefix, shape)
    else:
        ids = b.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
        x, taps = look_up(b, table, ids, shape.vocabulary, shape.hidden, shape.multipliers.tokens), []
        marks = None
    if shape.multipliers.embedding != 1:  # not in the table: a tied head reads that, and image features pass it by
        factor = b.constant(np.array(shape.multipliers.embedding, np.float32))
        x = b.op("Mul", x, factor, name=f"{prefix}.embedding_multiplier")
    mask = b.input("attention_mask", ir.DataType.INT64, ["batch", "total"])
    past = past_states(b, shape)
    lengths = b.op("Sub", b.op("ReduceSum", mask, b.ints(1), keepdims=0), b.ints(1))
    lengths = b.op("Cast", lengths, to=int(ir.DataType.INT32))
    total = b.op("Gather", b.op("Shape", mask), b.constant(np.array(1, np.int64)), axis=0)
    total = b.op("Cast", total, to=int(ir.DataType.INT32))
    turns = layer_turns(b, rotary, shape)
    masks = {} if marks is None else image_masks(b, marks, (lengths, total), shape)
    present = []
    for index in range(shape.layers):
        layer = f"{prefix}.layers.{index}"
        normed = rms_norm(b, x, f"{layer}.{shape.norms.attention}", shape.hidden, shape)
        given = past[index], (lengths, total), turns[index], masks.get(shape.windows[index])
        mixed, *state = _mixed(b, normed, layer, shape, index, *given)
        mixed = _added(b, mixed, layer, shape.norms.attended, shape)
        if index == shape.layers - 1:
            x = last_position(b, x, layer)
        x = b.op("Add", x, mixed, name=f"{layer}.residual1")
        normed = rms_norm(b, x, f"{layer}.{shape.norms.mlp}", shape.hidden, shape)
        transformed = _added(b, mlp(b, normed, f"{layer}.mlp", shape), layer, shape.norms.transformed, shape)
        x = b.op("Add", x, transformed, name=f"{layer}.residual2")
        if index < len(taps):
            tap = last_position(b, taps[index], f"{layer}.tap") if index == shape.layers - 1 else taps[index]
            x = b.op("Add", x, tap, name=f"{layer}.residual3")
        present.append(state)
    refuse_surplus(b, f"{prefix}.layers.{shape.layers}.{shape.norms.attention}.weight")
    x = _last_norm(b, x, f"{prefix}.norm", shape)
    logits = b.op("MatMul", x, _head_weight(b, head, table, shape), name="lm_head")
    b.output(logits, "logits", ir.DataType.FLOAT, ["batch", 1, shape.vocabulary])
    present_states(b, shape, present)
    return b.model()


def _added(b: GraphBuilder, x: ir.Value, layer: str, norm: str | None, shape: DecoderShape) -> ir.Value:
    """Output of a part of a layer for the residual stream, normalized where the decoder does that."""
    return x if norm is None else rms_norm(b, x, f"{layer}.{norm}", shape.hidden, shape)


def _streams(
    b: GraphBuilder, embeds: ir.Value, prefix: str, shape: DecoderShape
) -> tuple[ir.Value, list[ir.Value], ir.Value | None]:
    """Channels of the residual stream and of each tap, float `[batch, sequence, hidden]`, and marks of visual tokens.

    The marks are float `[batch, sequence, 1]`; None: the decoder reads none.
    """
    if not shape.side_channels:
        return embeds, [], None
    names = [f"{prefix}.embeddings", *(f"{prefix}.layers.{index}.image_features" for index in range(shape.taps))]
    starts = [at * shape.hidden for at in range(len(names))]
    cut = [
        b.op("Slice", embeds, b.ints(start), b.ints(start + shape.hidden), b.ints(2), name=name)
        for name, start in zip(names, starts, strict=True)
    ]
    ends = b.ints(len(names) * shape.hidden), b.ints(len(names) * shape.hidden + 1)
    marks = b.op("Slice", embeds, *ends, b.ints(2), name=f"{prefix}.image_marks") if shape.image_blocks else None
    return cut[0], cut[1:], marks


def _mixed(
    b: GraphBuilder,
    x: ir.Value,
    layer: str,
    shape: DecoderShape,
    index: int,
    past: Sequence[ir.Value],
    lengths: tuple[ir.Value, ir.Value],
    turns: Turns,
    mask: ir.Value | None,
) -> tuple[ir.Value, ...]:
    """Output of a layer's attention or convolution for the residual stream, and the state for later positions."""
    if shape.convolves(index):
        return short_convolution(b, x, f"{layer}.conv", shape, index, *past)
    return attention(b, x, f"{layer}.self_attn", shape, index, past, lengths, turns, mask)


def _last_norm(b: GraphBuilder, x: ir.Value, path: str, shape: DecoderShape) -> ir.Value:
    """The norm before the head, which divides the logits too: the head stays equal to the table that it is tied to."""
    factors = gain(b, path, shape.hidden, shape)
    if shape.multipliers.logits != 1:
        factors = scaled(factors, 1 / shape.multipliers.logits)
    weight = b.initializer(f"{path}.weight", factors)
    return b.op("RMSNormalization", x, weight, axis=-1, epsilon=shape.epsilon, name=path)


def _head_weight(b: GraphBuilder, head: str, table: str | None, shape: DecoderShape) -> ir.Value:
    """The head's weight float `[hidden, vocabulary]`.

    One graph cannot hold a tied table twice under one name, so the head's view of it gets the name that the head
    has when it is not tied; both are expressions over the same stored tensor.
    """
    refuse_surplus(b, "lm_head.bias")
    if head != table:
        return b.weight(head, (shape.vocabulary, shape.hidden), transpose=True)
    return b.initializer("lm_head.weight", b.parameter(head, (shape.vocabulary, shape.hidden)).transpose())
