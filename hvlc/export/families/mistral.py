"""Mistral: no biases; where there is a sliding window, every layer has it."""

from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

from hvlc.export.language import Family, language_bundle, no_biases
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

FAMILY = Family(MistralConfig, MistralRotaryEmbedding, no_biases)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Mistral checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
