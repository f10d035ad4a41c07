"""Small checkpoints of LFM2-VL: transformers' own classes, random weights."""

from pathlib import Path
from typing import Any

from transformers import Lfm2Config, Lfm2VlConfig

from hvlc.models.lfm2_vl import Lfm2VlImageProcessorPil
from tests.helpers.tiny_vision_language import byte_tokenizer, save, text_settings

TILE, PATCH, FACTOR, MOST = 32, 4, 2, 6
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
    *(f"<|img_row_{r}_col_{c}|>" for r in range(1, MOST + 1) for c in range(1, MOST + 1)),
)
#: The form of LFM2-VL's own template.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_naflex(
    directory: Path,
    *,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    template: str = TEMPLATE,
    pictures: dict[str, Any] | None = None,
    projector: dict[str, Any] | None = None,
    tied: bool = True,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """An LFM2-VL: positions of 5 x 5 patches, tiles of 8 x 8.

    Args:
        directory: where it is saved.
        vision: other settings of the tower.
        text: other settings of the decoder.
        template: for chats.
        pictures: other settings of the image processor.
        projector: other settings of the whole.
        tied: whether the head is the embedding table.
        dtype: of the weights.
        seed: of the weights.
    """
    tokenizer = byte_tokenizer(SPECIALS, template, "<|im_end|>")
    tower = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3}
    tower |= {"model_type": "siglip2_vision_model", "patch_size": PATCH, "num_patches": 25, "vision_use_head": False}
    decoder = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]}
    decoder |= {"block_multiple_of": 16, "tie_word_embeddings": tied}
    config = Lfm2VlConfig(
        text_config=Lfm2Config(**text_settings(tokenizer, **decoder | (text or {}))),
        vision_config=tower | (vision or {}),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=tied,
        **{"downsample_factor": FACTOR, "projector_hidden_size": 48} | (projector or {}),
    )
    seen = {"tile_size": TILE, "encoder_patch_size": PATCH, "min_image_tokens": 4, "max_image_tokens": 16}
    images = Lfm2VlImageProcessorPil(**seen | {"max_tiles": MOST} | (pictures or {}))
    save(directory, config, tokenizer, images, seed=seed, dtype=dtype)
    (directory / "processor_config.json").write_text('{"processor_class": "Lfm2VlProcessor"}', "utf-8")
    return directory
