"""SmolVLM and SmolVLM2: SigLIP over tiles and an overview, pixel shuffle, one linear, a Llama (arXiv 2504.05299)."""

from typing import Any

import onnx_ir as ir
from transformers import PreTrainedConfig, SmolVLMConfig

from hvlc.errors import Collector, UserError
from hvlc.export import siglip
from hvlc.export.families.llama import FAMILY as LLAMA
from hvlc.export.image_rules import overview_tiles
from hvlc.export.vision_language import Encoder, Names, VisionLanguageFamily, vision_language_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.models.modules import Modules
from hvlc.models.numbers import VisionLanguageNumbers
from hvlc.weights.checkpoint import Checkpoint


def _check(config: Any, found: Collector) -> None:
    """The patches of a tile are a whole number of shuffled squares; pixels that fill no patch are left out."""
    vision = config.vision_config
    with found:
        siglip.check_tower(vision)
        side = siglip.patches_per_side(vision)
        if side % config.scale_factor:
            cause = f"a tile of {vision.image_size} pixels has {side} patches of patch_size {vision.patch_size} a side"
            cause += f", which scale_factor {config.scale_factor} does not divide"
            raise UserError("checkpoint.config", f"config.json: {cause}", "correct it")


def _tower(b: GraphBuilder, pixels: ir.Value, encoder: Encoder) -> ir.Value:
    # transformers puts patches into buckets of positions: of a full tile that is the identity
    return siglip.tower(b, pixels, encoder.tower, encoder.config)


def _connector(b: GraphBuilder, features: ir.Value, encoder: Encoder, config: Any) -> ir.Value:
    """Pixel shuffle and one linear without a bias."""
    width, factor = encoder.config.hidden_size, config.scale_factor
    x = siglip.pixel_shuffle(b, features, siglip.patches_per_side(encoder.config), factor, width)
    path = f"{encoder.connector}modality_projection.proj"
    return b.linear(x, path, width * factor**2, config.text_config.hidden_size)


def family(config: type[PreTrainedConfig]) -> VisionLanguageFamily:
    """The family with another class of configuration.

    Args:
        config: transformers' class.
    """
    return VisionLanguageFamily(
        config=config,
        numbers=VisionLanguageNumbers,
        modules=Modules("model.vision_model", "model.connector", "model.text_model"),
        names=(Names("model.vision_model.", "model.connector.", "model.text_model"),),
        rule=overview_tiles,
        tower=_tower,
        connector=_connector,
        decoders={"llama": LLAMA},
        check=_check,
    )


FAMILY = family(SmolVLMConfig)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a SmolVLM checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
