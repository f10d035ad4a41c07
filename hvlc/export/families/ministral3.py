"""Ministral 3: a Mistral with YaRN, whose queries grow with their position beyond the length of the first training.

Up to `original_max_position_embeddings` the growth is a factor of exactly 1, so those positions are exported.
"""

from transformers import Ministral3Config
from transformers.models.ministral3.modeling_ministral3 import Ministral3RotaryEmbedding

from hvlc.export.language import Family, language_bundle, no_biases
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

FAMILY = Family(Ministral3Config, Ministral3RotaryEmbedding, no_biases)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Ministral 3 checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
