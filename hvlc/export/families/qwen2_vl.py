"""Qwen2-VL: a tower over the image's own grid, squares of patches merged, a Qwen2 with multimodal positions."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import PreTrainedConfig, Qwen2VLConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, Qwen2VLVisionRotaryEmbedding

from hvlc.errors import Collector, UserError
from hvlc.export import grid_vit
from hvlc.export.families.qwen2 import FAMILY as QWEN2
from hvlc.export.grid_positions import sectioned
from hvlc.export.grid_vit import GridTower, Parts
from hvlc.export.image_rules import native_grid
from hvlc.export.language import Family
from hvlc.export.vision_language import Encoder, Names, Rule, VisionLanguageFamily, vision_language_bundle
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle
from hvlc.models.grid import GridModel
from hvlc.models.loading import CONFIG_ERRORS
from hvlc.models.modules import Modules
from hvlc.models.numbers import GridNumbers
from hvlc.weights.checkpoint import Checkpoint

#: Names of parameters in transformers 5: inside the model, and in checkpoints of Qwen2-VL and Qwen2.5-VL.
NAMES = (
    Names("model.visual.", "model.visual.merger.", "model.language_model"),
    Names("visual.", "visual.merger.", "model"),
)
MODULES = Modules(
    "model.visual", "model.visual.merger", "model.language_model", embeddings="", layers="blocks", norm="merger.ln_q"
)
LOADED = GridModel

#: Qwen2 with positions in three axes, one after another.
TEXT = replace(QWEN2, grid_positions=sectioned((16, 24, 24)))
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_NOT_OF_TEXT = ("vision_config", "architectures", "quantization_config", *_TOKENS)


def side(config: Any, name: str) -> int:
    """A side in pixels, or a number of frames, that configurations give as one number or for each axis.

    Raises:
        UserError: the axes differ.
    """
    value = getattr(config, name)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        cause = f"config.json: {name} of the vision tower is {value}"
        raise UserError("export.config", cause, "use a tower of square patches")
    return int(sides.pop())


def frequencies(config: Any, rotary: type[torch.nn.Module]) -> np.ndarray:
    """Inverse frequencies of a tower's rotation, by transformers' own arithmetic.

    Raises:
        UserError: the rotary settings are not those of a tower.
    """
    try:
        found: np.ndarray = rotary(config).inv_freq.numpy()
    except CONFIG_ERRORS as error:
        cause = f"config.json: the rotary settings {config.rope_parameters} of the vision tower: {error}"
        raise UserError("checkpoint.config", cause[:500], "correct config.json") from error
    return found


def _shape(config: Any) -> GridTower:
    return GridTower(
        width=config.embed_dim,
        inner=int(config.embed_dim * config.mlp_ratio),
        output=config.hidden_size,
        heads=config.num_heads,
        layers=config.depth,
        patch=side(config, "patch_size"),
        frames=side(config, "temporal_patch_size"),
        merge=config.spatial_merge_size,
        activation=config.hidden_act,
        frequencies=frequencies(config, Qwen2VLVisionRotaryEmbedding),
        parts=Parts(("fc1", "fc2"), "ln_q", ("mlp.0", "mlp.2")),
    )


def _merged(b: GraphBuilder, features: ir.Value, encoder: Encoder, config: Any) -> ir.Value:
    """The tower's own mergers have made visual tokens of its features already."""
    return features


def _encoders(config: Any, names: Names) -> tuple[Encoder, ...]:
    """The one encoder: others cannot be added, whose connector would have to be inside."""
    return (Encoder("main", config.vision_config, names.tower, names.connector),)


def with_text_config(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its decoder's settings in a `text_config`, where older versions saved them beside it."""
    config = checkpoint.config
    if "text_config" in config:
        return checkpoint
    text = {key: value for key, value in config.items() if key not in _NOT_OF_TEXT}
    text["model_type"] = f"{checkpoint.model_type}_text"
    return replace(checkpoint, config={**config, "text_config": text})


def family(
    config: type[PreTrainedConfig],
    shape: Callable[[Any], GridTower],
    decoders: Mapping[str, Family],
    modules: Modules = MODULES,
) -> VisionLanguageFamily:
    """A family with a tower over the image's own grid.

    Args:
        config: transformers' class.
        shape: of the tower, by its configuration.
        decoders: that speak, by model_type.
        modules: where transformers' model keeps what traces look at.
    """

    def check(whole: Any, found: Collector) -> None:
        """Compare the tower's sizes with each other and with the decoder's."""
        with found:
            tower = shape(whole.vision_config)
            grid_vit.check_tower(tower)
            if tower.output != whole.text_config.hidden_size:
                cause = (
                    f"config.json: visual tokens are {tower.output} wide, the decoder {whole.text_config.hidden_size}"
                )
                raise UserError("checkpoint.config", cause, "correct it")
        found.raise_all()  # what comes next computes with these sizes

    def rule(checkpoint: Checkpoint, whole: Any) -> Rule:
        tower = shape(whole.vision_config)
        return native_grid(checkpoint, whole, tower.patch, tower.merge, tower.frames)

    def tokens(b: GraphBuilder, pixels: ir.Value, encoder: Encoder) -> ir.Value:
        return grid_vit.tower(b, pixels, encoder.tower, shape(encoder.config))

    return VisionLanguageFamily(
        config=config,
        numbers=GridNumbers,
        modules=modules,
        names=NAMES,
        rule=rule,
        tower=tokens,
        connector=_merged,
        decoders=decoders,
        check=check,
        encoders=_encoders,
        taps=lambda whole: len(shape(whole.vision_config).taps),
        tower_size=lambda tower: (shape(tower).width, shape(tower).layers),
    )


FAMILY = family(
    Qwen2VLConfig,
    _shape,
    {"qwen2_vl_text": replace(TEXT, config=Qwen2VLTextConfig, rotary=Qwen2VLRotaryEmbedding)},
)


def read(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a `text_config`; see `with_text_config`."""
    return with_text_config(checkpoint)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Qwen2-VL checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
