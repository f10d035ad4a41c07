"""Granite, dense: a Llama with constant factors for embeddings, residuals, attention and logits."""

from transformers import GraniteConfig
from transformers.models.granite.modeling_granite import GraniteRotaryEmbedding

from hvlc.export.decoder.shape import Multipliers
from hvlc.export.language import Family, configured_biases, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint


def _multipliers(config: GraniteConfig) -> Multipliers:
    return Multipliers(
        embedding=config.embedding_multiplier,
        residual=config.residual_multiplier,
        attention=config.attention_multiplier,
        logits=config.logits_scaling,
    )


FAMILY = Family(GraniteConfig, GraniteRotaryEmbedding, configured_biases, multipliers=_multipliers)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Granite checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
