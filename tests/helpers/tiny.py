"""A HyperVL of random weights, small enough for a test and with nothing left at zero or one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen3Config, SiglipVisionConfig

from hvlc.models.hypervl import (
    HyperVLConfig,
    HyperVLForConditionalGeneration,
    HyperVLImageProcessor,
    HyperVLProcessor,
    HyperVLResolutionConfig,
)
from hvlc.training.tokenizer import VOCABULARY_SIZE, build_nano_tokenizer, special_token_id

TILE, PATCH, CELL, PROXY, HIDDEN = 32, 8, 16, 64, 64
CONTEXT = 1024


def tiny_config(*, tied: bool = True, hidden: int = HIDDEN, **text: Any) -> HyperVLConfig:
    tile: dict[str, Any] = {"image_size": TILE, "patch_size": PATCH, "vision_use_head": False}
    end = special_token_id("<|endoftext|>")
    return HyperVLConfig(
        base_vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, **tile
        ),
        large_vision_config=SiglipVisionConfig(
            hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=3, **tile
        ),
        text_config=Qwen3Config(
            **{
                "vocab_size": VOCABULARY_SIZE,
                "hidden_size": hidden,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": CONTEXT,
                "tie_word_embeddings": tied,
                "eos_token_id": special_token_id("<|im_end|>"),
                "pad_token_id": end,
                "bos_token_id": end,
                **text,
            }
        ),
        resolution_config=HyperVLResolutionConfig(proxy_size=PROXY, hidden_size=16),
        image_token_id=special_token_id("<|image_pad|>"),
        row_token_id=special_token_id("<|vision_pad|>"),
        vision_start_token_id=special_token_id("<|vision_start|>"),
        vision_end_token_id=special_token_id("<|vision_end|>"),
        tie_word_embeddings=tied,
    )


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Weights of a size that keeps activations near one; biases, norms and statistics that matter too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point() or "inv_freq" in name:
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.copy_(1 + 0.2 * noise.clamp(-2, 2))
            elif value.ndim < 2:
                value.copy_(0.1 * noise)
            else:
                value.copy_(noise * value[0].numel() ** -0.5)


def tiny_model(seed: int = 0, **options: Any) -> HyperVLForConditionalGeneration:
    model = HyperVLForConditionalGeneration(tiny_config(**options)).eval()
    randomize(model, seed)
    with torch.no_grad():  # a small share of the residual stream, so that an answer is not one token again and again
        model.get_input_embeddings().weight.mul_(0.3)
    model.tie_weights()
    model.generation_config.eos_token_id = special_token_id("<|im_end|>")
    model.generation_config.pad_token_id = special_token_id("<|endoftext|>")
    return model


def tiny_processor() -> HyperVLProcessor:
    return HyperVLProcessor(HyperVLImageProcessor(TILE, CELL, PROXY, max_visual_tokens=200), build_nano_tokenizer())


def save_tiny(directory: Path, seed: int = 0, **options: Any) -> Path:
    tiny_model(seed, **options).save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours and noise, so that resizing matters."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + random.integers(-20, 21, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
