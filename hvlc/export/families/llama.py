"""Llama (1 to 3, SmolLM, TinyLlama): biases where the configuration asks for them."""

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hvlc.export.language import Family, configured_biases, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

FAMILY = Family(LlamaConfig, LlamaRotaryEmbedding, configured_biases)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Llama checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
