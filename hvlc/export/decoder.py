"""Decoders of the Llama shape: pre-norm, GQA, gated MLP, rotary positions.

Which parts a decoder has (query/key norms, biases) is said by its configuration and held against the parameters
it stores. Attention is onnxruntime's GroupQueryAttention, which keeps the KV cache in place and rotates queries
and keys. What a family stores otherwise (fused projections, neighbours that rotate together, multipliers) is brought
to this shape where weights are read, so that every pass knows the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hvlc.export.settings import refuse_surplus
from hvlc.graphs.builder import LAST_POSITION, MICROSOFT, GraphBuilder
from hvlc.weights.lazy import Constant, Expression

_ROTATED = ("q_proj", "k_proj")
_ADDED = ("o_proj", "down_proj")  # what is added to the residual stream


@dataclass(frozen=True)
class FusedRows:
    """Where a projection is stored inside a fused one.

    Attributes:
        name: of the fused projection.
        start: first row of this one.
        total: rows of all of it.
    """

    name: str
    start: int
    total: int


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in a decoder (Granite).

    Attributes:
        embedding: of what enters the first layer.
        residual: of what attention and MLP add to the residual stream.
        attention: of the products of queries and keys; None: one by the root of the head's width.
        logits: divisor of the logits.
    """

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logits: float = 1.0


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions and parts of a decoder.

    Attributes:
        layers: number of layers.
        hidden: model width.
        intermediate: width of the gated MLP.
        heads: query heads.
        kv_heads: key/value heads.
        head_size: width of one head.
        vocabulary: rows of the embedding.
        epsilon: of the RMS norms.
        context: longest sequence in tokens.
        rotary: for each layer, whether it rotates queries and keys; a NoPE layer does not.
        windows: for each layer, how many positions a token sees, itself included; None for all before it.
        biases: names of the projections that add a bias.
        head_norms: whether queries and keys are normalized per head (Qwen3).
        fused: for each projection that is stored in a fused one, where (Phi3).
        neighbours: whether channels 2i and 2i + 1 of a stored head rotate together, not i and i + half (ERNIE).
        multipliers: constant factors (Granite).
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    context: int
    rotary: tuple[bool, ...]
    windows: tuple[int | None, ...]
    biases: frozenset[str] = frozenset()
    head_norms: bool = False
    fused: Mapping[str, FusedRows] = field(default_factory=dict)
    neighbours: bool = False
    multipliers: Multipliers = Multipliers()


def _rms_norm(b: GraphBuilder, x: ir.Value, path: str, width: int, epsilon: float) -> ir.Value:
    return b.op("RMSNormalization", x, b.weight(f"{path}.weight", (width,)), axis=-1, epsilon=epsilon, name=path)


def _linear(b: GraphBuilder, x: ir.Value, path: str, into: int, out: int, shape: DecoderShape) -> ir.Value:
    """The projection at `path`, with a bias exactly where the configuration has one."""
    weight = b.initializer(f"{path}.weight", _values(b, path, "weight", (out, into), shape).transpose())
    y = b.op("MatMul", x, weight, name=path)
    if path.rpartition(".")[2] not in shape.biases:
        refuse_surplus(b, f"{_stored_at(path, shape)}.bias")
        return y
    bias = b.initializer(f"{path}.bias", _values(b, path, "bias", (out,), shape))  # a missing one is a problem
    return b.op("Add", y, bias, name=f"{path}.bias_add")


def _stored_at(path: str, shape: DecoderShape) -> str:
    """The dotted name under which the projection at `path` is stored."""
    module, _, name = path.rpartition(".")
    return f"{module}.{shape.fused[name].name}" if name in shape.fused else path


def _values(b: GraphBuilder, path: str, leaf: str, dims: tuple[int, ...], shape: DecoderShape) -> Expression:
    """Weight float `[out, in]` or bias float `[out]` of the projection at `path`, as the graph computes with it."""
    name = path.rpartition(".")[2]
    whole = shape.fused.get(name, FusedRows(name, 0, dims[0]))
    stored = b.parameter(f"{_stored_at(path, shape)}.{leaf}", (whole.total, *dims[1:]))
    found = stored.narrow(0, whole.start, whole.start + dims[0])
    if shape.neighbours and name in _ROTATED:  # the score of a query and a key is a sum: its order is free
        pairs = found.reshape(dims[0] // shape.head_size, shape.head_size // 2, 2, *dims[1:])
        found = pairs.transpose(0, 2, 1, *range(3, 2 + len(dims))).reshape(*dims)
    if shape.multipliers.residual != 1 and name in _ADDED:
        found = _scaled(found, shape.multipliers.residual)
    return found


def _scaled(values: Expression, factor: float) -> Expression:
    """Everything times one factor."""
    return values.scale(Constant(np.full(values.shape[0], factor, np.float32)), 0)


def _head_norm(b: GraphBuilder, x: ir.Value, path: str, heads: int, shape: DecoderShape) -> ir.Value:
    """Qwen3's per-head query/key norm on float `[batch, sequence, heads * head_size]`, if the decoder has one."""
    if not shape.head_norms:
        refuse_surplus(b, f"{path}.weight")
        return x
    split = b.op("Reshape", x, b.ints(0, 0, heads, shape.head_size))
    normed = _rms_norm(b, split, path, shape.head_size, shape.epsilon)
    return b.op("Reshape", normed, b.ints(0, 0, heads * shape.head_size))


def _attention(
    b: GraphBuilder,
    x: ir.Value,
    path: str,
    shape: DecoderShape,
    index: int,
    past: Sequence[ir.Value],
    lengths: tuple[ir.Value, ir.Value],
    tables: tuple[ir.Value, ...],
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Grouped-query attention of layer `index`; returns the projected output and the present key and value.

    The last layer goes on with the last position only: its keys and values see the whole prompt, and nothing reads
    the other positions' outputs (measured: docs/speed.md).
    """
    query_width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    q = _linear(b, x, f"{path}.q_proj", shape.hidden, query_width, shape)
    k = _linear(b, x, f"{path}.k_proj", shape.hidden, kv_width, shape)
    v = _linear(b, x, f"{path}.v_proj", shape.hidden, kv_width, shape)
    q = _head_norm(b, q, f"{path}.q_norm", shape.heads, shape)
    k = _head_norm(b, k, f"{path}.k_norm", shape.kv_heads, shape)
    rotates, window = shape.rotary[index], shape.windows[index]
    # onnxruntime 1.31 counts the token itself into the window, as transformers does (tests/export/test_families.py).
    limited = {} if window is None else {"local_window_size": window}
    attended, key, value = b.ops(
        "GroupQueryAttention",
        [q, k, v, *past, *lengths, *(tables if rotates else ())],
        3,
        domain=MICROSOFT,
        name=path,
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        scale=shape.head_size**-0.5 if shape.multipliers.attention is None else shape.multipliers.attention,
        do_rotary=int(rotates),
        rotary_interleaved=0,
        **limited,
    )
    if index == shape.layers - 1:
        attended = _last_position(b, attended, path)
    return _linear(b, attended, f"{path}.o_proj", query_width, shape.hidden, shape), key, value


def _last_position(b: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """float `[batch, sequence, width]` to float `[batch, 1, width]`; `KeepAllLogits` knows the node by its name."""
    end = np.iinfo(np.int64).max
    return b.op("Slice", x, b.ints(-1), b.ints(end), b.ints(1), name=f"{path}.{LAST_POSITION}")


def _mlp(b: GraphBuilder, x: ir.Value, path: str, shape: DecoderShape) -> ir.Value:
    """`down(silu(gate(x)) * up(x))`."""
    gate = _linear(b, x, f"{path}.gate_proj", shape.hidden, shape.intermediate, shape)
    up = _linear(b, x, f"{path}.up_proj", shape.hidden, shape.intermediate, shape)
    gated = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    return _linear(b, gated, f"{path}.down_proj", shape.intermediate, shape.hidden, shape)


def decoder(
    b: GraphBuilder,
    prefix: str,
    head: str,
    shape: DecoderShape,
    rotary: tuple[np.ndarray, np.ndarray],
    table: str | None = None,
) -> ir.Model:
    """The decoder as onnxruntime-genai drives it: embeddings or tokens and KV cache in, last logits and KV cache out.

    Args:
        b: an empty graph.
        prefix: dotted name of the decoder in the checkpoint.
        head: dotted name of the parameter of the language-model head (the embedding when tied).
        shape: dimensions and parts.
        rotary: cosine and sine tables, float32 `[context, rotated / 2]`, for the first `rotated` channels of a head.
        table: dotted name of the embedding to look tokens up in; None when another graph does that.

    Returns:
        Inputs `inputs_embeds` float `[batch, sequence, hidden]` (or `input_ids` int64 `[batch, sequence]` with a
        table), `attention_mask` int64 `[batch, total]`, `past_key_values.N.key|value`; outputs `logits` float
        `[batch, 1, vocabulary]` (the last position only: an unpruned head on a long image prompt is gigabytes),
        `present.N.key|value`.

    Raises:
        UserError: the checkpoint stores a bias, norm or layer that its configuration does not have.
    """
    cache = ["batch", shape.kv_heads, "past", shape.head_size]
    if table is None:
        x = b.input("inputs_embeds", ir.DataType.FLOAT, ["batch", "sequence", shape.hidden])
    else:
        ids = b.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
        x = _look_up(b, table, ids, shape.vocabulary, shape.hidden)
    if shape.multipliers.embedding != 1:  # not in the table: a tied head reads that, and image features pass it by
        factor = b.constant(np.array(shape.multipliers.embedding, np.float32))
        x = b.op("Mul", x, factor, name=f"{prefix}.embedding_multiplier")
    mask = b.input("attention_mask", ir.DataType.INT64, ["batch", "total"])
    past = [
        tuple(b.input(f"past_key_values.{i}.{part}", ir.DataType.FLOAT, cache) for part in ("key", "value"))
        for i in range(shape.layers)
    ]
    lengths = b.op("Sub", b.op("ReduceSum", mask, b.ints(1), keepdims=0), b.ints(1))
    lengths = b.op("Cast", lengths, to=int(ir.DataType.INT32))
    total = b.op("Gather", b.op("Shape", mask), b.constant(np.array(1, np.int64)), axis=0)
    total = b.op("Cast", total, to=int(ir.DataType.INT32))
    names = ("rotary.cos_cache", "rotary.sin_cache") if any(shape.rotary) else ()
    tables = tuple(b.constant(rows, name) for name, rows in zip(names, rotary, strict=False))
    present = []
    for index in range(shape.layers):
        layer = f"{prefix}.layers.{index}"
        normed = _rms_norm(b, x, f"{layer}.input_layernorm", shape.hidden, shape.epsilon)
        attended, *kv = _attention(b, normed, f"{layer}.self_attn", shape, index, past[index], (lengths, total), tables)
        if index == shape.layers - 1:
            x = _last_position(b, x, layer)
        x = b.op("Add", x, attended, name=f"{layer}.residual1")
        normed = _rms_norm(b, x, f"{layer}.post_attention_layernorm", shape.hidden, shape.epsilon)
        x = b.op("Add", x, _mlp(b, normed, f"{layer}.mlp", shape), name=f"{layer}.residual2")
        present.append(kv)
    refuse_surplus(b, f"{prefix}.layers.{shape.layers}.input_layernorm.weight")
    x = _last_norm(b, x, f"{prefix}.norm", shape)
    logits = b.op("MatMul", x, _head_weight(b, head, table, shape), name="lm_head")
    b.output(logits, "logits", ir.DataType.FLOAT, ["batch", 1, shape.vocabulary])
    grown = ["batch", shape.kv_heads, "total", shape.head_size]
    for index, kv in enumerate(present):
        for part, value in zip(("key", "value"), kv, strict=True):
            b.output(value, f"present.{index}.{part}", ir.DataType.FLOAT, grown)
    return b.model()


def _last_norm(b: GraphBuilder, x: ir.Value, path: str, shape: DecoderShape) -> ir.Value:
    """The norm before the head, which divides the logits too: the head stays equal to the table that it is tied to."""
    gain = b.parameter(f"{path}.weight", (shape.hidden,))
    if shape.multipliers.logits != 1:
        gain = _scaled(gain, 1 / shape.multipliers.logits)
    weight = b.initializer(f"{path}.weight", gain)
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


def _look_up(b: GraphBuilder, table: str, ids: ir.Value, vocabulary: int, hidden: int) -> ir.Value:
    return b.op("Gather", b.weight(table, (vocabulary, hidden)), ids, axis=0, name="embed_tokens")


def embedding(b: GraphBuilder, name: str, vocabulary: int, hidden: int, image_token_id: int) -> ir.Model:
    """Token embedding with the image placeholders replaced, in order, by visual tokens.

    Inputs `input_ids` int64 `[batch, sequence]`, `image_features` float `[visual_tokens, hidden]` (may be
    empty); output `inputs_embeds` float `[batch, sequence, hidden]`.
    """
    ids = b.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    features = b.input("image_features", ir.DataType.FLOAT, ["visual_tokens", hidden])
    tokens = _look_up(b, name, ids, vocabulary, hidden)
    mask = b.op("Equal", ids, b.constant(np.array(image_token_id, np.int64)))
    positions = b.op("Transpose", b.op("NonZero", mask), perm=[1, 0])
    merged = b.op("ScatterND", tokens, positions, features, name="merge_image_features")
    b.output(merged, "inputs_embeds", ir.DataType.FLOAT, ["batch", "sequence", hidden])
    return b.model()
