"""Map llama.cpp's names to transformers': configuration keys and parameters of text decoders.

Only the exported families are covered, strictly: an unknown key that changes the numbers is refused. Sources:
llama.cpp's gguf-py/gguf/constants.py and convert_hf_to_gguf.py.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hvlc.errors import HvlcError, UserError, raise_all
from hvlc.weights.gguf import gemma3
from hvlc.weights.gguf.file import GgufFile
from hvlc.weights.gguf.vocabulary import end_tokens

ARCHITECTURES = (gemma3.ARCHITECTURE, "llama", "qwen2", "qwen3")

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
_TOKENS = {"bos": "bos_token_id", "padding": "pad_token_id"}
#: Numbers that are read, their types, and bounds far outside of what any model has.
_NUMBERS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "context_length": (int, 1, 2**31 - 1),
    "embedding_length": (int, 1, 2**20),
    "block_count": (int, 1, 10_000),
    "feed_forward_length": (int, 1, 2**24),
    "attention.head_count": (int, 1, 2**16),
    "attention.head_count_kv": (int, 1, 2**16),
    "attention.key_length": (int, 1, 2**16),
    "attention.value_length": (int, 1, 2**16),
    "attention.layer_norm_rms_epsilon": (float, 0, 1),
    "rope.dimension_count": (int, 1, 2**16),
    "attention.sliding_window": (int, 1, 2**31 - 1),
    "rope.freq_base": (float, 1e-3, 1e15),
    "rope.freq_base_swa": (float, 1e-3, 1e15),
    "rope.scaling.factor": (float, 0, 1e6),
}
#: Keys that are read elsewhere or change no number; `vocab_size` is what the table has rows for.
_READ = {*_DIMENSIONS, "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size"}
_READ |= {"rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor"}
_READ |= {"rope.scaling.original_context_length", "rope.scaling.finetuned"}


def parameter_name(name: str, architecture: object) -> str | None:
    """transformers' name of a tensor. None: it is not a parameter of the exported families.

    Args:
        name: llama.cpp's.
        architecture: of the file.
    """
    match = _PLACE.fullmatch(name)
    if match is None:
        return None
    layer, part, leaf = match.groups()
    parts = _LAYER | gemma3.NORMS if architecture == gemma3.ARCHITECTURE else _LAYER
    known = (_TOP if layer is None else parts).get(part)
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
    found = _one_for_all(of.get(part, 0))
    return max(found, 0) if isinstance(found, int) else 0


def added_offset(file: GgufFile, name: str) -> int:
    """The number that the converter added to every value of a parameter, by its name in transformers."""
    gains = file.metadata.get("general.architecture") == gemma3.ARCHITECTURE and name.endswith("norm.weight")
    return gemma3.OFFSET if gains else 0


def derived_config(file: GgufFile) -> dict[str, Any]:
    """Content of config.json, derived from the metadata.

    Raises:
        UserError: another architecture, a missing or odd value, or a setting that is not read; all of it at once.
    """
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        cause = f"{file.path} holds the architecture {_brief(architecture)}, read are {', '.join(ARCHITECTURES)}"
        raise UserError("checkpoint.model_type", cause, "name a checkpoint directory with config.json")
    settings = {
        key.removeprefix(f"{architecture}."): value
        for key in file.metadata
        if key.startswith(f"{architecture}.")
        for value in [_one_for_all(file.metadata[key])]
    }
    _refuse_unread(file, settings)
    heads = settings["attention.head_count"]
    width = settings.get("attention.key_length", settings.get("rope.dimension_count"))
    biased = {"blk.0.attn_q.bias", "blk.0.attn_output.bias"} & file.entries.keys()
    rope = _rope(file, settings)
    return {
        "model_type": architecture,
        **{name: settings[key] for key, name in _DIMENSIONS.items()},
        "num_key_value_heads": settings.get("attention.head_count_kv", heads),
        **({} if width is None else {"head_dim": width}),
        "hidden_act": "silu",
        "rope_parameters": rope,
        "eos_token_id": _ends(file),
        "vocab_size": file.entries["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.entries,
        **({} if architecture == "qwen2" else {"attention_bias": bool(biased)}),
        **({"mlp_bias": "blk.0.ffn_up.bias" in file.entries} if architecture == "llama" else {}),
        **{name: _token(file, key) for key, name in _TOKENS.items()},
        **(gemma3.derived(settings, rope) if architecture == gemma3.ARCHITECTURE else {}),
    }


def _one_for_all(value: Any) -> Any:
    """The number that an array holds for every layer, where they are all the same."""
    if isinstance(value, list) and value and all(type(v) is type(value[0]) and v == value[0] for v in value):
        return value[0]
    return value


def _token(file: GgufFile, key: str) -> int | None:
    """An id of a row of the table; None: the file names none that there is, which llama.cpp ignores too."""
    found = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    rows = file.entries["token_embd.weight"].shape[0]
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < rows else None


def _ends(file: GgufFile) -> int | list[int] | None:
    """Every token that ends an answer; None: the file names none.

    Raises:
        UserError: the file's tokenizer is damaged.
    """
    try:
        found = end_tokens(file)
    except UserError as error:
        raise _refusal(file, error.cause) from error
    return found if len(found) > 1 else next(iter(found), None)


def _refuse_unread(file: GgufFile, settings: Mapping[str, Any]) -> None:
    """Everything that is missing, odd, or changes the numbers and has no place in the configuration.

    Raises:
        UserError: all of it at once.
    """
    special = file.metadata.get("general.architecture") == gemma3.ARCHITECTURE
    read = _READ | gemma3.READ if special else _READ
    required = {*_DIMENSIONS, *(gemma3.REQUIRED if special else ())}
    numbers = {key: settings.get(key) for key in _NUMBERS if key in settings or key in required}
    causes = [_out_of_bounds(key, value) for key, value in numbers.items()]
    causes = [cause for cause in causes if cause]
    causes += [f"{key} is {_brief(value)}, which is not read" for key, value in settings.items() if key not in read]
    causes += gemma3.obstacles(settings) if special else []
    if "token_embd.weight" not in file.entries:
        causes.append("token_embd.weight is missing")
    for name in file.entries:
        if parameter_name(name, file.metadata.get("general.architecture")) is None and name != _FREQUENCIES:
            causes.append(f"the tensor {name} is not read")
    kind = settings.get("rope.scaling.type", "none")
    if not isinstance(kind, str) or kind not in ("none", "linear"):
        causes.append(f"rope.scaling.type is {_brief(kind)}, read are none and linear")
    width = settings.get("attention.key_length", settings.get("rope.dimension_count"))
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(key, width) != width:
            causes.append(f"{key} is {_brief(settings[key])}, heads are {_brief(width)} wide")
    problems: list[HvlcError] = [_refusal(file, cause) for cause in causes]
    raise_all(problems)


def _out_of_bounds(key: str, value: Any) -> str:
    """Problem of a number; "" when there is none."""
    kind, low, high = _NUMBERS[key]
    fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if fits and low <= value <= high:
        return ""
    what = "a whole number" if kind is int else "a number"
    return f"{key} is {_brief(value)}, expected is {what} from {low:g} to {high:g}"


def _brief(value: Any) -> str:
    text = f"an array of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


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
        heads, width = settings["attention.head_count"], settings["embedding_length"]
        width = settings.get("attention.key_length", settings.get("rope.dimension_count", width // heads))
        divisors = np.frombuffer(file.buffer, np.float32, count, entry.offset)
        scaling = {**rope, "rope_type": "llama3", "factor": float(divisors.max(initial=1)), **_LLAMA3}
        if 2 * count != width or not np.allclose(divisors, _llama3_divisors(scaling, count), rtol=1e-5, atol=0):
            raise _refusal(file, f"{_FREQUENCIES} holds other numbers than those of Llama 3")
        return scaling
    if settings.get("rope.scaling.type") == "linear":
        return rope | {"rope_type": "linear", "factor": settings.get("rope.scaling.factor") or 1.0}  # 0: no scaling
    return rope | {"rope_type": "default"}


def _llama3_divisors(scaling: Mapping[str, Any], count: int) -> np.ndarray:
    """Divisors of Llama 3's frequencies (transformers' `_compute_llama3_parameters`), float64 `[count]`."""
    low, high, context = (scaling[key] for key in _LLAMA3)
    turns = context / math.tau * scaling["rope_theta"] ** (-np.arange(count) / count)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)
