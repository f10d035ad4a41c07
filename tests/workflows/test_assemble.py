"""Two encoders of one family in one checkpoint: each answers with its own tower, and what does not fit is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from hvlc.errors import HvlcError
from hvlc.export import export_bundle
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.assemble import assemble
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.commands import Hvlc, commands
from tests.helpers.tiny import picture, save_tiny
from tests.helpers.tiny_vision_language import edit_json, save_overview
from tests.helpers.tolerances import GRAPH_FLOAT32

SMALL = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and one with a smaller tower and another decoder."""
    root = tmp_path_factory.mktemp("parts")
    return save_overview(root / "main"), save_overview(
        root / "other", vision=SMALL, text={"hidden_size": 32}, seed=7, dtype="bfloat16"
    )


@pytest.fixture(scope="module")
def assembled(parts: tuple[Path, Path]) -> Path:
    output = parts[0].parent / "assembled"
    assemble(parts[0], "small", parts[1], output, seed=3)
    return output


def test_each_encoder_has_its_own_tower(parts: tuple[Path, Path], assembled: Path) -> None:
    output = assembled.parent / "package"
    result = build(open_request(assembled, "cpu", "float32", output))
    assert any("connector of vision encoder small is untrained" in note for note in result.plan.notes)
    package = VisionLanguageModel(output, threads=1)
    assert package.manifest.variants == {"encoder": ("main", "small")}
    seen = package._vision.see(np.asarray(picture(50, 70)), compress=False)
    pixels = torch.from_numpy(seen.pieces)[None]
    main = AutoModelForImageTextToText.from_pretrained(parts[0], dtype=torch.float32).eval().model
    other = AutoModelForImageTextToText.from_pretrained(parts[1], dtype=torch.float32).eval().model
    with safe_open(assembled / "encoder-small.safetensors", "pt") as file, torch.no_grad():
        weight = file.get_tensor("vision_encoders.small.connector.modality_projection.proj.weight")
        theirs = other.vision_model(pixels[0]).last_hidden_state
        expected = main.connector.pixel_shuffle(theirs, main.connector.scale_factor) @ weight.T
        own = main.get_image_features(pixels).pooler_output[0]
    found = package._vision.encode([seen], "small").features[0]
    np.testing.assert_allclose(found, expected.reshape(found.shape).numpy(), atol=GRAPH_FLOAT32, rtol=0)
    np.testing.assert_allclose(
        package._vision.encode([seen], "main").features[0], own.numpy(), atol=GRAPH_FLOAT32, rtol=0
    )
    asked = {"vrc": True, "max_new_tokens": 4}
    assert package.answer("?", [picture(50, 70)], encoder="small", **asked).encoder == "small"
    assert package.answer("?", [picture(50, 70)], encoder="auto", **asked).encoder == "main"


def test_transformers_loads_it_as_before(parts: tuple[Path, Path], assembled: Path) -> None:
    before, after = (AutoModelForImageTextToText.from_pretrained(p).state_dict() for p in (parts[0], assembled))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_equal_seeds_make_equal_files(parts: tuple[Path, Path], assembled: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        assemble(parts[0], "small", parts[1], tmp_path / str(seed), seed=seed)
    shards = [(p / "encoder-small.safetensors").read_bytes() for p in (assembled, tmp_path / "3", tmp_path / "4")]
    assert shards[0] == shards[1] != shards[2]


def test_a_third_encoder_goes_beside_the_second(parts: tuple[Path, Path], assembled: Path, tmp_path: Path) -> None:
    assemble(assembled, "third", parts[1], tmp_path / "three")
    build(open_request(tmp_path / "three", "cpu", "w4a16-rtn", tmp_path / "package"))
    package = VisionLanguageModel(tmp_path / "package", threads=1)
    assert package.manifest.variants == {"encoder": ("main", "small", "third")}


def refused(*arguments: object) -> str:
    with pytest.raises(HvlcError) as error:
        assemble(*arguments)  # type: ignore[arg-type]
    return error.value.code


def test_what_does_not_fit_is_refused(parts: tuple[Path, Path], assembled: Path, tmp_path: Path) -> None:
    main, other = parts
    coarse = save_overview(tmp_path / "coarse", patch=8)
    assert refused(main, "coarse", coarse, tmp_path / "out") == "checkpoint.towers"
    assert refused(main, "main", other, tmp_path / "out") == "assemble.name"
    assert refused(assembled, "small", other, tmp_path / "out") == "assemble.name"
    assert refused(main, "idefics", save_overview(tmp_path / "i", "idefics3"), tmp_path / "out") == "assemble.family"
    assert refused(save_tiny(tmp_path / "hypervl"), "x", other, tmp_path / "out") == "assemble.family"
    assert refused(main, "small", other, assembled) == "output.exists"
    assert not (tmp_path / "out").exists()


def test_a_damaged_addition_is_refused(assembled: Path, tmp_path: Path) -> None:
    config = json.loads((assembled / "config.json").read_text("utf-8"))
    for change in ({"image_size": 64}, {"patch_size": 8}, {"num_hidden_layers": -1}):
        directory = tmp_path / next(iter(change))
        shutil.copytree(assembled, directory)
        tower = config["vision_encoders"]["small"] | change
        edit_json(directory / "config.json", vision_encoders={"small": tower})
        with pytest.raises(HvlcError, match=r"checkpoint\.config"):
            export_bundle(Checkpoint.open(directory))


@pytest.fixture
def hvlc(capsys: pytest.CaptureFixture[str]) -> Iterator[Hvlc]:
    yield from commands(capsys)


def test_command(hvlc: Hvlc, parts: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    made = hvlc("assemble", parts[0], "--encoder", f"small={parts[1]}", "-o", output, "--json")
    assert made.json["encoders"] == ["main", "small"]
    assert hvlc("assemble", parts[0], "--encoder", "small", "-o", output).code == 2
