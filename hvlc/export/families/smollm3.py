"""SmolLM3: some layers do not rotate queries and keys (NoPE), and those may see a sliding window."""

from transformers import SmolLM3Config
from transformers.models.smollm3.modeling_smollm3 import SmolLM3RotaryEmbedding

from hvlc.export.language import Family, configured_biases, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint


def _rotates(config: SmolLM3Config) -> tuple[bool, ...]:
    """transformers reads `no_rope_layers` as it is named not: 1 rotates, and it may be longer than the decoder."""
    return tuple(bool(layer) for layer in (config.no_rope_layers or ())[: config.num_hidden_layers])


FAMILY = Family(SmolLM3Config, SmolLM3RotaryEmbedding, configured_biases, rotates=_rotates)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a SmolLM3 checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
