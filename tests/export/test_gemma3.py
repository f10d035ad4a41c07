"""Gemma 3 with images: packages answer as transformers does, from the processor's first byte to the last token."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from hvlc.errors import TargetError, UserError
from hvlc.evaluation.distributions import kl_divergence
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Seen
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.request import open_request
from tests.helpers.answers import Reference, asked_of_transformers, check_answer, packaged, sizes
from tests.helpers.damages import Damage, changed, refused, renamed, with_part, with_tensor, without_processor
from tests.helpers.fixed_shapes import write_target
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import block_processor, save_block
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.qnn.conftest import needs_qnn

#: Settings of checkpoints, one of each kind somewhere: windows shorter than an image, and longer; one cell a patch.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "windows": {},
    "period": {"text": {"num_hidden_layers": 7, "layer_types": None, "sliding_window": 24}, "dtype": "bfloat16"},
    "whole": {"cells": 8, "text": {"sliding_window": 70}, "seed": 1},
}
FAMILIES = ("gemma3",)
SIZES = [(32, 32), (40, 90), (1, 1), (300, 20)]
#: One image of every size, two images, three of which two are alike, none.
ASKED = [*([picture(*size)] for size in SIZES), [picture(50, 90), picture(33, 30)], [picture(9, 9)] * 3, []]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_block(tmp_path_factory.mktemp(request.param) / "checkpoint", **CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> VisionLanguageModel:
    return packaged(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return asked_of_transformers(checkpoint, block_processor(checkpoint))


def pieces(seen: list[Seen]) -> np.ndarray:
    """The images, squashed."""
    return np.concatenate([one.pieces for one in seen])


@pytest.mark.parametrize("images", [[], [picture(9, 9)]], ids=["no image", "image"])
def test_refuses_a_question_with_the_token_of_a_visual_token(
    package: VisionLanguageModel, images: list[Image.Image]
) -> None:
    with pytest.raises(UserError) as error:
        package.start("a<image_soft_token>b", images)
    assert error.value.code == "request.placeholder"
    generation = package.start("Hi", images, max_new_tokens=1, room=100)
    for _ in generation:
        pass
    with pytest.raises(UserError) as error:
        package.follow(generation, "a<image_soft_token>b", max_new_tokens=1)
    assert error.value.code == "request.placeholder"


@pytest.mark.parametrize("images", ASKED, ids=sizes)
def test_package_answers_as_transformers(
    package: VisionLanguageModel, reference: Reference, images: list[Image.Image]
) -> None:
    check_answer(package, reference, images, pieces)


#: Text before the first image, between images and after the last.
WRITTEN = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'number ' + loop.index | string + ':<start_of_image>is shown\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_text_stands_before_between_and_after_images(tmp_path: Path, count: int) -> None:
    checkpoint = save_block(tmp_path / "checkpoint", template=WRITTEN)
    images = [picture(40 + 9 * index, 30) for index in range(count)]
    check_answer(packaged(checkpoint), asked_of_transformers(checkpoint, block_processor(checkpoint)), images, pieces)


@torch.no_grad()
def test_the_comparison_sees_that_an_image_is_a_block(tmp_path: Path) -> None:
    """transformers is causal where nobody says which tokens are of an image."""
    checkpoint = save_block(tmp_path / "checkpoint")
    inputs, _, logits = asked_of_transformers(checkpoint, block_processor(checkpoint))([picture(40, 90)])
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert 1 in inputs.pop("token_type_ids")
    causal = model(**inputs, logits_to_keep=1).logits[0].numpy()
    assert np.abs(causal - logits).max() > 1000 * GRAPH_FLOAT32


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_names_of_released_checkpoints_are_read(tmp_path: Path, prefix: str) -> None:
    checkpoint = save_block(tmp_path / "checkpoint")
    images = [picture(33, 20)]
    expected = packaged(checkpoint).logits("?", images, [0], encoder="auto", vrc=True)
    released = tmp_path / "released"
    shutil.copytree(checkpoint, released)
    ways = {
        r"^(model\.)?vision_tower\.(vision_model\.)?": f"vision_tower.{prefix}",
        r"^(model\.)?multi_modal_projector\.": "multi_modal_projector.",
        r"^(model\.)?language_model\.(model\.)?": "language_model.model.",
    }
    tensors = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        for old, new in ways.items():
            name = re.sub(old, new, name)
        tensors[name] = tensor
    save_file(tensors, released / "model.safetensors", {"format": "pt"})
    found = packaged(released).logits("?", images, [0], encoder="auto", vrc=True)
    np.testing.assert_array_equal(found, expected)


REFUSED: dict[str, tuple[Damage, str]] = {
    "crops": (changed("preprocessor_config.json", do_pan_and_scan=True), "checkpoint.processor"),
    "images of another size": (
        changed("preprocessor_config.json", size={"height": 64, "width": 32}),
        "the vision tower takes 32 x 32 pixels",
    ),
    "images as they are": (changed("preprocessor_config.json", do_resize=False), "do_resize is false"),
    "no processor": (without_processor, "checkpoint.processor"),
    "another number of visual tokens": (changed("processor_config.json", image_seq_length=9), "image_seq_length is 9"),
    "squares that are not whole": (changed("config.json", mm_tokens_per_image=9), "by whole squares"),
    "no square": (changed("config.json", mm_tokens_per_image=8), "by whole squares"),
    "another token before an image": (changed("config.json", boi_token_index=3), "boi_token_index is 3"),
    "a tokenizer without visual tokens": (renamed("<image_soft_token>", "<other>"), "no token <image_soft_token>"),
    "another decoder": (with_part("text_config", model_type="llama"), "export.text_model"),
    "text that sees what follows": (with_part("text_config", use_bidirectional_attention=True), "export.config"),
    "another width of visual tokens": (
        with_tensor("model.multi_modal_projector.mm_input_projection_weight", 48, 32),
        "mm_input_projection_weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_numbers_is_refused(tmp_path: Path, case: str) -> None:
    damage, expected = REFUSED[case]
    directory = save_block(tmp_path / "checkpoint")
    damage(directory)
    assert expected in refused(directory)


def test_a_decoder_of_fixed_shapes_is_refused_before_the_work(tmp_path: Path) -> None:
    """A chunk of a prompt may hold the beginning of an image alone, whose tokens see its end."""
    target = write_target(tmp_path / "npu.toml")
    with pytest.raises(TargetError, match="the visual tokens of an image see those that follow") as error:
        plan_build(open_request(save_block(tmp_path / "c"), target, "float32", tmp_path / "p", context=128, aot=False))
    assert error.value.code == "target.refused"


@pytest.mark.parametrize("recipe", ["genai-default", "w4a16-awq-gptq", "w4a16-kv8", "w4a16-rtn", "w4a16-static"])
def test_recipes_keep_what_the_model_says(tmp_path: Path, recipe: str) -> None:
    """Divergence from the float package, as a share of that of other weights; measured 0.09 to 0.18."""
    images, options = [picture(40, 30)], {} if recipe in ("genai-default", "w4a16-rtn") else {"samples": 4}
    checkpoint, other = (save_block(tmp_path / str(seed), seed=seed) for seed in range(2))
    build(open_request(checkpoint, "cpu", recipe, tmp_path / "package", threads=1, **options))
    packages = packaged(checkpoint), packaged(other), VisionLanguageModel(tmp_path / "package")
    answer = packages[0].answer("?", images, encoder="auto", vrc=True, max_new_tokens=6).tokens
    expected, others, found = (p.logits("?", images, answer, encoder="auto", vrc=True) for p in packages)
    assert 0 < kl_divergence(expected, found).mean() < 0.3 * kl_divergence(expected, others).mean()


@pytest.mark.slow
@needs_qnn
def test_the_encoder_compiles_where_the_decoder_is_left_to_the_cpu(tmp_path: Path) -> None:
    """The check of the build compares what was compiled, in emulation, with the CPU."""
    checkpoint, file = save_block(tmp_path / "checkpoint", image=64, cells=8), tmp_path / "split.toml"
    header = 'schema_version = 1\nextends = "qnn-sm8750"\nname = "split"\ndescription = "decoder on the CPU"\n'
    roles = '["front", "vision_router", "vision_merger", "embedding", "decoder"]'
    file.write_text(f"{header}cpu_roles = {roles}\n", "utf-8")
    found = build(open_request(checkpoint, str(file), "float32", tmp_path / "package", threads=1))
    assert {name for name, entry in found.manifest.components.items() if entry.compiled} == {"vision_main"}
    asked: dict[str, Any] = {"encoder": "auto", "vrc": True, "max_new_tokens": 4}
    answered = VisionLanguageModel(found.output).answer("?", [picture(40, 30)], **asked)
    assert answered.tokens
