"""Vision towers alone: a SigLIP or SigLIP2 checkpoint becomes one graph from pixels to features."""

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from transformers import PreTrainedConfig, SiglipVisionConfig

from hvlc.errors import UserError
from hvlc.export import siglip
from hvlc.export.settings import processor_settings, read_config, require_positive
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.manifest.manifest import Kind
from hvlc.weights.checkpoint import Checkpoint

_PREFIX = "vision_model."
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL.Image.Resampling


def vision_bundle(checkpoint: Checkpoint, config_class: type[PreTrainedConfig]) -> Bundle:
    """The bundle of a vision tower: one component "vision"; weights stay in the checkpoint until they are written.

    Args:
        checkpoint: of the tower alone, or of a model with a text tower beside it, which is left out.
        config_class: transformers' class of the whole checkpoint's configuration.

    Raises:
        UserError: the configuration is not valid or asks for what is not exported.
    """
    config: Any = read_config(config_class, checkpoint)
    config = config.vision_config if hasattr(type(config), "vision_config") else config
    _plain_sizes(config)
    b = GraphBuilder("vision", checkpoint)
    # transformers 5 saves a tower alone without the prefix, transformers 4 with it
    prefix = _PREFIX if b.has(f"{_PREFIX}embeddings.patch_embedding.weight") else ""
    side = siglip.patches_per_side(config)
    size = side * config.patch_size if siglip.counts_patches(config) else config.image_size
    pixels = b.input("pixel_values", ir.DataType.FLOAT, ["batch", config.num_channels, size, size])
    features = siglip.tower(b, pixels, prefix, config)
    outputs = {"last_hidden_state": (features, ["batch", side * side, config.hidden_size])}
    if config.vision_use_head:
        outputs["pooler_output"] = (siglip.pooled(b, features, prefix, config), ["batch", config.hidden_size])
    for name, (value, shape) in outputs.items():
        b.output(value, name, ir.DataType.FLOAT, shape)
    bundle = Bundle(checkpoint.model_type)
    bundle.add(Component("vision", Role.VISION_ENCODER, b.model(), "vision"))
    bundle.facts.update(_facts(checkpoint, config, size))
    return bundle


def _plain_sizes(config: Any) -> None:
    """Replace square sizes given as pairs by their side.

    Raises:
        UserError: a size is not square or no whole number above 0, or the patches of a Siglip2 are no square grid.
    """
    for name in ("image_size", "patch_size"):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            if len(set(value)) != 1:
                raise UserError("export.image_size", f"config.json: {name} is {value}", "use a tower for square images")
            setattr(config, name, value[0])
    extent = "num_patches" if siglip.counts_patches(config) else "image_size"
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels")
    require_positive(config, *sizes, "patch_size", extent)
    if siglip.counts_patches(config) and math.isqrt(config.num_patches) ** 2 != config.num_patches:
        cause = f"config.json: {config.num_patches} num_patches are no square grid"
        raise UserError("checkpoint.config", cause, "correct it")
    if config.hidden_size % config.num_attention_heads:
        cause = f"config.json: a width of {config.hidden_size} does not split into {config.num_attention_heads} heads"
        raise UserError("checkpoint.config", cause, "correct it")
    if isinstance(config, SiglipVisionConfig) and config.image_size < config.patch_size:
        cause = f"config.json: an image of {config.image_size} pixels holds no patch of {config.patch_size}"
        raise UserError("checkpoint.config", cause, "correct it")


def _facts(checkpoint: Checkpoint, config: Any, size: int) -> dict[str, Any]:
    """What a host must know besides the graph; what the checkpoint does not say is None.

    Raises:
        UserError: the image processor's settings are of other types.
    """
    processor = processor_settings(checkpoint.directory)
    normalized = {name: _numbers(processor, name, config.num_channels) for name in ("image_mean", "image_std")}
    factor = processor.get("rescale_factor")
    if not isinstance(factor, int | float | None) or not isinstance(processor.get("resample"), int | None):
        cause = f"{checkpoint.directory}: rescale_factor or resample of the image processor is no number"
        raise UserError("checkpoint.config", cause, "save the processor again")
    return {
        "kind": Kind.VISION,
        "hidden_size": config.hidden_size,
        "image_size": size,
        "patch_size": config.patch_size,
        **(normalized if processor.get("do_normalize", True) else dict.fromkeys(normalized)),
        "rescale_factor": factor if processor.get("do_rescale", True) else None,
        "resample": _RESAMPLE.get(processor.get("resample", -1)),
    }


def _numbers(settings: Mapping[str, Any], name: str, channels: int) -> list[float] | None:
    """A number for each channel; one for all of them is repeated.

    Raises:
        UserError: it is something else.
    """
    value = settings.get(name)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value] * channels
    if len(numbers) != channels or not all(isinstance(number, int | float) for number in numbers):
        cause = f"{name} of the image processor is {value!r}, not a number for each of {channels} channels"
        raise UserError("checkpoint.config", cause, "save the processor again")
    return [float(number) for number in numbers]
