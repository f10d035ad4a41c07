"""SigLIP/SigLIP2 vision towers of fixed resolution, built directly (transformers SiglipVisionModel)."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError
from hvlc.graph import GraphBuilder

_ACTIVATIONS = {"gelu_pytorch_tanh": {"approximate": "tanh"}, "gelu": {}}


def activation(b: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    """The named transformers activation.

    Raises:
        UserError: the activation is not one of the GELUs.
    """
    if name not in _ACTIVATIONS:
        raise UserError(
            "export.activation", f"activation {name!r} is not supported", f"use one of {', '.join(_ACTIVATIONS)}"
        )
    return b.op("Gelu", x, **_ACTIVATIONS[name])


def _layer_norm(b: GraphBuilder, x: ir.Value, path: str, width: int, epsilon: float) -> ir.Value:
    weight, bias = b.weight(f"{path}.weight", (width,)), b.weight(f"{path}.bias", (width,))
    return b.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon, name=path)


def _encoder_layer(b: GraphBuilder, x: ir.Value, path: str, config: Any) -> ir.Value:
    """Pre-norm attention and MLP, float `[tiles, patches, width]`."""
    width, heads = config.hidden_size, config.num_attention_heads
    y = _layer_norm(b, x, f"{path}.layer_norm1", width, config.layer_norm_eps)
    q, k, v = (b.linear(y, f"{path}.self_attn.{p}_proj", width, width) for p in "qkv")
    attended = b.op(
        "Attention",
        q,
        k,
        v,
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=1 / math.sqrt(width // heads),
        name=f"{path}.self_attn",
    )
    x = b.op("Add", x, b.linear(attended, f"{path}.self_attn.out_proj", width, width), name=f"{path}.residual1")
    y = _layer_norm(b, x, f"{path}.layer_norm2", width, config.layer_norm_eps)
    y = activation(b, b.linear(y, f"{path}.mlp.fc1", width, config.intermediate_size), config.hidden_act)
    y = b.linear(y, f"{path}.mlp.fc2", config.intermediate_size, width)
    return b.op("Add", x, y, name=f"{path}.residual2")


def tower(b: GraphBuilder, pixel_values: ir.Value, prefix: str, config: Any) -> ir.Value:
    """Patch features of a tile batch.

    Args:
        b: the graph under construction.
        pixel_values: float `[tiles, 3, T, T]`.
        prefix: dotted name of the SiglipVisionModel in the checkpoint.
        config: its SiglipVisionConfig.

    Returns:
        float `[tiles, (T / patch) ** 2, width]`, row-major patches, after the final layer norm.
    """
    width, patch = config.hidden_size, config.patch_size
    patches = (config.image_size // patch) ** 2
    conv = f"{prefix}.embeddings.patch_embedding"
    x = b.op(
        "Conv",
        pixel_values,
        b.weight(f"{conv}.weight", (width, config.num_channels, patch, patch)),
        b.weight(f"{conv}.bias", (width,)),
        strides=[patch, patch],
        kernel_shape=[patch, patch],
        name=conv,
    )
    x = b.op("Transpose", b.op("Reshape", x, b.ints(0, width, patches)), perm=[0, 2, 1])
    x = b.op("Add", x, b.weight(f"{prefix}.embeddings.position_embedding.weight", (patches, width)))
    for index in range(config.num_hidden_layers):
        x = _encoder_layer(b, x, f"{prefix}.encoder.layers.{index}", config)
    return _layer_norm(b, x, f"{prefix}.post_layernorm", width, config.layer_norm_eps)


def pixel_shuffle(b: GraphBuilder, x: ir.Value, side: int, factor: int, width: int) -> ir.Value:
    """float `[tiles, side**2, width]` to float `[tiles, (side/factor)**2, factor**2 * width]`."""
    cells = side // factor
    x = b.op("Reshape", x, b.ints(-1, cells, factor, cells, factor * width))
    x = b.op("Transpose", x, perm=[0, 1, 3, 2, 4])
    return b.op("Reshape", x, b.constant(np.array([-1, cells * cells, factor * factor * width], np.int64)))
