"""Small checkpoints of every family, random and with nothing left at zero or one, saved as transformers saves them."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Ernie4_5Config,
    Gemma3TextConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
    SmolLM3Config,
)

from hvlc.training.tokenizer import VOCABULARY_SIZE, build_nano_tokenizer, special_token_id
from tests.helpers.tiny import randomize

#: Families that see and speak; `tests.helpers.tiny` and `tests.helpers.tiny_vision_language` save them.
VISION_LANGUAGE = (
    "gemma3",
    "hypervl",
    "idefics3",
    "internvl",
    "internvl_chat",
    "lfm2_vl",
    "lighton_ocr",
    "qianfan_ocr",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)
TEXT: dict[str, type[PreTrainedConfig]] = {
    "ernie4_5": Ernie4_5Config,
    "gemma3_text": Gemma3TextConfig,
    "granite": GraniteConfig,
    "lfm2": Lfm2Config,
    "llama": LlamaConfig,
    "ministral": MinistralConfig,
    "ministral3": Ministral3Config,
    "mistral": MistralConfig,
    "phi3": Phi3Config,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "smollm3": SmolLM3Config,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONTEXT = 96
#: What sets a family apart where its class leaves it off, so that it is in every check.
APART: dict[str, dict[str, Any]] = {
    "ernie4_5": {"head_dim": 16},
    # both kinds of layers, of which one forgets what a prompt of 11 tokens began with; heads wider than the model
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1_000_000.0},
        },
    },
    # powers of two: scales that are rounded to float16 are rounded alike
    "granite": {
        "embedding_multiplier": 4.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.125,
        "logits_scaling": 2.0,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "ministral": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "ministral3": {"head_dim": 16},
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 0]},
}
IMAGE, PATCH, SIDE = 32, 8, 4


def text_config(family: str, **changes: Any) -> PreTrainedConfig:
    end = special_token_id("<|endoftext|>")
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": special_token_id("<|im_end|>"),
        "pad_token_id": end,
        "bos_token_id": end,
        **APART.get(family, {}),
    }
    return TEXT[family](**deepcopy(settings | changes))  # classes fill defaults into dictionaries that they are given


def save_text(directory: Path, family: str, dtype: str = "float32", seed: int = 0, **changes: Any) -> Path:
    """A text decoder with its tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(text_config(family, **changes)).eval()
    randomize(model, seed)
    with torch.no_grad():  # a small share of the residual stream, so that an answer is not one token again and again
        model.get_input_embeddings().weight.mul_(0.3)
        for name, value in model.named_parameters():
            if family == "gemma3_text" and name.endswith("norm.weight"):  # gains are stored less 1
                value.sub_(1)
    model.tie_weights()
    _save(model, directory, dtype)
    build_nano_tokenizer().save_pretrained(directory)
    return directory


def vision_config(family: str, **changes: Any) -> PreTrainedConfig:
    settings: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": PATCH,
        **({"num_patches": SIDE**2} if family.startswith("siglip2") else {"image_size": IMAGE}),
    } | changes
    text = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 3}
    text |= {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    match family:
        case "siglip_vision_model":
            return SiglipVisionConfig(**settings)
        case "siglip2_vision_model":
            return Siglip2VisionConfig(**settings)
        case "siglip":
            return SiglipConfig(vision_config=settings, text_config=text)
        case _:
            return Siglip2Config(vision_config=settings, text_config=text)


def save_vision(directory: Path, family: str, dtype: str = "float32", seed: int = 0, **changes: Any) -> Path:
    """A vision tower, alone or with its text tower."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(vision_config(family, **changes)).eval()
    randomize(model, seed)
    _save(model, directory, dtype)
    return directory


def _save(model: PreTrainedModel, directory: Path, dtype: str) -> None:
    model.to(DTYPES[dtype]).save_pretrained(directory)


def vision_tower(directory: Path) -> torch.nn.Module:
    """transformers' vision model of a checkpoint, in float32."""
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    return getattr(model, "vision_model", model)


def hollow_text(directory: Path, family: str, **changes: Any) -> Path:
    """A checkpoint of any size that has names and shapes, and holes where its weights should be."""
    config = text_config(family, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return _hollow(directory, config, model)


def hollow_vision(directory: Path, family: str, **changes: Any) -> Path:
    """The same of a vision tower."""
    config = vision_config(family, **changes)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return _hollow(directory, config, model)


def _hollow(directory: Path, config: PreTrainedConfig, model: torch.nn.Module) -> Path:
    directory.mkdir()
    config.save_pretrained(directory)
    header: dict[str, Any] = {}
    end = 0
    for name, value in model.state_dict(keep_vars=True).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        size = 2 * value.numel()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return directory
