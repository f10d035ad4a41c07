"""InternVL3 and 3.5: InternViT over tiles and a thumbnail, pixel shuffle, two linears, a Qwen (arXiv 2504.10479)."""

from dataclasses import replace
from functools import partial
from typing import Any

import onnx_ir as ir
from transformers import InternVLConfig, PreTrainedConfig

from hvlc.errors import Collector, UserError
from hvlc.export import internvit, siglip
from hvlc.export.families.llama import FAMILY as LLAMA
from hvlc.export.families.qwen2 import FAMILY as QWEN2
from hvlc.export.families.qwen3 import FAMILY as QWEN3
from hvlc.export.image_rules import got_ocr2_settings, ratio_tiles
from hvlc.export.vision_language import Encoder, Names, Rule, VisionLanguageFamily, vision_language_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.models.modules import Modules
from hvlc.models.numbers import VisionLanguageNumbers
from hvlc.weights.checkpoint import Checkpoint

#: The token that masks patches in the tower's own training.
LEFT_OUT = ("model.vision_tower.embeddings.mask_token", "vision_tower.embeddings.mask_token")

DECODERS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}

#: Dotted name of the tower's layers inside it.
LAYERS = "encoder.layer"

_RATIOS = {1 / factor: factor for factor in (1, 2, 4, 8)}
_EPSILON = 1e-5  # torch's, of the connector's norm

#: Names of parameters in transformers 5: inside the model, and as it saves them.
NAMES = (
    Names("model.vision_tower.", "model.multi_modal_projector.", "model.language_model"),
    Names("vision_tower.", "multi_modal_projector.", "language_model.model", "language_model.lm_head.weight"),
)


MODULES = Modules(
    "model.vision_tower", "model.multi_modal_projector", "model.language_model", layers=LAYERS, norm="layernorm"
)


def shuffle_factor(config: Any) -> int:
    """Side of the squares of patches that become one visual token.

    Raises:
        UserError: `downsample_ratio` is not 1 divided by 1, 2, 4 or 8.
    """
    ratio = config.downsample_ratio
    if ratio not in _RATIOS:
        cause = f"config.json: downsample_ratio is {ratio}, exported are {', '.join(map(str, _RATIOS))}"
        raise UserError("export.config", cause, "choose another checkpoint")
    return _RATIOS[ratio]


def _check(config: Any, found: Collector) -> None:
    """Compare the settings of tower and connector, and refuse features of other layers."""
    vision = config.vision_config
    with found:
        internvit.check_tower(vision)
        factor = shuffle_factor(config)
        if vision.image_size // vision.patch_size % factor:
            cause = f"config.json: {vision.image_size // vision.patch_size} patches a side are not a multiple of "
            cause += f"{factor}, as downsample_ratio {config.downsample_ratio} asks"
            raise UserError("checkpoint.config", cause, "correct it")
    exported = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
    for key, value in exported.items():
        if getattr(config, key) != value:
            cause = f"config.json: {key} is {getattr(config, key)!r:.80}, exported is {value!r}"
            found.problems.append(UserError("export.config", cause, "choose another checkpoint"))
    found.raise_all()  # what comes next computes with these sizes


def _tower(b: GraphBuilder, pixels: ir.Value, encoder: Encoder, layers: str) -> ir.Value:
    return internvit.tower(b, pixels, encoder.tower, layers, encoder.config)


def _connector(b: GraphBuilder, features: ir.Value, encoder: Encoder, config: Any) -> ir.Value:
    """Pixel shuffle, a norm and two linears."""
    factor, hidden, path = shuffle_factor(config), config.text_config.hidden_size, encoder.connector
    side, width = siglip.patches_per_side(encoder.config), encoder.config.hidden_size
    x = siglip.pixel_shuffle(b, features, side, factor, width)
    width *= factor**2
    weight, bias = b.weight(f"{path}layer_norm.weight", (width,)), b.weight(f"{path}layer_norm.bias", (width,))
    x = b.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=_EPSILON, name=f"{path}layer_norm")
    x = siglip.linear(b, x, f"{path}linear_1", width, hidden)
    x = siglip.activation(b, x, config.projector_hidden_act, "projector_hidden_act")
    return siglip.linear(b, x, f"{path}linear_2", hidden, hidden)


def visual_tokens(config: Any) -> int:
    """Visual tokens of a tile."""
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size // shuffle_factor(config)) ** 2)


def family(
    config: type[PreTrainedConfig], layers: str = LAYERS, placeholder: str | None = None
) -> VisionLanguageFamily:
    """The family with other names.

    Args:
        config: transformers' class.
        layers: dotted name of the tower's layers inside it.
        placeholder: text that the chat template writes for an image. None: the token of a visual token.
    """

    def rule(checkpoint: Checkpoint, config: Any) -> Rule:
        settings = got_ocr2_settings(checkpoint.directory)
        return ratio_tiles(checkpoint, config, settings, visual_tokens(config), placeholder)

    return VisionLanguageFamily(
        config=config,
        numbers=VisionLanguageNumbers,
        modules=replace(MODULES, layers=layers),
        names=NAMES,
        rule=rule,
        tower=partial(_tower, layers=layers),
        connector=_connector,
        decoders=DECODERS,
        check=_check,
    )


FAMILY = family(InternVLConfig)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of an InternVL checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
