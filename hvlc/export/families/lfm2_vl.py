"""LFM2-VL: SigLIP2 over native images and tiles, pixel unshuffle, a projector, an LFM2 (arXiv 2511.23404)."""

from typing import Any

import onnx_ir as ir
from transformers import Lfm2VlConfig
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from hvlc.errors import Collector, UserError
from hvlc.export import naflex, siglip
from hvlc.export.families.lfm2 import FAMILY as LFM2
from hvlc.export.image_rules import normalization, resampling
from hvlc.export.prompt_tokens import PromptTokens
from hvlc.export.settings import image_settings, processor_document, require_positive
from hvlc.export.vision_language import Encoder, Names, Rule, VisionLanguageFamily, vision_language_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.imaging.naflex_tiles import NaflexTiles, TileTokens
from hvlc.models.modules import Modules
from hvlc.models.naflex import NaflexModel
from hvlc.models.numbers import VisionLanguageNumbers
from hvlc.weights.checkpoint import Checkpoint

#: The tower's pooling head, which has no part in visual tokens.
LEFT_OUT = ("model.vision_tower.head.", "model.vision_tower.vision_model.head.")

LOADED = NaflexModel

_EPSILON = 1e-5  # torch's, of the projector's norm
_CONNECTOR, _TEXT = "model.multi_modal_projector.", "model.language_model"
#: Defaults of the image processor.
_USUAL = {
    "downsample_factor": 2,
    "do_image_splitting": True,
    "min_tiles": 2,
    "max_tiles": 10,
    "use_thumbnail": True,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
    "encoder_patch_size": 16,
    "tile_size": 512,
    "max_pixels_tolerance": 2.0,
    "image_mean": list(IMAGENET_STANDARD_MEAN),
    "image_std": list(IMAGENET_STANDARD_STD),
}


def _check(config: Any, found: Collector) -> None:
    """The tower is a SigLIP2, and sizes are whole numbers."""
    with found:
        if not siglip.counts_patches(config.vision_config):
            kind = config.vision_config.model_type
            cause = f"config.json: vision_config is of model_type {kind!r:.80}, exported is 'siglip2_vision_model'"
            raise UserError("export.config", cause, "choose another checkpoint")
        siglip.check_tower(config.vision_config)
    with found:
        require_positive(config, "downsample_factor", "projector_hidden_size")


def _tower(b: GraphBuilder, pixels: ir.Value, encoder: Encoder) -> ir.Value:
    return naflex.tower(b, pixels, encoder.tower, encoder.config)


def _connector(b: GraphBuilder, features: ir.Value, encoder: Encoder, config: Any) -> ir.Value:
    """The patches of a cell together, a norm where there is one, and two linears."""
    factor, width, path = config.downsample_factor, encoder.config.hidden_size, encoder.connector
    pixels = b.graph.inputs[0]
    x = naflex.unshuffled(b, features, pixels, encoder.config.patch_size, factor, width)
    width *= factor**2
    if config.projector_use_layernorm:
        weight, bias = b.weight(f"{path}layer_norm.weight", (width,)), b.weight(f"{path}layer_norm.bias", (width,))
        x = b.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=_EPSILON, name=f"{path}layer_norm")
    inner, out = config.projector_hidden_size, config.text_config.hidden_size
    x = _linear(b, x, f"{path}linear_1", width, inner, config)
    x = siglip.activation(b, x, config.projector_hidden_act, "projector_hidden_act")
    return _linear(b, x, f"{path}linear_2", inner, out, config)


def _linear(b: GraphBuilder, x: ir.Value, path: str, into: int, out: int, config: Any) -> ir.Value:
    """A linear with a bias exactly where the configuration has one."""
    if config.projector_bias:
        return siglip.linear(b, x, path, into, out)
    return b.linear(x, path, into, out, bias=False)


def _rule(checkpoint: Checkpoint, config: Any) -> Rule:
    """Native images, and tiles before them, as the image processor says.

    Raises:
        UserError: the processor is missing or contradicts the model, or the tokenizer lacks its tokens.
    """
    saved = {key: value for key, value in image_settings(checkpoint.directory).items() if value is not None}
    settings: dict[str, Any] = _USUAL | saved
    found = Collector()
    splits = settings["do_image_splitting"] and not settings["min_tiles"] == settings["max_tiles"] == 1
    for cause in _contradictions(checkpoint, config, settings, splits=splits):
        found.problems.append(UserError("checkpoint.processor", cause, "save the processor that belongs to the model"))
    tokens = None
    with found:
        tokens = _tokens(checkpoint, config, settings["max_tiles"] if splits else 0)
    found.raise_all()
    tokens = found.require(tokens)
    rule = NaflexTiles(
        tile_size=settings["tile_size"],
        min_tiles=settings["min_tiles"],
        max_tiles=settings["max_tiles"] if splits else 1,
        cell_size=settings["encoder_patch_size"] * settings["downsample_factor"],
        patch_size=settings["encoder_patch_size"],
        min_tokens=settings["min_image_tokens"],
        max_tokens=settings["max_image_tokens"],
        tolerance=settings["max_pixels_tolerance"],
        resampling=resampling(settings, 2, as_torch=True),
        normalization=normalization(settings, as_torch=True),
        tokens=tokens,
    )
    named = {*tokens.start, *tokens.thumbnail, *tokens.end, *(token for row in tokens.row_column for token in row)}
    special = frozenset({tokens.image, *named})
    return Rule(rule, tokens.image, tokens.image, tokens.start[0], special, rule.most_visual_tokens)


def _contradictions(checkpoint: Checkpoint, config: Any, settings: dict[str, Any], *, splits: bool) -> list[str]:
    """Image processor's settings that contradict the model or each other, or are not exported."""
    expected = {"encoder_patch_size": config.vision_config.patch_size, "downsample_factor": config.downsample_factor}
    causes = [
        f"the image processor's {key} is {settings[key]}, the model's {value}"
        for key, value in expected.items()
        if settings[key] != value
    ]
    cell = settings["encoder_patch_size"] * settings["downsample_factor"]
    ranges = [("min_image_tokens", "max_image_tokens"), *([("min_tiles", "max_tiles")] if splits else [])]
    causes += [
        f"the image processor's {least} is {settings[least]}, its {most} {settings[most]}"
        for least, most in ranges
        if settings[least] > settings[most]
    ]
    if splits and settings["tile_size"] % cell:
        causes.append(f"the image processor's tile_size {settings['tile_size']} is not a multiple of {cell} pixels")
    if splits and settings["min_tiles"] == 1:
        causes.append("the image processor's min_tiles is 1: of one tile, its prompt counts other visual tokens")
    if splits and not settings["use_thumbnail"]:
        causes.append("the image processor's use_thumbnail is false, exported are tiles with a thumbnail")
    if processor_document(checkpoint.directory).get("use_image_special_tokens") is False:
        causes.append("processor_config.json: use_image_special_tokens is false, exported are prompts with them")
    return causes


def _tokens(checkpoint: Checkpoint, config: Any, most: int) -> TileTokens:
    """Ids of the tokens around pieces.

    Raises:
        UserError: the tokenizer lacks some, or has another id of a visual token than the configuration.
    """
    tokens = PromptTokens(checkpoint.directory)
    image, start = tokens.named("image_token", "<image>"), tokens.named("image_start_token", "<|image_start|>")
    thumbnail = tokens.named("image_thumbnail_token", "<|img_thumbnail|>")
    end = tokens.named("image_end_token", "<|image_end|>")
    tokens.check(config.image_token_id, image, "image_token_id")
    cells = [[f"<|img_row_{r}_col_{c}|>" for c in range(1, most // r + 1)] for r in range(1, most + 1)]
    table = [tokens.ids_of(row) for row in cells]
    return TileTokens(
        image=config.image_token_id,
        start=(tokens.id_of(start),),
        # no grid has as many tiles as a square of that side: what lies outside is never read
        row_column=tuple((*row, *[config.image_token_id] * (most - len(row))) for row in table),
        thumbnail=(tokens.id_of(thumbnail),) if most else (),
        end=(tokens.id_of(end),),
    )


FAMILY = VisionLanguageFamily(
    config=Lfm2VlConfig,
    numbers=VisionLanguageNumbers,
    modules=Modules("model.vision_tower", "model.multi_modal_projector", "model.language_model"),
    names=(
        Names("model.vision_tower.vision_model.", _CONNECTOR, _TEXT),
        Names("model.vision_tower.", _CONNECTOR, _TEXT),
    ),
    rule=_rule,
    tower=_tower,
    connector=_connector,
    decoders={"lfm2": LFM2},
    check=_check,
)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of an LFM2-VL checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
