"""LFM2 (Liquid AI): most layers mix positions by a short convolution, the others by attention with head norms."""

from typing import Any

from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2RotaryEmbedding

from hvlc.export.decoder.shape import ShortConvolution
from hvlc.export.language import Family, language_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.weights.checkpoint import Checkpoint

_CONVOLUTION = "conv"
_NAMES = {
    "operator_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "self_attn.out_proj": "self_attn.o_proj",
    "self_attn.q_layernorm": "self_attn.q_norm",
    "self_attn.k_layernorm": "self_attn.k_norm",
    "embedding_norm": "norm",
}
#: Written into released configurations, and read by no class of transformers.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"block_use_swiglu": (None, True), "use_pos_enc": (None, True)}


def _convolution(config: Lfm2Config) -> ShortConvolution | None:
    kinds = enumerate((config.layer_types or ())[: config.num_hidden_layers])
    layers = frozenset(index for index, kind in kinds if kind == _CONVOLUTION)
    return ShortConvolution(layers, config.conv_L_cache) if layers else None


def _biases(config: Lfm2Config) -> frozenset[str]:
    """Projections of a convolution, and its kernel; attention and MLP have no bias."""
    return frozenset(("in_proj", "conv", "out_proj")) if config.conv_bias else frozenset()


def _intermediate(config: Lfm2Config) -> int:
    """Width of the MLP as transformers' Lfm2MLP computes it."""
    width = config.intermediate_size
    if not config.block_auto_adjust_ff_dim:
        return width
    width = int(2 * width / 3)
    if config.block_ffn_dim_multiplier is None:
        return width
    width, multiple = int(config.block_ffn_dim_multiplier * width), config.block_multiple_of
    return int(-(-width // multiple) * multiple)


FAMILY = Family(
    Lfm2Config,
    Lfm2RotaryEmbedding,
    _biases,
    head_norms=True,
    convolution=_convolution,
    intermediate=_intermediate,
    epsilon="norm_eps",
    names=_NAMES,
    neutral=_NEUTRAL,
)


def export(checkpoint: Checkpoint) -> Bundle:
    """The bundle of an LFM2 checkpoint; see `language_bundle`."""
    return language_bundle(checkpoint, FAMILY)
