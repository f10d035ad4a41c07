"""HyperVL: two vision encoders with projectors, a resolution compressor, one Qwen3 (arXiv 2512.14052)."""

from typing import Any

import onnx_ir as ir

from hvlc.errors import Collector, UserError
from hvlc.export import siglip
from hvlc.export.families.qwen3 import FAMILY as QWEN3
from hvlc.export.mobilenet import resolution_compressor
from hvlc.export.settings import Processor, processor_settings
from hvlc.export.vision_language import Compressor, Encoder, Names, Rule, VisionLanguageFamily, vision_language_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.facts import CompressorFacts
from hvlc.imaging.raster_tiles import RasterTiles
from hvlc.imaging.rule import Normalization
from hvlc.models.hypervl import HyperVLConfig
from hvlc.models.hypervl.configuration import BRANCHES
from hvlc.models.hypervl.loaded import LoadedHyperVL
from hvlc.models.hypervl.numbers import HyperVLNumbers
from hvlc.models.modules import Modules
from hvlc.weights.checkpoint import Checkpoint

_COMPRESSOR = "model.resolution_compressor"
_TOKENS = ("image_token_id", "row_token_id", "vision_start_token_id", "vision_end_token_id")
_CHANNELS = 3
_MIDDLE = [0.5] * _CHANNELS  # mean and deviation where the processor names none


def _encoders(config: Any, names: Names) -> tuple[Encoder, ...]:
    prefixes = {branch: f"{names.tower}{branch}." for branch in BRANCHES}
    return tuple(
        Encoder(branch, config.vision_config(branch), f"{prefix}tower.", f"{prefix}projector.")
        for branch, prefix in prefixes.items()
    )


def _check(config: Any, found: Collector) -> None:
    """Compare the parts' configurations with each other."""
    for branch in BRANCHES:
        with found:
            siglip.check_tower(config.vision_config(branch))
    ids = {name: getattr(config, name) for name in _TOKENS}
    outside = [f"{name} is {token}" for name, token in ids.items() if token >= config.text_config.vocab_size]
    if outside:
        cause = f"config.json: {', '.join(outside)}, the vocabulary has {config.text_config.vocab_size} tokens"
        found.problems.append(UserError("checkpoint.config", cause, "correct it"))
    if len(set(ids.values())) < len(ids):
        cause = f"config.json: {', '.join(ids)} are {', '.join(map(str, ids.values()))}, expected are four tokens"
        found.problems.append(UserError("checkpoint.config", cause, "correct it"))


def _rule(checkpoint: Checkpoint, config: Any) -> Rule:
    """Raster tiles, each row of cells ended by a token."""
    processor = _processor(checkpoint, config)
    most = processor.max_visual_tokens or config.max_visual_tokens
    tiles = RasterTiles(
        tile_size=config.tile_size,
        cell_size=config.cell_size,
        normalization=Normalization(*_statistics(processor)),
        image_token=config.image_token_id,
        row_token=config.row_token_id,
        max_visual_tokens=most,
    )
    image, start = config.image_token_id, config.vision_start_token_id
    return Rule(tiles, image, image, start, frozenset(getattr(config, name) for name in _TOKENS), most)


def _processor(checkpoint: Checkpoint, config: Any) -> Processor:
    """The image processor's settings.

    Raises:
        UserError: they contradict the model's configuration.
    """
    processor = processor_settings(checkpoint.directory, _CHANNELS)
    sizes = {
        "tile_size": config.tile_size,
        "cell_size": config.cell_size,
        "proxy_size": config.resolution_config.proxy_size,
    }
    wrong = [f"{name} is {size}, not {sizes[name]}" for name, size in processor.sizes.items() if size != sizes[name]]
    if wrong:
        cause = f"{checkpoint.directory}: the image processor contradicts config.json: {', '.join(wrong)}"
        raise UserError("checkpoint.config", cause, "save the processor again")
    return processor


def _statistics(processor: Processor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(processor.mean or _MIDDLE), tuple(processor.deviation or _MIDDLE)


def _tower(b: GraphBuilder, pixels: ir.Value, encoder: Encoder) -> ir.Value:
    return siglip.tower(b, pixels, encoder.tower, encoder.config)


def _projector(b: GraphBuilder, features: ir.Value, encoder: Encoder, config: Any) -> ir.Value:
    """Pixel shuffle and two linears."""
    width, factor, hidden = encoder.config.hidden_size, config.shuffle_factor, config.text_config.hidden_size
    x = siglip.pixel_shuffle(b, features, siglip.patches_per_side(encoder.config), factor, width)
    x = siglip.linear(b, x, f"{encoder.connector}linear_1", width * factor**2, hidden)
    x = siglip.activation(b, x, config.projector_hidden_act, "projector_hidden_act")
    return siglip.linear(b, x, f"{encoder.connector}linear_2", hidden, hidden)


def _compressor(b: GraphBuilder, config: Any) -> ir.Model:
    vrc = config.resolution_config
    return resolution_compressor(b, _COMPRESSOR, vrc.proxy_size, vrc.layer_norm_eps)


def _compressor_facts(checkpoint: Checkpoint, config: Any) -> CompressorFacts:
    vrc = config.resolution_config
    return CompressorFacts(vrc.proxy_size, vrc.min_scale, vrc.scale_step, *_statistics(_processor(checkpoint, config)))


FAMILY = VisionLanguageFamily(
    config=HyperVLConfig,
    numbers=HyperVLNumbers,
    modules=Modules("model.branches.{encoder}.tower", "model.branches.{encoder}.projector", "model.language_model"),
    names=(Names("model.branches.", "model.branches.", "model.language_model"),),
    rule=_rule,
    tower=_tower,
    connector=_projector,
    decoders={"qwen3": QWEN3},
    check=_check,
    encoders=_encoders,
    default_encoder=lambda config: str(config.default_branch),
    compressor=Compressor(_compressor, _compressor_facts, f"{_COMPRESSOR}."),
)


#: Model as transformers computes it.
LOADED = LoadedHyperVL


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a HyperVL checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
