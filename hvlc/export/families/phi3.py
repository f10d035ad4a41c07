"""Phi-3 and Phi-4-mini: fused projections, of which each is read by itself; the first channels of a head may rotate.

The frequencies of a long rope are those of sequences up to `original_max_position_embeddings`, and so many positions
are exported: one token more changes the keys of all that came before.
"""

from collections.abc import Mapping

from transformers import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from hvlc.export.decoder.shape import FusedRows
from hvlc.export.language import Family, head_width, language_bundle, no_biases
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint


def _fused(config: Phi3Config) -> Mapping[str, FusedRows]:
    """Queries, keys and values stand one below the other, and so do gate and up."""
    width, intermediate = head_width(config), config.intermediate_size
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    total = queries + 2 * keys
    return {
        "q_proj": FusedRows("qkv_proj", 0, total),
        "k_proj": FusedRows("qkv_proj", queries, total),
        "v_proj": FusedRows("qkv_proj", queries + keys, total),
        "gate_proj": FusedRows("gate_up_proj", 0, 2 * intermediate),
        "up_proj": FusedRows("gate_up_proj", intermediate, 2 * intermediate),
    }


FAMILY = Family(Phi3Config, Phi3RotaryEmbedding, no_biases, fused=_fused, partial=True)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of a Phi-3 checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
