"""Public vision-language checkpoints as references: evaluation and bisection hold packages against them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hvlc.errors import UserError
from hvlc.evaluation.documents import DocumentsTask
from hvlc.export.references import vision_language_checkpoint
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.workflows.bisect.bisect import Request, bisect
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.evaluate import evaluate_questions
from hvlc.workflows.evaluate.model import open_subject
from tests.export.tiny_families import save_text
from tests.helpers.faults import DROPPED_TAPS, FAULTS, MORE_FAULTS, planted
from tests.helpers.tiny import picture
from tests.helpers.tiny_naflex import save_naflex
from tests.helpers.tiny_vision_language import save_block, save_grid, save_overview, save_pixtral, save_ratio


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_overview(tmp_path_factory.mktemp("smolvlm") / "checkpoint")


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> Path:
    output = checkpoint.parent / "package"
    build(open_request(checkpoint, "cpu", "float32", output))
    return output


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    picture(40, 90).save(path)
    return path


def test_the_record_names_encoders_of_a_checkpoint(checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert open_subject(checkpoint).encoders == ("main",)
    assert open_subject(tiny_checkpoint).encoders == ("base", "large")
    assert open_subject(save_text(tmp_path / "text", "llama")).encoders == ()


def test_an_unknown_encoder_is_refused(checkpoint: Path) -> None:
    reference = vision_language_checkpoint(checkpoint).reference("checkpoint")
    with pytest.raises(UserError) as error:
        reference.answer("What?", [Image.new("RGB", (9, 9))], encoder="base", vrc=True, max_new_tokens=1)
    assert error.value.code == "request.encoder"
    assert "main" in error.value.fix


def test_a_package_gives_its_checkpoints_answers(checkpoint: Path, package: Path) -> None:
    found = evaluate_questions(package, DocumentsTask(4), reference=checkpoint, max_new_tokens=4, count=4)
    (ours,), (theirs,) = found.evaluations, found.references
    assert [e.tokens for e in ours.examples] == [e.tokens for e in theirs.examples]
    assert any(len(e.tokens) > 1 for e in ours.examples)
    assert [e.visual_tokens for e in ours.examples] == [e.visual_tokens for e in theirs.examples]
    assert ours.fidelity is not None
    assert ours.fidelity.kl.value < 1e-6


@pytest.mark.parametrize("prompt", ["What is it?", ""], ids=["question", "image alone"])
def test_no_stage_of_a_sound_package_departs(checkpoint: Path, package: Path, image: Path, prompt: str) -> None:
    found = bisect(Request(package, checkpoint, prompt, (image, image), max_new_tokens=6))
    assert found.departs is None
    assert {"vision.post_norm", "projector", "stitching", "merge"} <= {stage.name for stage in found.stages}


@pytest.fixture(scope="module")
def quantized(checkpoint: Path) -> Path:
    output = checkpoint.parent / "w4a16-rtn"
    build(open_request(checkpoint, "cpu", "w4a16-rtn", output))
    return output


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_stage_is_named(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path, image: Path, fault: str
) -> None:
    package = request.getfixturevalue({"float32": "package", "w4a16-rtn": "quantized"}[FAULTS[fault].recipes[0]])
    damaged = planted(fault, package, tmp_path / "package")
    found = bisect(Request(damaged, checkpoint, "What is it?", (image,), max_new_tokens=6))
    assert found.departs == FAULTS[fault].stage
    assert found.hints
    others = {"decoder.layers.0", "decoder.layers.1"} if fault == "swapped decoder layers" else {found.departs}
    assert {stage.name for stage in found.stages if stage.departs} == others


def test_text_alone_is_compared(checkpoint: Path, package: Path) -> None:
    assert bisect(Request(package, checkpoint, "What is it?", max_new_tokens=6)).departs is None


#: A tower whose widths are whole blocks of 32.
BLOCKS = {"num_heads": 4, "intermediate_size": 64, "hidden_size": 64}

RATIOS = {
    "class token": {},
    "last norm": {"vision": {"use_mean_pooling": False}, "decoder": "qwen3", "text": {"head_dim": 16}},
    "qianfan": {"family": "qianfan_ocr", "decoder": "qwen3", "text": {"head_dim": 16}},
}


@pytest.mark.parametrize("settings", RATIOS.values(), ids=RATIOS)
def test_towers_with_a_class_token_are_compared(tmp_path: Path, image: Path, settings: dict[str, Any]) -> None:
    checkpoint, output = save_ratio(tmp_path / "checkpoint", **settings), tmp_path / "package"
    build(open_request(checkpoint, "cpu", "float32", output))
    found = bisect(Request(output, checkpoint, "What is it?", (image,), max_new_tokens=6))
    assert found.departs is None
    assert ("vision.post_norm" in {stage.name for stage in found.stages}) == ("vision" in settings)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grid(tmp_path_factory.mktemp("grid") / "checkpoint")


@pytest.fixture(scope="module")
def grid_packages(grid: Path) -> dict[str, Path]:
    outputs = {recipe: grid.parent / recipe for recipe in ("float32", "w4a16-rtn")}
    for recipe, output in outputs.items():
        build(open_request(grid, "cpu", recipe, output))
    return outputs


@pytest.mark.parametrize("fault", [*FAULTS, DROPPED_TAPS])
def test_a_planted_stage_of_a_native_grid_is_named(
    grid: Path, grid_packages: dict[str, Path], tmp_path: Path, image: Path, fault: str
) -> None:
    planned = (FAULTS | MORE_FAULTS)[fault]
    damaged = planted(fault, grid_packages[planned.recipes[0]], tmp_path / "package")
    found = bisect(Request(damaged, grid, "What is it?", (image,), max_new_tokens=6))
    assert found.departs == planned.stage


@pytest.fixture(scope="module")
def naflex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = ["conv", "conv", "full_attention", "conv"]  # the first two can change places
    return save_naflex(tmp_path_factory.mktemp("naflex") / "checkpoint", text={"layer_types": kinds})


@pytest.fixture(scope="module")
def naflex_packages(naflex: Path) -> dict[str, Path]:
    outputs = {recipe: naflex.parent / recipe for recipe in ("float32", "w4a16-rtn")}
    for recipe, output in outputs.items():
        build(open_request(naflex, "cpu", recipe, output))
    return outputs


def test_no_stage_of_tiles_and_an_overview_departs(
    naflex: Path, naflex_packages: dict[str, Path], tmp_path: Path, image: Path
) -> None:
    """One image is cut into tiles, the other is a piece of its own shape alone."""
    small = tmp_path / "small.png"
    picture(20, 30).save(small)
    found = bisect(Request(naflex_packages["float32"], naflex, "What is it?", (image, small), max_new_tokens=6))
    assert found.departs is None
    assert {"vision.post_norm", "projector", "stitching", "decoder.layers.3"} <= {stage.name for stage in found.stages}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_stage_of_tiles_and_an_overview_is_named(
    naflex: Path, naflex_packages: dict[str, Path], tmp_path: Path, image: Path, fault: str
) -> None:
    damaged = planted(fault, naflex_packages[FAULTS[fault].recipes[0]], tmp_path / "package")
    found = bisect(Request(damaged, naflex, "What is it?", (image,), max_new_tokens=6))
    assert found.departs == FAULTS[fault].stage


def test_a_package_with_states_gives_its_checkpoints_answers(naflex: Path, naflex_packages: dict[str, Path]) -> None:
    asked = {"reference": naflex, "max_new_tokens": 4, "count": 2}
    found = evaluate_questions(naflex_packages["float32"], DocumentsTask(4), **asked)
    (ours,), (theirs,) = found.evaluations, found.references
    assert [e.tokens for e in ours.examples] == [e.tokens for e in theirs.examples]
    assert ours.fidelity is not None
    assert ours.fidelity.kl.value < 1e-6


def test_without_taps_the_tokens_are_others(grid: Path, grid_packages: dict[str, Path], tmp_path: Path) -> None:
    damaged = planted(DROPPED_TAPS, grid_packages["float32"], tmp_path / "package")
    asked = {"encoder": "auto", "vrc": True, "max_new_tokens": 8}
    pictures = [picture(40 + 20 * i, 90 - 10 * i) for i in range(4)]
    sound, without = (
        [VisionLanguageModel(path).answer("What is it?", [p], **asked).tokens for p in pictures]
        for path in (grid_packages["float32"], damaged)
    )
    assert sound != without


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_no_stage_of_a_native_grid_departs(tmp_path: Path, family: str, images: int) -> None:
    checkpoint, output = save_grid(tmp_path / "checkpoint", family), tmp_path / "package"
    build(open_request(checkpoint, "cpu", "float32", output))
    files = [tmp_path / f"{index}.png" for index in range(images)]
    for index, path in enumerate(files):
        picture(40 + 30 * index, 90 - 50 * index).save(path)
    found = bisect(Request(output, checkpoint, "What is it?", tuple(files), max_new_tokens=6))
    assert found.departs is None
    names = {stage.name for stage in found.stages}
    assert ("taps" in names) == (family == "qwen3_vl" and images > 0)
    assert ("vision.layers.3" in names) == (family != "qwen2_vl" and images > 0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("target", ["cpu", "qnn-sm8750"])
def test_a_host_without_hvlc_answers_too(tmp_path: Path, family: str, target: str, image: Path) -> None:
    checkpoint, output = save_grid(tmp_path / "checkpoint", family, vision=BLOCKS), tmp_path / "package"
    fixed = {} if target == "cpu" else {"aot": False, "context": 640, "grids": ((48, 48), (40, 72))}
    build(open_request(checkpoint, target, "w4a16-rtn", output, **fixed))
    wanted = VisionLanguageModel(output).answer(
        "What is it?", [Image.open(image)], encoder="auto", vrc=True, max_new_tokens=8
    )
    example = Path(__file__).parents[2] / "examples" / "ask_package.py"
    command = [sys.executable, "-I", str(example), str(output), "What is it?", str(image), "--max-new-tokens", "8"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.removesuffix("\n") == wanted.text


@pytest.mark.parametrize("images", [0, 1, 2])
def test_no_stage_of_a_bounded_grid_departs(tmp_path: Path, images: int) -> None:
    checkpoint, output = save_pixtral(tmp_path / "checkpoint", seed=5), tmp_path / "package"
    build(open_request(checkpoint, "cpu", "float32", output))
    files = [tmp_path / f"{index}.png" for index in range(images)]
    for index, path in enumerate(files):
        picture(40 + 30 * index, 90 - 50 * index).save(path)
    found = bisect(Request(output, checkpoint, "What is it?", tuple(files), max_new_tokens=6))
    assert found.departs is None
    expected = {"preprocessing", "vision.layers.2", "vision.post_norm", "projector", "merge"} if images else set()
    assert expected <= {stage.name for stage in found.stages}


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_block(tmp_path_factory.mktemp("block") / "checkpoint")


@pytest.fixture(scope="module")
def block_package(block: Path) -> Path:
    build(open_request(block, "cpu", "float32", block.parent / "package"))
    return block.parent / "package"


@pytest.mark.parametrize("images", [0, 1, 2])
def test_no_stage_departs_where_an_image_is_a_block(block: Path, block_package: Path, image: Path, images: int) -> None:
    found = bisect(Request(block_package, block, "What is it?", (image,) * images, max_new_tokens=6))
    assert found.departs is None


def test_a_host_without_hvlc_joins_the_text_around_a_block(block: Path, block_package: Path, image: Path) -> None:
    asked: dict[str, Any] = {"encoder": "auto", "vrc": True, "max_new_tokens": 8}
    wanted = VisionLanguageModel(block_package).answer("What is it?", [Image.open(image)], **asked)
    example = Path(__file__).parents[2] / "examples" / "ask_package.py"
    command = [sys.executable, "-I", str(example), str(block_package), "What is it?", str(image)]
    found = subprocess.run([*command, "--max-new-tokens", "8"], capture_output=True, text=True, check=True)
    assert found.stdout.removesuffix("\n") == wanted.text


def test_weights_that_graphs_hold_otherwise_are_not_blamed(block: Path, block_package: Path, tmp_path: Path) -> None:
    """Gains are stored less 1, and the connector's matrix is turned: neither is a fault."""
    damaged = planted("swapped decoder layers", block_package, tmp_path / "package")
    found = bisect(Request(damaged, block, "What is it?", max_new_tokens=6))
    assert found.departs == "decoder.layers.0"
    assert found.hints
    assert not [hint for hint in found.hints if "differs" in hint]
