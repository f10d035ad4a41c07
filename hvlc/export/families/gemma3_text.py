"""Gemma 3, text alone: four norms a layer, gains stored less 1, scaled embeddings of tokens, two rotary bases."""

from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from hvlc.export.activations import GELUS
from hvlc.export.decoder.shape import LayerNorms, Multipliers
from hvlc.export.language import Family, configured_biases, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint


def _multipliers(config: Gemma3TextConfig) -> Multipliers:
    """Factors as transformers computes with them in float32; in bfloat16 it rounds that of tokens."""
    return Multipliers(tokens=config.hidden_size**0.5, attention=config.query_pre_attn_scalar**-0.5)


FAMILY = Family(
    Gemma3TextConfig,
    Gemma3RotaryEmbedding,
    configured_biases,
    head_norms=True,
    multipliers=_multipliers,
    norms=LayerNorms(
        mlp="pre_feedforward_layernorm",
        attended="post_attention_layernorm",
        transformed="post_feedforward_layernorm",
    ),
    offset_gains=True,
    activation_key="hidden_activation",
    activations=("silu", *GELUS),
    rotary_kinds=True,
)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Gemma 3 text checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
