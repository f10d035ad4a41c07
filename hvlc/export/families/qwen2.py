"""Qwen2 and Qwen2.5: query, key and value always have a bias; layers may see a sliding window."""

from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from hvlc.export.language import Family, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

FAMILY = Family(Qwen2Config, Qwen2RotaryEmbedding, lambda config: frozenset({"q_proj", "k_proj", "v_proj"}))


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Qwen2 checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
