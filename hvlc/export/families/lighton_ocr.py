"""LightOnOCR: Pixtral's tower over the image's own grid, squares of patches merged, a Qwen3 (arXiv 2601.14251)."""

from typing import Any

import onnx_ir as ir
from transformers import LightOnOcrConfig

from hvlc.errors import Collector, UserError
from hvlc.export import pixtral
from hvlc.export.families.qwen3 import FAMILY as QWEN3
from hvlc.export.image_rules import bounded_grid, pixtral_settings
from hvlc.export.prompt_tokens import PromptTokens
from hvlc.export.vision_language import Encoder, Names, Rule, VisionLanguageFamily, vision_language_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.models.modules import Modules
from hvlc.models.numbers import PixtralNumbers
from hvlc.models.pixtral import PixtralModel
from hvlc.weights.checkpoint import Checkpoint

LOADED = PixtralModel


def _check(config: Any, found: Collector) -> None:
    """Compare the tower's sizes with each other."""
    with found:
        pixtral.side(config.vision_config)
        pixtral.check_tower(config.vision_config)
    found.raise_all()  # the rule computes with the patch


def _rule(checkpoint: Checkpoint, config: Any) -> Rule:
    settings, tokens = pixtral_settings(checkpoint.directory), PromptTokens(checkpoint.directory)
    cell = pixtral.side(config.vision_config) * config.spatial_merge_size
    size = settings["patch_size"]
    sides = (size, size) if isinstance(size, int) else (size.get("height"), size.get("width"))
    if sides != (cell, cell):
        # processors of the first releases multiplied the patch themselves; transformers takes it as it is saved
        cause = f"the image processor's patch_size is {size}, squares of patches that merge are {cell} pixels wide"
        raise UserError("checkpoint.processor", cause, f"set patch_size to {cell} in the image processor's settings")
    image = tokens.named("image_token", "<|image_pad|>")
    tokens.check(config.image_token_id, image, "image_token_id")
    token = config.image_token_id
    rule = bounded_grid(settings, token, cell)
    return Rule(rule, token, token, token, frozenset({token}), rule.most_visual_tokens)


def _tower(b: GraphBuilder, pixels: ir.Value, encoder: Encoder) -> ir.Value:
    return pixtral.tower(b, pixels, encoder.tower, encoder.config)


def _connector(b: GraphBuilder, features: ir.Value, encoder: Encoder, config: Any) -> ir.Value:
    text = config.text_config
    shape = pixtral.Connector(
        config.spatial_merge_size, encoder.config.hidden_size, text.hidden_size, text.rms_norm_eps
    )
    return pixtral.visual_tokens(b, features, encoder.connector, encoder.tower, shape)


FAMILY = VisionLanguageFamily(
    config=LightOnOcrConfig,
    numbers=PixtralNumbers,
    modules=Modules(
        "model",
        "model.vision_projection",
        "model.language_model",
        embeddings="",
        layers="vision_encoder.transformer.layers",
        norm="vision_projection.norm",
    ),
    names=(Names("model.vision_encoder.", "model.vision_projection.", "model.language_model"),),
    rule=_rule,
    tower=_tower,
    connector=_connector,
    decoders={"qwen3": QWEN3},
    check=_check,
)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a LightOnOCR checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
