"""SigLIP/SigLIP2 vision towers of fixed resolution, built directly (transformers' Siglip- and Siglip2VisionModel)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError, raise_all
from hvlc.export.activations import GELUS, activated, activation_name
from hvlc.export.settings import refuse_surplus, require_positive
from hvlc.graphs.builder import GraphBuilder
from hvlc.weights.lazy import Computed


def activation(b: GraphBuilder, x: ir.Value, name: str, where: str = "hidden_act") -> ir.Value:
    """The named transformers activation.

    Raises:
        UserError: the activation is not one of the GELUs.
    """
    return activated(b, x, activation_name(name, GELUS, where))


def check_tower(config: Any) -> None:
    """Make sizes of a tower plain numbers and compare them with each other: square sizes given as pairs become a side.

    Raises:
        UserError: a size is not square or not a whole number above 0, the width does not split into the heads, the
            patches of a Siglip2 are not a square grid, or an image is smaller than a patch.
    """
    for name in ("image_size", "patch_size"):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            if len(set(value)) != 1:
                raise UserError("export.image_size", f"config.json: {name} is {value}", "use a tower for square images")
            setattr(config, name, value[0])
    extent = "num_patches" if counts_patches(config) else "image_size"
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels")
    require_positive(config, *sizes, "patch_size", extent)
    causes = []
    if config.hidden_size % config.num_attention_heads:
        causes.append(f"a width of {config.hidden_size} does not split into {config.num_attention_heads} heads")
    if counts_patches(config) and patches_per_side(config) ** 2 != config.num_patches:
        causes.append(f"{config.num_patches} num_patches are not a square grid")
    if not counts_patches(config) and config.image_size < config.patch_size:
        causes.append(f"an image of {config.image_size} pixels holds no patch of {config.patch_size}")
    raise_all([UserError("checkpoint.config", f"config.json: {cause}", "correct it") for cause in causes])


def _layer_norm(b: GraphBuilder, x: ir.Value, path: str, width: int, epsilon: float) -> ir.Value:
    weight, bias = b.weight(f"{path}.weight", (width,)), b.weight(f"{path}.bias", (width,))
    return b.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon, name=path)


def linear(b: GraphBuilder, x: ir.Value, path: str, into: int, out: int) -> ir.Value:
    """A torch Linear that has a bias: one that is not stored is a problem, not a product without it."""
    b.parameter(f"{path}.bias", (out,))
    return b.linear(x, path, into, out)


def _encoder_layer(b: GraphBuilder, x: ir.Value, path: str, config: Any) -> ir.Value:
    """Pre-norm attention and MLP, float `[tiles, patches, width]`."""
    width, heads = config.hidden_size, config.num_attention_heads
    y = _layer_norm(b, x, f"{path}.layer_norm1", width, config.layer_norm_eps)
    q, k, v = (linear(b, y, f"{path}.self_attn.{p}_proj", width, width) for p in "qkv")
    attended = b.op("Attention", q, k, v, name=f"{path}.self_attn", **_heads(width, heads))
    x = b.op("Add", x, linear(b, attended, f"{path}.self_attn.out_proj", width, width), name=f"{path}.residual1")
    y = _layer_norm(b, x, f"{path}.layer_norm2", width, config.layer_norm_eps)
    return b.op("Add", x, _mlp(b, y, f"{path}.mlp", config), name=f"{path}.residual2")


def _mlp(b: GraphBuilder, x: ir.Value, path: str, config: Any) -> ir.Value:
    y = activation(b, linear(b, x, f"{path}.fc1", config.hidden_size, config.intermediate_size), config.hidden_act)
    return linear(b, y, f"{path}.fc2", config.intermediate_size, config.hidden_size)


#: Makes positions float `[patches, width]` of the learned table float `[num_patches, width]`.
Positions = Callable[[GraphBuilder, ir.Value], ir.Value]


def tower(
    b: GraphBuilder, pixel_values: ir.Value, prefix: str, config: Any, positions: Positions | None = None
) -> ir.Value:
    """Patch features of a batch of images, square ones if nothing else makes their positions.

    Args:
        b: the graph under construction.
        pixel_values: float `[images, 3, S, S]`, or of other sides.
        prefix: what the names of the vision model's parameters begin with in the checkpoint, the dot included.
        config: its SiglipVisionConfig, or a Siglip2VisionConfig, whose images are square grids of `num_patches`.
        positions: makes those of images of another shape; None: the table's own.

    Returns:
        float `[images, patches, width]`, row-major patches, after the final layer norm.

    Raises:
        UserError: the activation is not exported, or more layers are stored than configured.
    """
    width, patches = config.hidden_size, patches_per_side(config) ** 2
    x = _patch_embedding(b, pixel_values, f"{prefix}embeddings.patch_embedding", config)
    x = b.op("Reshape", x, b.ints(0, width, -1 if positions else patches))
    # transformers resizes Siglip2's positions to the grid of each image: on the grid that they were learned for,
    # that is the identity, down to the bit (bilinear, half-pixel centres).
    table = b.weight(f"{prefix}embeddings.position_embedding.weight", (patches, width))
    x = b.op("Add", b.op("Transpose", x, perm=[0, 2, 1]), positions(b, table) if positions else table)
    for index in range(config.num_hidden_layers):
        x = _encoder_layer(b, x, f"{prefix}encoder.layers.{index}", config)
    refuse_surplus(b, f"{prefix}encoder.layers.{config.num_hidden_layers}.layer_norm1.weight")
    return _layer_norm(b, x, f"{prefix}post_layernorm", width, config.layer_norm_eps)


def counts_patches(config: Any) -> bool:
    """Whether the tower is a Siglip2, which takes flattened patches and counts them instead of naming an image size."""
    return hasattr(type(config), "num_patches")


def patches_per_side(config: Any) -> int:
    """Patches along one side of the image."""
    if counts_patches(config):
        return math.isqrt(config.num_patches)
    return int(config.image_size) // int(config.patch_size)


def _patch_embedding(b: GraphBuilder, pixel_values: ir.Value, path: str, config: Any) -> ir.Value:
    """float `[images, 3, S, S]` to float `[images, width, side, side]`."""
    width, channels, patch = config.hidden_size, config.num_channels, config.patch_size
    name = f"{path}.weight"
    if counts_patches(config):
        # A Linear over patches that the image processor flattens as [row, column, channel]: the same as a convolution.
        rows = b.parameter(name, (width, patch * patch * channels)).reshape(width, patch, patch, channels)
        kernel = b.initializer(name, rows.transpose(0, 3, 1, 2))
    else:
        kernel = b.weight(name, (width, channels, patch, patch))
    bias = b.weight(f"{path}.bias", (width,))
    return b.op("Conv", pixel_values, kernel, bias, strides=[patch, patch], kernel_shape=[patch, patch], name=path)


def pooled(b: GraphBuilder, x: ir.Value, prefix: str, config: Any) -> ir.Value:
    """The attention pooling head: one learned probe looks at all patches.

    Args:
        b: the graph under construction.
        x: float `[images, patches, width]`, as `tower` returns it.
        prefix: as `tower` takes it.
        config: as `tower` takes it.

    Returns:
        float `[images, width]`.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    path = f"{prefix}head.attention"
    weights = b.parameter(f"{path}.in_proj_weight", (3 * width, width))  # of query, key and value, one below the other
    biases = b.parameter(f"{path}.in_proj_bias", (3 * width,))
    probe = b.parameter(f"{prefix}head.probe", (1, 1, width))

    def query(probe: np.ndarray, weights: np.ndarray, biases: np.ndarray) -> np.ndarray:
        return probe @ weights.T + biases

    # The probe is the same for every image, so its query is a constant.
    parts = (probe, weights.narrow(0, 0, width), biases.narrow(0, 0, width))
    q = b.initializer(f"{prefix}head.query", Computed(query, parts, (1, 1, width), np.dtype(np.float32)))
    images = b.op("Concat", b.op("Shape", x, start=0, end=1), b.ints(1, 1), axis=0)
    kv = []
    for index, part in enumerate((f"{path}.k_proj", f"{path}.v_proj"), 1):
        rows = (0, index * width, (index + 1) * width)
        y = b.op("MatMul", x, b.initializer(f"{part}.weight", weights.narrow(*rows).transpose()), name=part)
        kv.append(b.op("Add", y, b.initializer(f"{part}.bias", biases.narrow(*rows)), name=f"{part}.bias_add"))
    x = b.op("Attention", b.op("Expand", q, images), *kv, name=path, **_heads(width, heads))
    x = linear(b, x, f"{path}.out_proj", width, width)
    y = _layer_norm(b, x, f"{prefix}head.layernorm", width, config.layer_norm_eps)
    x = b.op("Add", x, _mlp(b, y, f"{prefix}head.mlp", config), name=f"{prefix}head.residual")
    return b.op("Squeeze", x, b.ints(1))


def _heads(width: int, heads: int) -> dict[str, Any]:
    return {"q_num_heads": heads, "kv_num_heads": heads, "scale": 1 / math.sqrt(width // heads)}


def pixel_shuffle(b: GraphBuilder, x: ir.Value, side: int, factor: int, width: int) -> ir.Value:
    """float `[tiles, side**2, width]` to float `[tiles, (side/factor)**2, factor**2 * width]`."""
    cells = side // factor
    x = b.op("Reshape", x, b.ints(-1, cells, factor, cells, factor * width))
    x = b.op("Transpose", x, perm=[0, 1, 3, 2, 4])
    return b.op("Reshape", x, b.constant(np.array([-1, cells * cells, factor * factor * width], np.int64)))
