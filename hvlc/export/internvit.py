"""InternViT towers of fixed resolution, built directly (transformers' InternVL- and QianfanOCRVisionModel).

A pre-norm transformer over a class token and the patches of a tile. Two learned vectors scale what each layer adds
(LayerScale): they are folded into the projections before them, lazily. The nodes of norms are named as those of the
SigLIP towers, so that whoever cuts a graph at its layers finds them; weights keep the checkpoint's names.
"""

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError, raise_all
from hvlc.export import siglip
from hvlc.export.settings import refuse_surplus
from hvlc.graphs.builder import GraphBuilder

_NORMS = ("layer_norm", "rms_norm")
_HEAD_NORM_EPSILON = 1e-6  # of the norms of queries and keys: InternVLVisionAttention does not hand its own on


def check_tower(config: Any) -> None:
    """Compare a tower's settings with each other, and make its square sizes plain numbers.

    Args:
        config: its InternVLVisionConfig.

    Raises:
        UserError: as `siglip.check_tower`; a tile is not a whole number of patches, or a kind of norm is not known.
    """
    siglip.check_tower(config)
    causes = []
    if config.image_size % config.patch_size:
        causes.append(f"a tile of {config.image_size} pixels is not a multiple of patch_size {config.patch_size}")
    if config.norm_type not in _NORMS:
        causes.append(f"norm_type is {config.norm_type!r:.80}, exported are {' and '.join(_NORMS)}")
    raise_all([UserError("checkpoint.config", f"config.json: {cause}", "correct it") for cause in causes])


def tower(b: GraphBuilder, pixel_values: ir.Value, prefix: str, layers: str, config: Any) -> ir.Value:
    """Patch features of a batch of tiles.

    Args:
        b: the graph under construction.
        pixel_values: float `[tiles, 3, S, S]`.
        prefix: what the names of the vision model's parameters begin with in the checkpoint, the dot included.
        layers: dotted name of the stack of layers, after the prefix.
        config: its InternVLVisionConfig, as `check_tower` left it.

    Returns:
        float `[tiles, patches, width]`, row-major patches, without the class token.

    Raises:
        UserError: the activation is not exported, or more layers are stored than configured.
    """
    x = _embeddings(b, pixel_values, f"{prefix}embeddings", config)
    for index in range(config.num_hidden_layers):
        x = _layer(b, x, f"{prefix}{layers}.{index}", f"{prefix}encoder.layers.{index}", config)
    refuse_surplus(b, f"{prefix}{layers}.{config.num_hidden_layers}.layernorm_before.weight")
    if config.use_mean_pooling:  # transformers' model for pooled features has no norm after the last layer
        return _without_class(b, x, f"{prefix}patches")
    x = _norm(b, x, f"{prefix}layernorm", f"{prefix}post_layernorm", config, "layer_norm")
    return _without_class(b, x, f"{prefix}patches")


def _without_class(b: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    """The features of patches; the class token is the first."""
    return b.op("Slice", x, b.ints(1), b.ints(np.iinfo(np.int64).max), b.ints(1), name=name)


def _embeddings(b: GraphBuilder, pixel_values: ir.Value, path: str, config: Any) -> ir.Value:
    """Class token and patches, each with its position, float `[tiles, 1 + patches, width]`."""
    width, patch, side = config.hidden_size, config.patch_size, config.image_size // config.patch_size
    name = f"{path}.patch_embeddings.projection"
    kernel = b.weight(f"{name}.weight", (width, config.num_channels, patch, patch))
    bias = b.weight(f"{name}.bias", (width,))
    x = b.op("Conv", pixel_values, kernel, bias, strides=[patch, patch], kernel_shape=[patch, patch], name=name)
    x = b.op("Transpose", b.op("Reshape", x, b.ints(0, width, side * side)), perm=[0, 2, 1])
    tiles = b.op("Concat", b.op("Shape", x, start=0, end=1), b.ints(1, 1), axis=0)
    token = b.op("Expand", b.weight(f"{path}.cls_token", (1, 1, width)), tiles)
    x = b.op("Concat", token, x, axis=1)
    if not config.use_absolute_position_embeddings:
        return x
    return b.op("Add", x, b.weight(f"{path}.position_embeddings", (1, 1 + side * side, width)))


def _layer(b: GraphBuilder, x: ir.Value, path: str, name: str, config: Any) -> ir.Value:
    """Attention and MLP, each after a norm, float `[tiles, tokens, width]`.

    Args:
        b: the graph under construction.
        x: what enters the layer.
        path: dotted name of the layer in the checkpoint.
        name: the same as the nodes of its norms and sums have it.
        config: of the tower.
    """
    width, inner = config.hidden_size, config.intermediate_size
    y = _norm(b, x, f"{path}.layernorm_before", f"{name}.layer_norm1", config, config.norm_type)
    y = _attention(b, y, f"{path}.attention", config)
    y = _scaled_linear(b, y, f"{path}.attention.projection_layer", f"{path}.lambda_1", (width, width))
    x = b.op("Add", x, y, name=f"{name}.residual1")
    y = _norm(b, x, f"{path}.layernorm_after", f"{name}.layer_norm2", config, config.norm_type)
    y = siglip.activation(b, siglip.linear(b, y, f"{path}.mlp.fc1", width, inner), config.hidden_act)
    y = _scaled_linear(b, y, f"{path}.mlp.fc2", f"{path}.lambda_2", (width, inner))
    return b.op("Add", x, y, name=f"{name}.residual2")


def _attention(b: GraphBuilder, x: ir.Value, path: str, config: Any) -> ir.Value:
    """Every token attends to every other; without the projection that follows."""
    width, heads = config.hidden_size, config.num_attention_heads
    q, k, v = (_projection(b, x, f"{path}.{part}_proj", config) for part in "qkv")
    if config.use_qk_norm:  # over all heads at once
        q, k = (_head_norm(b, y, f"{path}.{part}_norm", width) for part, y in (("q", q), ("k", k)))
    scale = 1 / math.sqrt(width // heads)
    return b.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=scale, name=path)


def _projection(b: GraphBuilder, x: ir.Value, path: str, config: Any) -> ir.Value:
    """A projection of a layer's input, with a bias where the configuration says so."""
    if config.attention_bias:
        return siglip.linear(b, x, path, config.hidden_size, config.hidden_size)
    refuse_surplus(b, f"{path}.bias")
    return b.linear(x, path, config.hidden_size, config.hidden_size, bias=False)


def _head_norm(b: GraphBuilder, x: ir.Value, path: str, width: int) -> ir.Value:
    weight = b.weight(f"{path}.weight", (width,))
    return b.op("RMSNormalization", x, weight, axis=-1, epsilon=_HEAD_NORM_EPSILON, name=path)


def _scaled_linear(b: GraphBuilder, x: ir.Value, path: str, factors: str, shape: tuple[int, int]) -> ir.Value:
    """A linear whose outputs a learned vector scales: rows of the weight and elements of the bias are scaled instead.

    Args:
        b: the graph under construction.
        x: float `[..., shape[1]]`.
        path: dotted name of the linear.
        factors: parameter `[shape[0]]` that scales.
        shape: of the weight as stored.
    """
    scale = b.parameter(factors, (shape[0],))
    rows = b.parameter(f"{path}.weight", shape).scale(scale, 0)
    bias = b.parameter(f"{path}.bias", (shape[0],)).scale(scale, 0)
    y = b.op("MatMul", x, b.initializer(f"{path}.weight", rows.transpose()), name=path)
    return b.op("Add", y, b.initializer(f"{path}.bias", bias), name=f"{path}.bias_add")


def _norm(b: GraphBuilder, x: ir.Value, path: str, name: str, config: Any, kind: str) -> ir.Value:
    """A norm over the width, of one of the two kinds; its node is named as those of other towers are."""
    width, epsilon = config.hidden_size, config.layer_norm_eps
    weight = b.weight(f"{path}.weight", (width,))
    if kind == "rms_norm":
        return b.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon, name=name)
    bias = b.weight(f"{path}.bias", (width,))
    return b.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon, name=name)
