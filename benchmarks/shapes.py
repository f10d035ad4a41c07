"""Shapes of models that benchmarks build: the sizes of public checkpoints, as transformers configurations."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_shapes import internvl35_1b, internvl35_2b, lfm2_vl_16b, qwen3_vl_2b, save_processor, smolvlm2_2b

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _qwen3(**sizes: Any) -> "PretrainedConfig":
    """Qwen3: per-head norms of queries and keys, no biases."""
    from transformers import Qwen3Config

    common: dict[str, Any] = {
        "vocab_size": 151936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
        "architectures": ["Qwen3ForCausalLM"],
        "dtype": "bfloat16",
    }
    return Qwen3Config(**{**common, **sizes})


def _llama(**sizes: Any) -> "PretrainedConfig":
    """Llama 3.2, with its frequency-dependent stretch of the rotary positions."""
    from transformers import LlamaConfig

    stretch = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    common: dict[str, Any] = {
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": stretch,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128009,
        "pad_token_id": 128004,
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
    }
    return LlamaConfig(**{**common, **sizes})


def _hypervl() -> "PretrainedConfig":
    """The paper's size; the image tokens are those of the byte-level tokenizer that checkpoints here get."""
    from hvlc.models.hypervl import paper_config
    from hvlc.training.tokenizer import IMAGE, ROW, VISION_END, VISION_START, special_token_id

    config = paper_config()
    config.image_token_id, config.row_token_id = special_token_id(IMAGE), special_token_id(ROW)
    config.vision_start_token_id, config.vision_end_token_id = map(special_token_id, (VISION_START, VISION_END))
    config.architectures = ["HyperVLForConditionalGeneration"]
    return config


@dataclass(frozen=True)
class Shape:
    """A model size.

    Attributes:
        name: what the command line calls it.
        config: makes its transformers configuration.
        peer: whether onnxruntime-genai's builder can build it.
        save_processor: writes tokenizer and image processor beside the weights. None: the byte-level tokenizer alone.
    """

    name: str
    config: Callable[[], "PretrainedConfig"]
    peer: bool = True
    save_processor: Callable[[Any, Path], None] | None = None


_SHAPES = (
    Shape(
        "tiny",
        lambda: _qwen3(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=512,
            max_position_embeddings=2048,
            bos_token_id=256,
            eos_token_id=257,
            pad_token_id=256,
        ),
    ),
    Shape(
        "qwen3-0.6b",
        lambda: _qwen3(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16),
    ),
    Shape(
        "qwen3-1.7b",
        lambda: _qwen3(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
    ),
    Shape(
        "qwen3-8b",
        lambda: _qwen3(
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            tie_word_embeddings=False,
        ),
    ),
    Shape(
        "llama-3.2-1b",
        lambda: _llama(
            hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64
        ),
    ),
    Shape("hypervl", _hypervl, peer=False),
    Shape("smolvlm2-2.2b", smolvlm2_2b, False, save_processor),
    Shape("internvl3.5-1b", internvl35_1b, False, save_processor),
    Shape("internvl3.5-2b", internvl35_2b, False, save_processor),
    Shape("lfm2-vl-1.6b", lfm2_vl_16b, False, save_processor),
    Shape("qwen3-vl-2b", qwen3_vl_2b, False, save_processor),
)

#: Every shape by its name.
SHAPES = {shape.name: shape for shape in _SHAPES}
