"""Ministral: a Mistral whose layers see a sliding window or everything, each as `layer_types` says."""

from transformers import MinistralConfig
from transformers.models.ministral.modeling_ministral import MinistralRotaryEmbedding

from hvlc.export.language import Family, language_bundle, no_biases
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

FAMILY = Family(MinistralConfig, MinistralRotaryEmbedding, no_biases)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Ministral checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
