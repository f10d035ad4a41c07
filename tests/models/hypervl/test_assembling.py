"""`assemble` joins public parts without touching a weight."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hvlc.errors import UserError
from hvlc.models.hypervl import assemble
from hvlc.training.tokenizer import VOCABULARY_SIZE, build_nano_tokenizer
from tests.helpers.tiny import randomize, tiny_config

Save = Callable[..., Path]


def vision_config(width: int, **changes: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        **{
            "hidden_size": width,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            **changes,
        }
    )


@pytest.fixture
def save_tower(tmp_path: Path) -> Save:
    def save(name: str, width: int, **changes: int) -> Path:
        tower = SiglipVisionModel(vision_config(width, **changes))  # with its pooling head, as published
        randomize(tower, width)
        tower.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def save_llm(tmp_path: Path) -> Save:
    def save(*, tied: bool = True, lacking: str = "") -> Path:
        text: Qwen3Config = tiny_config(tied=tied).text_config
        llm = Qwen3ForCausalLM(text)
        randomize(llm, 5)
        llm.tie_weights()
        llm.save_pretrained(tmp_path / "llm")
        tokenizer = build_nano_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['content'] if m['content'] is string else '' }}{% endfor %}"
        )
        tokenizer.save_pretrained(tmp_path / "llm")
        if lacking:
            for file in (tmp_path / "llm").glob("*.json"):
                file.write_text(file.read_text("utf-8").replace(lacking, "<|other|>"), "utf-8")
        return tmp_path / "llm"

    return save


def same(part: torch.nn.Module, whole: dict[str, torch.Tensor], prefix: str = "") -> bool:
    return all(torch.equal(value, whole[prefix + name]) for name, value in part.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_kept(save_tower: Save, save_llm: Save, tied: bool) -> None:
    base, large, llm = save_tower("base", 32), save_tower("large", 48), save_llm(tied=tied)
    model, processor = assemble(base, large, llm)
    for name, directory in (("base", base), ("large", large)):
        tower = model.model.branches[name].tower
        assert same(tower, SiglipVisionModel.from_pretrained(directory).state_dict())
        assert not any("head" in key for key in tower.state_dict())
    original = Qwen3ForCausalLM.from_pretrained(llm)
    assert same(model.model.language_model, original.state_dict(), "model.")
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert len(processor.tokenizer) == VOCABULARY_SIZE
    assert processor.image_processor.tile_size == 32


def test_what_is_assembled_can_be_saved_built_upon_and_asked(save_tower: Save, save_llm: Save, tmp_path: Path) -> None:
    from hvlc.export.references import vision_language_checkpoint
    from hvlc.runtime.generation import VisionLanguageModel
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import open_request
    from tests.helpers.tiny import picture

    model, processor = assemble(save_tower("base", 32), save_tower("large", 48), save_llm())
    model.save_pretrained(tmp_path / "joined")
    processor.save_pretrained(tmp_path / "joined")
    package = build(open_request(tmp_path / "joined", "cpu", "float32", tmp_path / "package")).output
    asked = {"encoder": "base", "vrc": True, "max_new_tokens": 3}
    reference = (
        vision_language_checkpoint(tmp_path / "joined").reference("joined").answer("What?", [picture(30, 40)], **asked)
    )
    answered = VisionLanguageModel(package, threads=1).answer("What?", [picture(30, 40)], **asked)
    assert answered.visual_tokens > 0
    assert (answered.tokens, answered.prompt_tokens) == (reference.tokens, reference.prompt_tokens)


def test_a_whole_siglip_checkpoint_gives_its_vision_half(save_tower: Save, save_llm: Save, tmp_path: Path) -> None:
    text = SiglipTextConfig(
        vocab_size=32, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    whole = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision_config(32).to_dict()))
    randomize(whole, 9)
    whole.save_pretrained(tmp_path / "whole")
    model, _ = assemble(tmp_path / "whole", save_tower("large", 48), save_llm())
    kept = model.model.branches["base"].tower
    reference = {name.removeprefix("vision_model."): v for name, v in whole.vision_model.state_dict().items()}
    assert same(kept, reference)


@pytest.mark.parametrize("change", [{"image_size": 64}, {"patch_size": 16}])
def test_towers_of_another_resolution_are_refused(save_tower: Save, save_llm: Save, change: dict[str, int]) -> None:
    with pytest.raises(UserError, match="share tile and patch size") as error:
        assemble(save_tower("base", 32), save_tower("large", 48, **change), save_llm())
    assert error.value.code == "checkpoint.towers"


def test_a_tokenizer_without_vision_tokens_is_refused(save_tower: Save, save_llm: Save) -> None:
    with pytest.raises(UserError, match=r"lacks <\|vision_pad\|>") as error:
        assemble(save_tower("base", 32), save_tower("large", 48), save_llm(lacking="<|vision_pad|>"))
    assert error.value.code == "tokenizer.vision"


@pytest.mark.parametrize("missing", ["base", "large", "llm"])
def test_a_missing_directory_is_named(save_tower: Save, save_llm: Save, tmp_path: Path, missing: str) -> None:
    directories = {"base": save_tower("base", 32), "large": save_tower("large", 48), "llm": save_llm()}
    directories[missing] = tmp_path / "nowhere"
    with pytest.raises(UserError, match="nowhere") as error:
        assemble(*directories.values())
    assert error.value.code == "checkpoint.missing"
