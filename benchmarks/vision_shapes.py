"""Sizes of public vision-language models, with processors around a byte-level tokenizer.

Widths, depths and tile sizes are those that the released models are known to have (general knowledge: no released
configuration was at hand); vocabularies keep their rows, of which the tokenizer here names the first few hundred.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OVERVIEW_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] }}:{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{ line['text'] }}{% else %}<image>{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_OVERVIEW_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
_RATIO_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{ line['text'] }}{% else %}<IMG_CONTEXT>\n{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_RATIO_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
_GRID_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{ line['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GRID_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
_TILES_TOKENS = (
    *(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        "<|image_start|>",
        "<|image_end|>",
        "<|img_thumbnail|>",
    ),
    *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)),
)
_BYTES = 256


def _ends(tokens: Sequence[str], end: str) -> dict[str, Any]:
    ids = {text: _BYTES + at for at, text in enumerate(tokens)}
    return {"bos_token_id": ids[tokens[0]], "eos_token_id": ids[end], "pad_token_id": ids[tokens[0]]}


def smolvlm2_2b() -> "PretrainedConfig":
    """SmolVLM2-2.2B: SigLIP-so400m at 384 pixels, pixel shuffle 3, SmolLM2-1.7B."""
    from transformers import LlamaConfig, SmolVLMConfig

    text = LlamaConfig(
        vocab_size=49280,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 273768.0},
        **_ends(_OVERVIEW_TOKENS, "<end_of_utterance>"),
    )
    tower = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
    return SmolVLMConfig(
        text_config=text,
        vision_config=tower,
        scale_factor=3,
        image_token_id=_BYTES + _OVERVIEW_TOKENS.index("<image>"),
        tie_word_embeddings=False,
        architectures=["SmolVLMForConditionalGeneration"],
        dtype="bfloat16",
    )


def _internvl35(**text: Any) -> "PretrainedConfig":
    """InternVL3.5: InternViT-300M at 448 pixels, pixel shuffle 2, a Qwen3."""
    from transformers import InternVLConfig, Qwen3Config

    decoder = Qwen3Config(
        vocab_size=151936,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        **_ends(_RATIO_TOKENS, "<|im_end|>"),
        **text,
    )
    tower = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "attention_bias": True,
        "image_size": [448, 448],
        "patch_size": [14, 14],
    }
    return InternVLConfig(
        text_config=decoder,
        vision_config=tower,
        image_token_id=_BYTES + _RATIO_TOKENS.index("<IMG_CONTEXT>"),
        tie_word_embeddings=True,
        architectures=["InternVLForConditionalGeneration"],
        dtype="bfloat16",
    )


def internvl35_1b() -> "PretrainedConfig":
    """InternVL3.5-1B, on Qwen3-0.6B."""
    return _internvl35(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16)


def internvl35_2b() -> "PretrainedConfig":
    """InternVL3.5-2B, on Qwen3-1.7B."""
    return _internvl35(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16)


def qwen3_vl_2b() -> "PretrainedConfig":
    """Qwen3-VL-2B: a tower over the image's own grid with three taps, on Qwen3-1.7B."""
    from transformers import Qwen3VLConfig

    text = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        "tie_word_embeddings": True,
        **_ends(_GRID_TOKENS, "<|im_end|>"),
    }
    tower = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    shown = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return Qwen3VLConfig(
        text_config=text,
        vision_config=tower,
        tie_word_embeddings=True,
        architectures=["Qwen3VLForConditionalGeneration"],
        dtype="bfloat16",
        **{name: _BYTES + _GRID_TOKENS.index(token) for name, token in zip(names, shown, strict=True)},
    )


def lfm2_vl_16b() -> "PretrainedConfig":
    """LFM2-VL-1.6B: SigLIP2-so400m over native images and tiles, on LFM2-1.2B."""
    from transformers import Lfm2VlConfig

    attention = (2, 5, 8, 10, 12, 14)
    text = {
        "model_type": "lfm2",
        "vocab_size": 65536,
        "hidden_size": 2048,
        "intermediate_size": 12288,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "conv_L_cache": 3,
        "layer_types": ["full_attention" if layer in attention else "conv" for layer in range(16)],
        "tie_word_embeddings": True,
        **_ends(_TILES_TOKENS, "<|im_end|>"),
    }
    tower = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_patches": 256,
        "patch_size": 16,
    }
    return Lfm2VlConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=_BYTES + _TILES_TOKENS.index("<image>"),
        projector_hidden_size=2560,
        downsample_factor=2,
        tie_word_embeddings=True,
        architectures=["Lfm2VlForConditionalGeneration"],
        dtype="bfloat16",
    )


_PROCESSORS: dict[str, tuple[tuple[str, ...], str, str, dict[str, Any], dict[str, Any]]] = {
    "smolvlm": (
        _OVERVIEW_TOKENS,
        _OVERVIEW_TEMPLATE,
        "<end_of_utterance>",
        {
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 1,
            "size": {"longest_edge": 1536},
            "max_image_size": {"longest_edge": 384},
            "do_image_splitting": True,
        },
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 81},
    ),
    "internvl": (
        _RATIO_TOKENS,
        _RATIO_TEMPLATE,
        "<|im_end|>",
        {
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": {"height": 448, "width": 448},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 12,
        },
        {"processor_class": "InternVLProcessor", "image_seq_length": 256},
    ),
    "lfm2_vl": (
        _TILES_TOKENS,
        _GRID_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>"),
        "<|im_end|>",
        {
            "image_processor_type": "Lfm2VlImageProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 2,
            "encoder_patch_size": 16,
            "tile_size": 512,
            "min_tiles": 2,
            "max_tiles": 10,
            "min_image_tokens": 64,
            "max_image_tokens": 256,
            "downsample_factor": 2,
            "use_thumbnail": True,
            "do_image_splitting": True,
        },
        {"processor_class": "Lfm2VlProcessor"},
    ),
    "qwen3_vl": (
        _GRID_TOKENS,
        _GRID_TEMPLATE,
        "<|im_end|>",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 3,
            "size": {"shortest_edge": 65536, "longest_edge": 16777216},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
        {"processor_class": "Qwen3VLProcessor"},
    ),
}


def save_processor(config: Any, directory: Path) -> None:
    """Tokenizer, chat template and image processor of one of these models.

    Args:
        config: of the model.
        directory: where its weights are.
    """
    from hvlc.training.tokenizer import build_byte_tokenizer

    tokens, template, end, images, whole = _PROCESSORS[config.model_type]
    build_byte_tokenizer(tokens, end, template, list(tokens[1:])).save_pretrained(directory)
    images = {"rescale_factor": 1 / 255} | images
    (directory / "preprocessor_config.json").write_text(json.dumps(images), "utf-8")
    (directory / "processor_config.json").write_text(json.dumps(whole), "utf-8")
