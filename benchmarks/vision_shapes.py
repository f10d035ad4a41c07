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


def save_processor(config: Any, directory: Path) -> None:
    """Tokenizer, chat template and image processor of one of these models.

    Args:
        config: of the model.
        directory: where its weights are.
    """
    from hvlc.training.tokenizer import build_byte_tokenizer

    overview = config.model_type == "smolvlm"
    tokens, template = (_OVERVIEW_TOKENS, _OVERVIEW_TEMPLATE) if overview else (_RATIO_TOKENS, _RATIO_TEMPLATE)
    end = "<end_of_utterance>" if overview else "<|im_end|>"
    build_byte_tokenizer(tokens, end, template, list(tokens[1:])).save_pretrained(directory)
    images: dict[str, Any] = {"rescale_factor": 1 / 255}
    if overview:
        images |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 1}
        images |= {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}, "do_image_splitting": True}
        whole: dict[str, Any] = {"processor_class": "SmolVLMProcessor", "image_seq_len": 81}
    else:
        images |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
        images |= {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "min_patches": 1, "max_patches": 12}
        whole = {"processor_class": "InternVLProcessor", "image_seq_length": 256}
    (directory / "preprocessor_config.json").write_text(json.dumps(images), "utf-8")
    (directory / "processor_config.json").write_text(json.dumps(whole), "utf-8")
