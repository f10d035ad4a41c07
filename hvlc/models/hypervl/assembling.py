"""A HyperVL from public parts: two SigLIP2 checkpoints and a Qwen3 (projectors and compressor fresh)."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

from hvlc.errors import UserError
from hvlc.files.reading import is_file
from hvlc.models.hypervl.configuration import HyperVLConfig, HyperVLResolutionConfig
from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.models.hypervl.processing import HyperVLImageProcessor, HyperVLProcessor
from hvlc.models.loading import check_config, loading
from hvlc.models.numbers import LanguageNumbers, Numbers, TwoTowerNumbers
from hvlc.weights.checkpoint import Checkpoint

_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "row_token_id": "<|vision_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}

# Qwen3's own template drops images: it is a text model's. This is Qwen's chat format with them.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _check_directory(directory: Path, family: str, numbers: type[Numbers]) -> None:
    """Refuse what is not a checkpoint, is damaged or names code, before transformers asks a hub for it."""
    if not is_file(directory / "config.json"):
        raise UserError(
            "checkpoint.missing", f"{directory} holds no config.json", f"name a {family} checkpoint directory"
        )
    check_config(Checkpoint.open(directory).config, numbers)


def _tower(directory: Path) -> SiglipVisionModel:
    """The vision half of a SigLIP2 checkpoint, without its pooling head."""
    _check_directory(directory, "SigLIP2", TwoTowerNumbers)
    with loading(directory):
        tower = SiglipVisionModel.from_pretrained(directory, dtype=torch.float32)
    tower.config.vision_use_head = False
    headless = SiglipVisionModel(tower.config)
    headless.load_state_dict({k: v for k, v in tower.state_dict().items() if not k.startswith("head.")})
    return headless


def assemble(
    base_dir: str | Path, large_dir: str | Path, llm_dir: str | Path
) -> tuple[HyperVLForConditionalGeneration, HyperVLProcessor]:
    """Build a HyperVL from SigLIP2-Base, SigLIP2-Large and Qwen3 checkpoint directories.

    Towers and language model keep their weights; projectors and resolution compressor start fresh
    and need training. The tokenizer must have Qwen3's vision tokens; its chat template is replaced by one
    that renders images.

    Raises:
        UserError: a directory is not a checkpoint, the towers disagree on tile or patch size, or the
            tokenizer lacks a vision token.
    """
    base, large = _tower(Path(base_dir)), _tower(Path(large_dir))
    _check_directory(Path(llm_dir), "Qwen3", LanguageNumbers)
    with loading(Path(llm_dir)):
        llm = AutoModelForCausalLM.from_pretrained(llm_dir, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(llm_dir)
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in _TOKENS.items()}
    missing = [token for field, token in _TOKENS.items() if ids[field] in (None, tokenizer.unk_token_id)]
    if missing:
        raise UserError("tokenizer.vision", f"the tokenizer lacks {', '.join(missing)}", "use a Qwen3 tokenizer")
    try:
        config = HyperVLConfig(
            base_vision_config=base.config,
            large_vision_config=large.config,
            text_config=llm.config,
            resolution_config=HyperVLResolutionConfig(),
            tie_word_embeddings=llm.config.tie_word_embeddings,
            **ids,
        )
    except (ValueError, StrictDataclassError) as error:
        cause = str(error.__cause__ or error)
        raise UserError("checkpoint.towers", cause, "choose two SigLIP2 checkpoints of one resolution") from error
    model = HyperVLForConditionalGeneration(config)
    model.model.branches["base"].tower.load_state_dict(base.state_dict())
    model.model.branches["large"].tower.load_state_dict(large.state_dict())
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.tie_weights()
    model.generation_config = llm.generation_config
    tokenizer.chat_template = _CHAT_TEMPLATE
    images = HyperVLImageProcessor(config.tile_size, config.cell_size, config.resolution_config.proxy_size)
    return model.eval(), HyperVLProcessor(images, tokenizer)
