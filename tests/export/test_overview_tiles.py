"""SmolVLM and Idefics3: packages answer as transformers does, from the processor's first byte to the last token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from hvlc.errors import HvlcError
from hvlc.export import export_bundle
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import edit_json, overview_processor, save_overview
from tests.helpers.tolerances import GRAPH_FLOAT32

QUESTION = "What is it?"

#: Settings of checkpoints, one of each kind somewhere.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "smolvlm": {},
    "smolvlm-unsplit": {"splits": False, "tied": True},
    "smolvlm-shuffle-4": {"shuffle": 4, "dtype": "bfloat16", "seed": 1},
    "idefics3": {"family": "idefics3", "tied": True, "seed": 2},
    # pixels that fill no patch, as in SmolVLM2-2.2B: 384 pixels are 27 patches of 14 and 6 pixels
    "idefics3-shuffle-3": {"family": "idefics3", "tile": 38, "patch": 6, "shuffle": 3, "longest": 100, "seed": 3},
}

FAMILIES = tuple(sorted({settings.get("family", "smolvlm") for settings in CHECKPOINTS.values()}))

#: Heights and widths that reach every branch: one tile, whole tiles, one pixel more, wide, tall, tiny, one side alone.
SIZES = [(32, 32), (96, 96), (97, 95), (40, 90), (90, 40), (1, 1), (5, 200), (300, 20), (64, 33)]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_overview(tmp_path_factory.mktemp(request.param) / "checkpoint", **CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> VisionLanguageModel:
    output = checkpoint.parent / "package"
    build(open_request(checkpoint, "cpu", "float32", output))
    return VisionLanguageModel(output, threads=1)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Callable[[list[Image.Image]], tuple[Any, list[int], np.ndarray]]:
    """transformers' inputs for some images, its greedy tokens, and its logits for the last position of the prompt."""
    torch.set_num_threads(1)
    processor = overview_processor(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def run(images: list[Image.Image]) -> tuple[Any, list[int], np.ndarray]:
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content if images else QUESTION}]
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(images=images or None, text=text, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return inputs, tokens.tolist(), model(**inputs, logits_to_keep=1).logits[0].numpy()

    return run


#: One image of every size, two images, none.
ASKED = [*([picture(*size)] for size in SIZES), [picture(50, 90), picture(33, 30)], []]


@pytest.mark.parametrize("images", ASKED, ids=lambda images: "-".join(f"{i.height}x{i.width}" for i in images))
def test_package_answers_as_transformers(
    package: VisionLanguageModel, reference: Callable[..., Any], images: list[Image.Image]
) -> None:
    inputs, tokens, logits = reference(images)
    seen = [package._vision.see(np.asarray(image), compress=True) for image in images]
    assert package.prompt_ids(QUESTION, seen).tolist() == inputs["input_ids"][0].tolist()
    if images:
        pieces = np.concatenate([one.pieces for one in seen])
        np.testing.assert_array_equal(pieces, inputs["pixel_values"][0].numpy())
    answered = package.answer(QUESTION, images, encoder="auto", vrc=True, max_new_tokens=8)
    assert list(answered.tokens) == tokens
    found = package.logits(QUESTION, images, [0], encoder="auto", vrc=True)
    np.testing.assert_allclose(found, logits, atol=GRAPH_FLOAT32 * 10, rtol=0)


@pytest.mark.parametrize("limit", [4, 16, 17, 48, 80, 100])
def test_bound_of_visual_tokens_is_kept(tmp_path_factory: pytest.TempPathFactory, limit: int) -> None:
    directory = save_overview(tmp_path_factory.mktemp("bound") / "checkpoint")
    output = directory.parent / "package"
    build(open_request(directory, "cpu", "float32", output))
    package = VisionLanguageModel(output, threads=1)
    asked = {"encoder": "auto", "vrc": True, "max_visual_tokens": limit, "max_new_tokens": 2}
    if limit < 16:  # a tile's
        with pytest.raises(HvlcError, match=r"request\.max_visual_tokens"):
            package.start(QUESTION, [picture(90, 40)], **asked)
    else:
        generation = package.start(QUESTION, [picture(90, 40)], **asked)
        assert 0 < sum(seen.visual_tokens for seen in generation.images) <= limit


def refused(directory: Path) -> str:
    """Code and cause of the refusal."""
    with pytest.raises(HvlcError) as error:
        export_bundle(Checkpoint.open(directory))
    return str(error.value)


def without_processor(directory: Path) -> None:
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").unlink()


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def rename(directory: Path) -> None:
        path = directory / "tokenizer.json"
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")

    return rename


def changed(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / file, **changes)


VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 3}
VISION |= {"model_type": "smolvlm_vision", "image_size": 32, "patch_size": 4}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without_processor, "checkpoint.processor"),
        (changed("preprocessor_config.json", max_image_size={"longest_edge": 48}), "longest_edge is 48"),
        (changed("preprocessor_config.json", size={"height": 9, "width": 9}), "checkpoint.processor"),
        (changed("preprocessor_config.json", resample=4), "checkpoint.processor"),
        (changed("preprocessor_config.json", image_std=[0, 1, 1]), "image_std"),
        (changed("preprocessor_config.json", size={"longest_edge": 1000}), "tokenizer"),
        (changed("processor_config.json", image_seq_len=9), "image_seq_len is 9"),
        (changed("config.json", image_token_id=3), "image_token_id is 3"),
        (changed("config.json", scale_factor=3), "scale_factor"),
        (changed("config.json", vision_config=VISION | {"patch_size": 10}), "patch_size 10"),
        (renamed("<image>", "<picture>"), "no token <image>"),
        (renamed("<row_2_col_3>", "<row>"), "<row_2_col_3>"),
        (renamed("<global-img>", "<whole>"), "<global-img>"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    directory = save_overview(tmp_path / "checkpoint")
    damage(directory)
    assert expected in refused(directory)
