"""Pixtral's vision tower, over an image's own grid of patches, and the connector that merges squares of them.

As with the towers of `hvlc.export.grid_vit`, nothing but the image enters the graph: its patches stay row by row, and
their rotations follow from its sides. There are no biases; norms are RMS norms, MLPs are gated. LightOnOCR has its
connector from Mistral 3.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from transformers.models.pixtral.modeling_pixtral import PixtralVisionRotaryEmbedding

from hvlc.errors import UserError
from hvlc.export.activations import GELUS, activation_name
from hvlc.export.grid_vit import activation, rotated_attention, rotations, squares
from hvlc.export.settings import refuse_surplus, require_positive
from hvlc.export.siglip import activation as gelu
from hvlc.graphs.builder import GraphBuilder
from hvlc.models.loading import CONFIG_ERRORS

_EPSILON = 1e-5  # of the tower's norms: the configuration does not say it


@dataclass(frozen=True)
class Connector:
    """Sizes of a connector.

    Attributes:
        merge: side of the squares of patches that become one visual token.
        width: of a patch's features.
        output: width of a visual token.
        epsilon: of its norm.
        activation: transformers' name of that between its linears.
        has_biases: whether its two linears have biases.
    """

    merge: int
    width: int
    output: int
    epsilon: float
    activation: str = "gelu"
    has_biases: bool = False


def check_tower(config: Any) -> None:
    """Compare the sizes of a PixtralVisionConfig with each other.

    Raises:
        UserError: a size is not a whole number above 0, the width does not split into the heads, or the rotary settings
            are not those of the tower.
    """
    require_positive(config, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads or width // heads % 4:
        cause = f"config.json: a width of {width} does not split into {heads} heads of a multiple of 4"
        raise UserError("checkpoint.config", cause, "correct it")
    _frequencies(config)


def side(config: Any) -> int:
    """Side of a patch in pixels.

    Raises:
        UserError: patches are not squares.
    """
    sides = config.patch_size if isinstance(config.patch_size, list | tuple) else [config.patch_size]
    if len(set(sides)) != 1:
        cause = f"config.json: patch_size of the vision tower is {config.patch_size}"
        raise UserError("export.config", cause, "use a tower of square patches")
    return int(sides[0])


def tower(b: GraphBuilder, pixel_values: ir.Value, prefix: str, config: Any) -> ir.Value:
    """Features of the patches of one image.

    Args:
        b: the graph under construction.
        pixel_values: float `[1, 3, H, W]`, both sides multiples of the patch.
        prefix: what the names of the vision model's parameters begin with in the checkpoint, the dot included.
        config: its PixtralVisionConfig, as `check_tower` takes it.

    Returns:
        float `[1, rows, columns, width]`, after the last layer; there is no norm after it.

    Raises:
        UserError: the activation is not exported, or more layers are stored than configured.
    """
    width, patch = config.hidden_size, side(config)
    path = f"{prefix}patch_conv"
    kernel = b.weight(f"{path}.weight", (width, config.num_channels, patch, patch))
    refuse_surplus(b, f"{path}.bias")
    x = b.op("Conv", pixel_values, kernel, strides=[patch, patch], kernel_shape=[patch, patch], name=path)
    rows, columns = (b.op("Shape", x, start=axis, end=axis + 1) for axis in (2, 3))
    x = b.op("Transpose", b.op("Reshape", x, b.ints(1, width, -1)), perm=[0, 2, 1])
    x = _norm(b, x, f"{prefix}ln_pre", f"{prefix}ln_pre", width)
    turns = rotations(b, rows, columns, *np.split(_frequencies(config), 2))
    for index in range(config.num_hidden_layers):
        x = _layer(b, x, prefix, index, turns, config)
    refuse_surplus(b, f"{prefix}transformer.layers.{config.num_hidden_layers}.attention_norm.weight")
    return b.op("Reshape", x, b.op("Concat", b.ints(1), rows, columns, b.ints(width), axis=0))


def _frequencies(config: Any) -> np.ndarray:
    """Inverse frequencies float32 `[head width / 2]` by transformers' own arithmetic: of rows, then of columns.

    Raises:
        UserError: the rotary settings are not those of the tower.
    """
    try:
        found: np.ndarray = PixtralVisionRotaryEmbedding(config).inv_freq.numpy()
    except CONFIG_ERRORS as error:
        cause = f"config.json: the rotary settings {config.rope_parameters} of the vision tower: {error}"
        raise UserError("checkpoint.config", cause[:500], "correct config.json") from error
    return found


def _layer(
    b: GraphBuilder, x: ir.Value, prefix: str, index: int, turns: tuple[ir.Value, ir.Value], config: Any
) -> ir.Value:
    """Attention and gated MLP, each after a norm, float `[1, patches, width]`."""
    # nodes of norms and sums are named as those of other towers: whoever cuts a graph at its layers finds them
    path, name = f"{prefix}transformer.layers.{index}", f"{prefix}encoder.layers.{index}"
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    y = _norm(b, x, f"{path}.attention_norm", f"{name}.layer_norm1", width)
    parts = [_linear(b, y, f"{path}.attention.{letter}_proj", width, width) for letter in "qkv"]
    y = rotated_attention(b, parts, f"{path}.attention", turns, heads, width // heads)
    x = b.op("Add", x, _linear(b, y, f"{path}.attention.o_proj", width, width), name=f"{name}.residual1")
    y = _norm(b, x, f"{path}.ffn_norm", f"{name}.layer_norm2", width)
    gate, up = (_linear(b, y, f"{path}.feed_forward.{part}_proj", width, inner) for part in ("gate", "up"))
    y = b.op("Mul", activation(b, gate, config.hidden_act), up, name=f"{path}.feed_forward.gated")
    y = _linear(b, y, f"{path}.feed_forward.down_proj", inner, width)
    return b.op("Add", x, y, name=f"{name}.residual2")


def _norm(b: GraphBuilder, x: ir.Value, path: str, name: str, width: int, epsilon: float = _EPSILON) -> ir.Value:
    weight = b.weight(f"{path}.weight", (width,))
    return b.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon, name=name)


def _linear(b: GraphBuilder, x: ir.Value, path: str, into: int, out: int, *, has_bias: bool = False) -> ir.Value:
    """A torch Linear, with a bias exactly where the configuration has one."""
    if has_bias:
        b.parameter(f"{path}.bias", (out,))  # a missing one is a problem, not a product without it
    else:
        refuse_surplus(b, f"{path}.bias")
    return b.linear(x, path, into, out, bias=has_bias)


def visual_tokens(b: GraphBuilder, features: ir.Value, path: str, tower_path: str, shape: Connector) -> ir.Value:
    """Visual tokens of the features of an image's patches.

    Args:
        b: the graph under construction.
        features: float `[1, rows, columns, width]`.
        path: what the names of the connector's parameters begin with, the dot included.
        tower_path: the same of the tower, in whose name the norm after it is found.
        shape: of the connector.

    Returns:
        float `[1, visual tokens, output]`, row by row.
    """
    width, merge, output = shape.width, shape.merge, shape.output
    columns = b.op("Shape", features, start=2, end=3)
    x = b.op("Reshape", features, b.ints(1, -1, width))
    x = _norm(b, x, f"{path}norm", f"{tower_path}post_layernorm", width, shape.epsilon)
    x = squares(b, x, columns, merge, width)
    merger = f"{path}patch_merger.merging_layer"
    refuse_surplus(b, f"{merger}.bias")
    stored = b.parameter(f"{merger}.weight", (width, width * merge * merge))  # by channels, then places in a square
    kernel = stored.reshape(width, width, merge * merge).transpose(0, 2, 1).reshape(width, merge * merge * width)
    x = b.op("MatMul", x, b.initializer(f"{merger}.weight", kernel.transpose()), name=merger)
    x = _linear(b, x, f"{path}linear_1", width, output, has_bias=shape.has_biases)
    x = gelu(b, x, activation_name(shape.activation, GELUS, "projector_hidden_act"))
    return _linear(b, x, f"{path}linear_2", output, output, has_bias=shape.has_biases)
