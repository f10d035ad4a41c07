"""Gemma 3 in GGUF files: what llama.cpp's converter and its model of this architecture say apart from Llama.

Sources: llama.cpp's conversion/gemma.py (gains are stored as they are used, one more than in transformers) and
src/models/gemma3.cpp (what a file need not say: the period of layers that see everything, the base of the others, and
the scale of the scores, which follows from the number of layers).
"""

from collections.abc import Mapping
from typing import Any

ARCHITECTURE = "gemma3"
#: Number that the converter adds to the gain of every norm.
OFFSET = 1
#: Norms of a layer: llama.cpp's names to transformers'.
NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
#: Keys below the architecture's name that other files do not have.
READ = frozenset({_WINDOW, _PATTERN, "rope.freq_base_swa"})
#: Keys without which a file is not read.
REQUIRED = frozenset({_WINDOW, "attention.key_length"})
_PERIOD = 6  # of layers of which the last sees everything
_LARGEST = 62  # layers of the 27B, whose scores are scaled by the width of the model
_SLIDING, _FULL = "sliding_attention", "full_attention"


def obstacles(settings: Mapping[str, Any]) -> list[str]:
    """Problems of the architecture's own settings that cannot be read."""
    pattern = settings.get(_PATTERN, _PERIOD)
    whole = type(pattern) is int and 1 <= pattern <= 10_000
    listed = isinstance(pattern, bool | list) and _is_of_bits(pattern, settings.get("block_count"))
    if whole or listed:
        return []
    text = f"an array of {len(pattern)}" if isinstance(pattern, list) else repr(pattern)[:80]
    return [f"{_PATTERN} is {text}, expected is a period, or whether each layer has a window"]


def _is_of_bits(pattern: bool | list[Any], layers: object) -> bool:
    return isinstance(pattern, bool) or (len(pattern) == layers and all(type(value) is bool for value in pattern))


def derived(settings: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of config.json for a Gemma 3 besides, or in the place of, a Llama's.

    Args:
        settings: keys below the architecture's name; dimensions are known to be there.
        rope: rotary settings of the layers that see everything.
    """
    layers, width = settings["block_count"], settings["attention.key_length"]
    pattern = settings.get(_PATTERN, _PERIOD)
    if isinstance(pattern, bool):
        windows = [pattern] * layers
    else:
        windows = pattern if isinstance(pattern, list) else [bool((i + 1) % pattern) for i in range(layers)]
    by_model = settings["embedding_length"] // settings["attention.head_count"]
    return {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": by_model if layers == _LARGEST else width,
        "sliding_window": settings[_WINDOW],
        "layer_types": [_SLIDING if window else _FULL for window in windows],
        "rope_parameters": {
            _FULL: dict(rope),
            _SLIDING: {"rope_type": "default", "rope_theta": settings.get("rope.freq_base_swa", 10000.0)},
        },
    }
