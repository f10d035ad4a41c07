"""Qwen3-VL: an interpolated table of positions, taps of the tower added in the decoder's first layers (DeepStack)."""

from dataclasses import replace
from typing import Any

from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding, Qwen3VLVisionRotaryEmbedding

from hvlc.export.families import qwen2_vl
from hvlc.export.families.qwen3 import FAMILY as QWEN3
from hvlc.export.grid_positions import interleaved
from hvlc.export.grid_vit import GridTower, Parts
from hvlc.export.vision_language import vision_language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.models.grid import GridModel
from hvlc.weights.checkpoint import Checkpoint

_TEXT = replace(
    QWEN3,
    config=Qwen3VLTextConfig,
    rotary=Qwen3VLTextRotaryEmbedding,
    grid_positions=interleaved((24, 20, 20)),
)


def _shape(config: Any) -> GridTower:
    return GridTower(
        width=config.hidden_size,
        inner=config.intermediate_size,
        output=config.out_hidden_size,
        heads=config.num_heads,
        layers=config.depth,
        patch=qwen2_vl.side(config, "patch_size"),
        frames=qwen2_vl.side(config, "temporal_patch_size"),
        merge=config.spatial_merge_size,
        activation=config.hidden_act,
        frequencies=qwen2_vl.frequencies(config, Qwen3VLVisionRotaryEmbedding),
        parts=Parts(("linear_fc1", "linear_fc2"), "norm", ("linear_fc1", "linear_fc2")),
        has_patch_bias=True,
        positions=config.num_position_embeddings,
        taps=tuple(config.deepstack_visual_indexes),
    )


FAMILY = qwen2_vl.family(
    Qwen3VLConfig,
    _shape,
    {"qwen3_vl_text": _TEXT},
    replace(qwen2_vl.MODULES, norm="merger.norm", taps="model.visual.deepstack_merger_list"),
)
LOADED = GridModel


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Qwen3-VL checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
