"""Qwen2.5-VL: Qwen2-VL with windows in most layers of the tower, RMS norms and gated MLPs (arXiv 2502.13923)."""

from dataclasses import replace
from typing import Any

from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionRotaryEmbedding,
)

from hvlc.export.families import qwen2_vl
from hvlc.export.grid_vit import GridTower, Parts, Windows
from hvlc.export.vision_language import vision_language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.models.grid import GridModel
from hvlc.weights.checkpoint import Checkpoint


def _shape(config: Any) -> GridTower:
    patch, merge = qwen2_vl.side(config, "patch_size"), config.spatial_merge_size
    return GridTower(
        width=config.hidden_size,
        inner=config.intermediate_size,
        output=config.out_hidden_size,
        heads=config.num_heads,
        layers=config.depth,
        patch=patch,
        frames=qwen2_vl.side(config, "temporal_patch_size"),
        merge=merge,
        activation=config.hidden_act,
        frequencies=qwen2_vl.frequencies(config, Qwen2_5_VLVisionRotaryEmbedding),
        parts=Parts(("gate_proj", "up_proj", "down_proj"), "ln_q", ("mlp.0", "mlp.2")),
        is_rms=True,
        windows=Windows(config.window_size // merge // patch, frozenset(config.fullatt_block_indexes)),
    )


FAMILY = qwen2_vl.family(
    Qwen2_5_VLConfig,
    _shape,
    {"qwen2_5_vl_text": replace(qwen2_vl.TEXT, config=Qwen2_5_VLTextConfig, rotary=Qwen2_5_VLRotaryEmbedding)},
)
LOADED = GridModel


def read(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a `text_config`; see `qwen2_vl.with_text_config`."""
    return qwen2_vl.with_text_config(checkpoint)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Qwen2.5-VL checkpoint; see `vision_language_bundle`."""
    return vision_language_bundle(checkpoint, FAMILY)
