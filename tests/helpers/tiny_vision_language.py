"""Small checkpoints of public vision-language families: transformers' own classes and processors, random weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    LightOnOcrConfig,
    LightOnOcrProcessor,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    QianfanOCRConfig,
    QianfanOCRProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from hvlc.models.smolvlm import load_processor
from tests.chat.templates import GEMMA
from tests.helpers.tiny import randomize

TILE, PATCH, SHUFFLE, LONGEST, CONTEXT = 32, 4, 2, 96, 1024
MOST = 4  # rows and columns that the tokenizer has tokens for
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    *(f"<row_{r}_col_{c}>" for r in range(1, MOST + 1) for c in range(1, MOST + 1)),
)

#: The form of SmolVLM2's own template.
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}: {{ message['content'] }}{% else %}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

RATIO_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")

#: The form of InternVL's own template; Qianfan-OCR's writes "<image>" for an image.
RATIO_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ 'PLACEHOLDER\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

GRID_TOKENS = {
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}
GRID_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *GRID_TOKENS.values())

#: The form of the Qwen-VL families' own templates.
GRID_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

#: Text decoders that InternVL speaks with.
RATIO_TEXT = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def byte_tokenizer(specials: tuple[str, ...], template: str, end: str, **settings: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose one merge makes two newlines a token, as most vocabularies have it."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = chr(256 + 10)
    vocabulary = {symbol: token for token, symbol in enumerate([*symbols, newline * 2])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(newline, newline)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=specials[0],
        pad_token=specials[0],
        eos_token=end,
        clean_up_tokenization_spaces=False,
        chat_template=template,
        **settings,
    )


def text_settings(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    """Settings of a small decoder that fit a tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    } | changes


def overview_processor(directory: Path) -> ProcessorMixin:
    """transformers' processor of a saved SmolVLM or Idefics3, on Pillow."""
    if "SmolVLM" in (directory / "preprocessor_config.json").read_text("utf-8"):
        return load_processor(directory)  # transformers' own wants num2words to be made
    tokenizer = AutoTokenizer.from_pretrained(directory)
    count = json.loads((directory / "processor_config.json").read_text("utf-8"))["image_seq_len"]
    return Idefics3Processor(Idefics3ImageProcessorPil.from_pretrained(directory), tokenizer, image_seq_len=count)


def save(directory: Path, config: PreTrainedConfig, *parts: Any, seed: int = 0, dtype: str = "float32") -> Path:
    """A model of random weights, and the parts of its processor."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    randomize(model, seed)
    with torch.no_grad():  # a small share of the residual stream, so that an answer is not one token again and again
        model.get_input_embeddings().weight.mul_(0.3)
        for name, value in model.named_parameters():
            if isinstance(config, Gemma3Config) and name.endswith("norm.weight") and "vision_tower" not in name:
                value.sub_(1)  # gains are stored less 1
    model.tie_weights()
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    for part in parts:
        part.save_pretrained(directory)
    return directory


def save_overview(
    directory: Path,
    family: str = "smolvlm",
    *,
    tile: int = TILE,
    patch: int = PATCH,
    shuffle: int = SHUFFLE,
    longest: int = LONGEST,
    splits: bool = True,
    tied: bool = False,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """A SmolVLM or an Idefics3.

    Args:
        directory: where it is saved.
        family: "smolvlm" or "idefics3".
        tile: side of a tile in pixels.
        patch: side of a patch.
        shuffle: side of the pixel shuffle.
        longest: longest edge to which an image is resized.
        splits: whether images are split into tiles.
        tied: whether the head is the embedding table.
        vision: other settings of the tower.
        text: other settings of the decoder.
        dtype: of the weights.
        seed: of the weights.
    """
    tokenizer = byte_tokenizer(SPECIALS, TEMPLATE, "<end_of_utterance>")
    config_class = SmolVLMConfig if family == "smolvlm" else Idefics3Config
    config = config_class(
        text_config=LlamaConfig(**text_settings(tokenizer, tie_word_embeddings=tied, **(text or {}))),
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": tile,
            "patch_size": patch,
        }
        | (vision or {}),
        scale_factor=shuffle,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
    )
    settings: dict[str, Any] = {
        "size": {"longest_edge": longest},
        "max_image_size": {"longest_edge": tile},
        "do_image_splitting": splits,
    }
    count = (tile // patch // shuffle) ** 2
    pictures = (SmolVLMImageProcessorPil if family == "smolvlm" else Idefics3ImageProcessorPil)(**settings)
    save(directory, config, tokenizer, pictures, seed=seed, dtype=dtype)
    named = {"processor_class": "SmolVLMProcessor" if family == "smolvlm" else "Idefics3Processor"}
    (directory / "processor_config.json").write_text(json.dumps(named | {"image_seq_len": count}), "utf-8")
    return directory


class _WithoutVideo(ProcessorMixin):
    """A processor whose video processor, which needs torchvision, may be None."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


class _WithoutFrames(_WithoutVideo, InternVLProcessor):
    """InternVL's processor for images and text."""


def ratio_processor(directory: Path) -> ProcessorMixin:
    """transformers' processor of a saved InternVL or Qianfan-OCR, on Pillow."""
    tokenizer, pictures = AutoTokenizer.from_pretrained(directory), GotOcr2ImageProcessorPil.from_pretrained(directory)
    saved = json.loads((directory / "processor_config.json").read_text("utf-8"))
    if saved["processor_class"] == "QianfanOCRProcessor":
        return QianfanOCRProcessor(pictures, tokenizer, image_seq_length=saved["image_seq_length"])
    return _WithoutFrames(pictures, tokenizer, None, image_seq_length=saved["image_seq_length"])


def save_ratio(
    directory: Path,
    family: str = "internvl",
    *,
    tile: int = TILE,
    patch: int = PATCH,
    ratio: float = 0.5,
    decoder: str = "qwen2",
    tied: bool = False,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    pictures: dict[str, Any] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """An InternVL or a Qianfan-OCR.

    Args:
        directory: where it is saved.
        family: "internvl" or "qianfan_ocr".
        tile: side of a tile in pixels.
        patch: side of a patch.
        ratio: of the downsampling.
        decoder: model_type of the text decoder.
        tied: whether the head is the embedding table.
        vision: other settings of the tower.
        text: other settings of the decoder.
        pictures: other settings of the image processor.
        dtype: of the weights.
        seed: of the weights.
    """
    is_internvl = family == "internvl"
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    template = RATIO_TEMPLATE.replace("PLACEHOLDER", "<IMG_CONTEXT>" if is_internvl else "<image>")
    named["video_token"] = "<video>"
    tokenizer = byte_tokenizer(RATIO_SPECIALS, template, "<|im_end|>", extra_special_tokens=named)
    count = round((tile // patch * ratio) ** 2)
    tower = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3}
    tower |= {"image_size": [tile, tile], "patch_size": [patch, patch]} | (vision or {})
    config = (InternVLConfig if is_internvl else QianfanOCRConfig)(
        text_config=RATIO_TEXT[decoder](**text_settings(tokenizer, tie_word_embeddings=tied, **(text or {}))),
        vision_config=tower,
        downsample_ratio=ratio,
        image_seq_length=count,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
    )
    size = {"height": tile, "width": tile}
    settings = {"size": size, "max_patches": 6, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    images = GotOcr2ImageProcessorPil(**settings | (pictures or {}))
    save(directory, config, tokenizer, images, seed=seed, dtype=dtype)
    kind = "InternVLProcessor" if is_internvl else "QianfanOCRProcessor"
    document = {"processor_class": kind, "image_seq_length": count}
    (directory / "processor_config.json").write_text(json.dumps(document), "utf-8")
    return directory


BLOCK_TOKENS = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
BLOCK_SPECIALS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", *BLOCK_TOKENS.values())


def block_processor(directory: Path) -> ProcessorMixin:
    """transformers' processor of a saved Gemma 3, on Pillow."""
    tokenizer, pictures = AutoTokenizer.from_pretrained(directory), Gemma3ImageProcessorPil.from_pretrained(directory)
    saved = json.loads((directory / "processor_config.json").read_text("utf-8"))
    return Gemma3Processor(pictures, tokenizer, image_seq_length=saved["image_seq_length"])


def save_block(
    directory: Path,
    *,
    image: int = TILE,
    patch: int = PATCH,
    cells: int = 4,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    pictures: dict[str, Any] | None = None,
    template: str = GEMMA,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """A Gemma 3 that sees.

    Args:
        directory: where it is saved.
        image: side of an image in pixels.
        patch: side of a patch in pixels.
        cells: side of the square of visual tokens of an image.
        vision: other settings of the tower.
        text: other settings of the decoder.
        pictures: other settings of the image processor.
        template: for chats.
        dtype: of the weights.
        seed: of the weights.
    """
    tokenizer = byte_tokenizer(BLOCK_SPECIALS, template, "<end_of_turn>", extra_special_tokens=BLOCK_TOKENS)
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])  # found whole, before anything is merged
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in BLOCK_TOKENS.items()}
    tower = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3}
    tower |= {"image_size": image, "patch_size": patch, "vision_use_head": False} | (vision or {})
    decoder = {"head_dim": 32, "query_pre_attn_scalar": 16, "sliding_window": 10, "num_hidden_layers": 3}
    decoder |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]} | (text or {})
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**text_settings(tokenizer, **decoder)),
        vision_config=SiglipVisionConfig(**tower),
        mm_tokens_per_image=cells**2,
        boi_token_index=ids["boi_token"],
        image_token_index=ids["image_token"],
        eoi_token_index=ids["eoi_token"],
    )
    images = Gemma3ImageProcessorPil(size={"height": image, "width": image}, **(pictures or {}))
    save(directory, config, tokenizer, images, seed=seed, dtype=dtype)
    document = {"processor_class": "Gemma3Processor", "image_seq_length": cells**2}
    (directory / "processor_config.json").write_text(json.dumps(document), "utf-8")
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    """Change the top level of a JSON file; None removes a key."""
    content = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")


class _Qwen2VLWithoutFrames(_WithoutVideo, Qwen2VLProcessor):
    """Qwen2-VL's processor for images and text."""


class _Qwen25VLWithoutFrames(_WithoutVideo, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor for images and text."""


class _Qwen3VLWithoutFrames(_WithoutVideo, Qwen3VLProcessor):
    """Qwen3-VL's processor for images and text."""


@dataclass(frozen=True)
class _GridFamily:
    """What tells the families with a grid apart.

    Attributes:
        config: transformers' class.
        processor: transformers' class, for images and text.
        vision: settings of a small tower.
        text: other settings of a small decoder.
    """

    config: type[PreTrainedConfig]
    processor: type[ProcessorMixin]
    vision: dict[str, Any]
    text: dict[str, Any]


_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
GRID_FAMILIES = {
    "qwen2_vl": _GridFamily(
        Qwen2VLConfig,
        _Qwen2VLWithoutFrames,
        {"depth": 3, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 2, "hidden_size": 64},
        {"rope_parameters": _SECTIONS},
    ),
    "qwen2_5_vl": _GridFamily(
        Qwen2_5_VLConfig,
        _Qwen25VLWithoutFrames,
        {
            "depth": 4,
            "hidden_size": 48,
            "num_heads": 3,
            "intermediate_size": 72,
            "out_hidden_size": 64,
            "window_size": 24,
            "fullatt_block_indexes": [1, 3],
        },
        {"rope_parameters": _SECTIONS},
    ),
    "qwen3_vl": _GridFamily(
        Qwen3VLConfig,
        _Qwen3VLWithoutFrames,
        {
            "depth": 4,
            "hidden_size": 48,
            "num_heads": 3,
            "intermediate_size": 72,
            "out_hidden_size": 64,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 2],
        },
        {"head_dim": 16, "rope_parameters": _SECTIONS | {"mrope_interleaved": True}},
    ),
}


def grid_processor(directory: Path) -> ProcessorMixin:
    """transformers' processor of a saved Qwen2-VL, Qwen2.5-VL or Qwen3-VL, on Pillow."""
    tokenizer, pictures = AutoTokenizer.from_pretrained(directory), Qwen2VLImageProcessorPil.from_pretrained(directory)
    kind = json.loads((directory / "config.json").read_text("utf-8"))["model_type"]
    return GRID_FAMILIES[kind].processor(pictures, tokenizer, None)


def save_grid(
    directory: Path,
    family: str = "qwen3_vl",
    *,
    patch: int = PATCH,
    merge: int = 2,
    tied: bool = False,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    pictures: dict[str, Any] | None = None,
    template: str = GRID_TEMPLATE,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """A Qwen2-VL, a Qwen2.5-VL or a Qwen3-VL.

    Args:
        directory: where it is saved.
        family: its model_type.
        patch: side of a patch in pixels.
        merge: side of the squares of patches that merge.
        tied: whether the head is the embedding table.
        vision: other settings of the tower.
        text: other settings of the decoder.
        pictures: other settings of the image processor.
        template: for chats.
        dtype: of the weights.
        seed: of the weights.
    """
    parts = GRID_FAMILIES[family]
    tokenizer = byte_tokenizer(GRID_SPECIALS, template, "<|im_end|>")
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in GRID_TOKENS.items()}
    settings = parts.text | {"tie_word_embeddings": tied} | (text or {})
    config = parts.config(
        text_config=text_settings(tokenizer, **settings),
        vision_config=parts.vision | {"patch_size": patch, "spatial_merge_size": merge} | (vision or {}),
        tie_word_embeddings=tied,
        **ids,
    )
    cell = (patch * merge) ** 2
    seen = {"size": {"shortest_edge": 4 * cell, "longest_edge": 100 * cell}, "patch_size": patch, "merge_size": merge}
    save(directory, config, tokenizer, Qwen2VLImageProcessorPil(**seen | (pictures or {})), seed=seed, dtype=dtype)
    return directory


PIXTRAL_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_pad|>", "<|vision_end|>")

#: The form of LightOnOCR's own template.
PIXTRAL_TEMPLATE = GRID_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>")


def pixtral_processor(directory: Path) -> ProcessorMixin:
    """transformers' processor of a saved LightOnOCR, on Pillow."""
    tokenizer, pictures = AutoTokenizer.from_pretrained(directory), PixtralImageProcessorPil.from_pretrained(directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    patch, merge = config["vision_config"]["patch_size"], config["spatial_merge_size"]
    return LightOnOcrProcessor(pictures, tokenizer, patch_size=patch, spatial_merge_size=merge)


def save_pixtral(
    directory: Path,
    *,
    patch: int = PATCH,
    merge: int = 2,
    tied: bool = False,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    pictures: dict[str, Any] | None = None,
    template: str = PIXTRAL_TEMPLATE,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """A LightOnOCR.

    Args:
        directory: where it is saved.
        patch: side of a patch in pixels.
        merge: side of the squares of patches that merge.
        tied: whether the head is the embedding table.
        vision: other settings of the tower.
        text: other settings of the decoder.
        pictures: other settings of the image processor.
        template: for chats.
        dtype: of the weights.
        seed: of the weights.
    """
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokenizer = byte_tokenizer(PIXTRAL_SPECIALS, template, "<|im_end|>", extra_special_tokens=named)
    tower = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 3}
    tower |= {"patch_size": patch, "image_size": 96, "hidden_act": "silu"} | (vision or {})
    settings = {"head_dim": 16, "tie_word_embeddings": tied} | (text or {})
    config = LightOnOcrConfig(
        text_config=Qwen3Config(**text_settings(tokenizer, **settings)),
        vision_config=tower,
        spatial_merge_size=merge,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        tie_word_embeddings=tied,
    )
    seen = {"size": {"longest_edge": 96}, "patch_size": {"height": patch * merge, "width": patch * merge}}
    images = PixtralImageProcessorPil(**seen | (pictures or {}))
    save(directory, config, tokenizer, images, seed=seed, dtype=dtype)
    named = {"processor_class": "LightOnOcrProcessor", "patch_size": patch, "spatial_merge_size": merge}
    (directory / "processor_config.json").write_text(json.dumps(named), "utf-8")
    return directory
