"""What llama.cpp calls things, and what transformers calls them: configuration and parameters of text decoders.

Only what the exported families need, and strictly: a key that changes the numbers and that nobody here reads is
refused. Sources: llama.cpp's gguf-py/gguf/constants.py and convert_hf_to_gguf.py.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hvlc.errors import HvlcError, UserError, raise_all
from hvlc.weights.gguf.file import GgufFile

ARCHITECTURES = ("llama", "qwen2", "qwen3")

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PLACE = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")

#: Keys below the architecture's name to transformers' names.
_DIMENSIONS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_FREQUENCIES = "rope_freqs.weight"  # what Llama 3.1's long context divides each frequency by
#: The scaling of every Llama 3.1 to 3.3 but for its factor; a file holds its result only.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
#: Keys that are read elsewhere or change no number; `vocab_size` is what the table has rows for.
_READ = {*_DIMENSIONS, "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size"}
_READ |= {"rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor"}
_READ |= {"rope.scaling.original_context_length", "rope.scaling.finetuned"}


def parameter_name(name: str) -> str | None:
    """transformers' name of a tensor, or None for one that is no parameter of the exported families."""
    match = _PLACE.fullmatch(name)
    if match is None:
        return None
    layer, part, leaf = match.groups()
    known = (_TOP if layer is None else _LAYER).get(part)
    if known is None:
        return None
    return f"{known}.{leaf}" if layer is None else f"model.layers.{layer}.{known}.{leaf}"


def interleaved_heads(file: GgufFile, name: str) -> int:
    """Into how many heads the rows of a tensor fall whose halves the converter interleaved; 0 where it did not.

    llama.cpp rotates neighbouring rows of Llama's queries and keys, transformers halves of a head (`LlamaModel.permute`
    in convert_hf_to_gguf.py).
    """
    if file.metadata.get("general.architecture") != "llama":
        return 0
    part = name.rpartition(".")[0].rpartition(".")[2]
    heads = file.metadata.get("llama.attention.head_count")
    of = {"attn_q": heads, "attn_k": file.metadata.get("llama.attention.head_count_kv", heads)}
    found = of.get(part, 0)
    return max(found, 0) if isinstance(found, int) else 0


def derived_config(file: GgufFile) -> dict[str, Any]:
    """What config.json would say, from the metadata.

    Raises:
        UserError: another architecture, a missing or odd value, or a setting that is not read; all of it at once.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        cause = f"{file.path} holds the architecture {architecture!r}, read are {', '.join(ARCHITECTURES)}"
        raise UserError("checkpoint.model_type", cause, "name a checkpoint directory with config.json")
    settings = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    _refuse_unread(file, settings)
    heads = settings["attention.head_count"]
    width = settings.get("attention.key_length", settings.get("rope.dimension_count"))
    biased = {"blk.0.attn_q.bias", "blk.0.attn_output.bias"} & file.entries.keys()
    return {
        "model_type": architecture,
        **{name: settings[key] for key, name in _DIMENSIONS.items()},
        "num_key_value_heads": settings.get("attention.head_count_kv", heads),
        **({} if width is None else {"head_dim": width}),
        "hidden_act": "silu",
        "rope_parameters": _rope(file, settings),
        "vocab_size": file.entries["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.entries,
        **({} if architecture == "qwen2" else {"attention_bias": bool(biased)}),
        **({"mlp_bias": "blk.0.ffn_up.bias" in file.entries} if architecture == "llama" else {}),
        **{name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key, name in _TOKENS.items()},
    }


def _refuse_unread(file: GgufFile, settings: Mapping[str, Any]) -> None:
    """Everything that is missing, odd, or changes the numbers and has no place in the configuration.

    Raises:
        UserError: all of it at once.
    """
    numbers = {key: settings.get(key) for key in _DIMENSIONS}
    numbers |= {key: settings[key] for key in ("rope.freq_base", "rope.scaling.factor") if key in settings}
    causes = [f"{key} is {value!r}" for key, value in numbers.items() if isinstance(value, bool | list | str | None)]
    causes += [f"{key} is {value!r}, which is not read" for key, value in settings.items() if key not in _READ]
    if "token_embd.weight" not in file.entries:
        causes.append("token_embd.weight is missing")
    for name in file.entries:
        if parameter_name(name) is None and name != _FREQUENCIES:
            causes.append(f"the tensor {name} is not read")
    kind = settings.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        causes.append(f"rope.scaling.type is {kind!r}, read are none and linear")
    width = settings.get("attention.key_length", settings.get("rope.dimension_count"))
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(key, width) != width:
            causes.append(f"{key} is {settings[key]!r}, heads are {width} wide")
    problems: list[HvlcError] = [_refusal(file, cause) for cause in causes]
    raise_all(problems)


def _refusal(file: GgufFile, cause: str) -> UserError:
    fix = "put the model's config.json beside the file, and name the directory"
    return UserError("checkpoint.config", f"{file.path}: {cause}", fix)


def _rope(file: GgufFile, settings: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rotary settings.

    Raises:
        UserError: the file divides its frequencies by other numbers than Llama 3's.
    """
    rope = {"rope_theta": settings.get("rope.freq_base", 10000.0)}  # llama.cpp's default
    if _FREQUENCIES in file.entries:
        entry = file.entries[_FREQUENCIES]
        count = math.prod(entry.shape) if entry.kind == "F32" else 0
        divisors = np.frombuffer(file.buffer, np.float32, count, entry.offset)
        scaling = {**rope, "rope_type": "llama3", "factor": float(divisors.max(initial=1)), **_LLAMA3}
        if not count or not np.allclose(divisors, _llama3_divisors(scaling, count), rtol=1e-5, atol=0):
            raise _refusal(file, f"{_FREQUENCIES} holds other numbers than those of Llama 3")
        return scaling
    if settings.get("rope.scaling.type") == "linear":
        return rope | {"rope_type": "linear", "factor": settings.get("rope.scaling.factor", 1.0)}
    return rope | {"rope_type": "default"}


def _llama3_divisors(scaling: Mapping[str, Any], count: int) -> np.ndarray:
    """What Llama 3 divides its frequencies by (transformers' `_compute_llama3_parameters`), float64 `[count]`."""
    low, high, context = (scaling[key] for key in _LLAMA3)
    turns = context / math.tau * scaling["rope_theta"] ** (-np.arange(count) / count)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)
