"""Qwen3: queries and keys are normalized per head; layers may see a sliding window."""

from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from hvlc.export.language import Family, configured_biases, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

FAMILY = Family(Qwen3Config, Qwen3RotaryEmbedding, configured_biases, head_norms=True)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Qwen3 checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
