"""Vision towers alone: a SigLIP or SigLIP2 checkpoint becomes one graph from pixels to features."""

from typing import Any

import onnx_ir as ir
from transformers import PreTrainedConfig

from hvlc.export import siglip
from hvlc.export.settings import processor_settings, read_config
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import Facts, TowerFacts
from hvlc.models.numbers import TwoTowerNumbers
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
    config: Any = read_config(config_class, checkpoint, TwoTowerNumbers)
    config = config.vision_config if hasattr(type(config), "vision_config") else config
    siglip.check_tower(config)
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
    bundle.facts = Facts(tower=_facts(checkpoint, config, size))
    return bundle


def _facts(checkpoint: Checkpoint, config: Any, size: int) -> TowerFacts:
    """Facts that a host needs besides the graph; None for those that the checkpoint does not state.

    Raises:
        UserError: the image processor's settings are of other types or outside their bounds.
    """
    processor = processor_settings(checkpoint.directory, config.num_channels)
    return TowerFacts(
        hidden_size=config.hidden_size,
        image_size=size,
        patch_size=config.patch_size,
        mean=processor.mean if processor.normalizes else None,
        std=processor.deviation if processor.normalizes else None,
        rescale_factor=processor.rescale,
        resample=None if processor.resample is None else _RESAMPLE[processor.resample],
    )
