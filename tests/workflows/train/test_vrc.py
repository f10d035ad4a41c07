"""`hvlc train vrc`: labels by the model, a network, an acceptance; `hvlc build --vrc` puts it into a package."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hvlc.errors import GateError, HvlcError, UserError
from hvlc.export.compressor import MODEL_TYPE, CompressorSettings, configuration_digest
from hvlc.models.hypervl.configuration import HyperVLResolutionConfig
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.training.vrc.network import CHANNELS, WINDOW, ResolutionNetwork
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from hvlc.workflows.train import vrc
from hvlc.workflows.train.vrc import VrcRequest, train_vrc
from hvlc.zoo import nano_checkpoint
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import save_grid


def vocabulary(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "config.json").read_text())["text_config"]["vocab_size"])


def untrained(rows: int | None) -> ResolutionNetwork:
    """A network of which the question, if it reads one, changes much."""
    network = ResolutionNetwork(HyperVLResolutionConfig(proxy_size=64, depth_multiplier=0.25), rows)
    torch.nn.init.normal_(network.spread.weight)
    if network.question is not None:
        torch.nn.init.normal_(network.question.film.weight, std=3.0)
    return network


def compressor(place: Path, checkpoint: Path, *, reads: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A directory as `hvlc train vrc` writes it, with a network that was not trained."""
    torch.manual_seed(seed)
    rows = vocabulary(checkpoint)
    network = untrained(rows if reads else None)
    asked = {"vocabulary": rows, "width": 16, "channels": CHANNELS, "window": WINDOW, "max_tokens": 8}
    settings: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "proxy_size": 64,
        "min_scale": 0.1,
        "scale_step": 0.05,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "depth_multiplier": 0.25,
        "hidden_size": 64,
        "layer_norm_eps": 0.001,
        "price": 0.01,
        "question": asked if reads else None,
        "made_for": configuration_digest(Checkpoint.open(checkpoint)),
        "labels": "equivalence",
        "data": "documents",
        "floor": 0.99,
        "accepted": True,
    }
    place.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(settings | changes))
    return place


def packaged(checkpoint: Path, made: Path, output: Path) -> Path:
    return build(open_request(checkpoint, "cpu", "float32", output, vrc=made)).output


@pytest.fixture(scope="module")
def grid_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grid(tmp_path_factory.mktemp("grid") / "checkpoint", "qwen3_vl")


@pytest.mark.parametrize("family", ["hypervl", "qwen3_vl"])
def test_a_compressor_goes_into_any_family_whose_images_have_a_scale(
    family: str, tmp_path: Path, tiny_checkpoint: Path, grid_checkpoint: Path
) -> None:
    checkpoint = tiny_checkpoint if family == "hypervl" else grid_checkpoint
    made = compressor(tmp_path / "vrc", checkpoint, price=0.002)
    model = VisionLanguageModel(packaged(checkpoint, made, tmp_path / "package"), threads=1)
    images = model.manifest.images
    assert images is not None
    assert images.resolution_compressor
    assert images.question_tokens == 8
    image = picture(120, 90)
    full = model.answer("What?", [image], encoder="auto", vrc=False, max_new_tokens=2)
    shrunk = model.answer("What?", [image], encoder="auto", vrc=True, max_new_tokens=2)
    assert full.scales[0] >= shrunk.scales[0]
    assert full.visual_tokens >= shrunk.visual_tokens
    assert rebuild(model.directory, checkpoint, vrc=made).files > 5


def test_the_question_changes_the_scale(tmp_path: Path, tiny_checkpoint: Path) -> None:
    scales = set()
    made = compressor(tmp_path / "vrc", tiny_checkpoint, seed=3, price=0.05)
    model = VisionLanguageModel(packaged(tiny_checkpoint, made, tmp_path / "package"), threads=1)
    for question in ("What?", "a", "Which one of them?", "7"):
        scales.add(model.answer(question, [picture(150, 150)], encoder="base", vrc=True, max_new_tokens=1).scales)
    assert len(scales) > 1


def test_without_a_question_the_image_decides(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = compressor(tmp_path / "vrc", tiny_checkpoint, reads=False)
    model = VisionLanguageModel(packaged(tiny_checkpoint, made, tmp_path / "package"), threads=1)
    assert model.manifest.images is not None
    assert model.manifest.images.question_tokens is None
    said = [model.answer(q, [picture(99, 80)], encoder="base", vrc=True, max_new_tokens=1) for q in ("a", "What?")]
    assert said[0].scales == said[1].scales


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"accepted": False}, "vrc.floor"),
        ({"made_for": "0" * 64}, "vrc.checkpoint"),
        ({"question": {"vocabulary": 3, "width": 16, "channels": 48, "window": 5, "max_tokens": 8}}, "vrc.checkpoint"),
        ({"question": {"vocabulary": 3, "width": 16, "channels": 48, "window": 4, "max_tokens": 8}}, "spec.invalid"),
        ({"model_type": "hypervl"}, "vrc.kind"),
        ({"proxy_size": 7}, "spec.invalid"),
        ({"surprise": 1}, "spec.invalid"),
        ({"std": [0, 0.5, 0.5]}, "spec.invalid"),
        ({"std": [1e-300] * 3}, "spec.invalid"),
        ({"mean": [1e300] * 3}, "spec.invalid"),
        ({"scale_step": 1e-12}, "spec.invalid"),
        ({"price": float("inf")}, None),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, changes: dict[str, Any], code: str | None
) -> None:
    made = compressor(tmp_path / "vrc", tiny_checkpoint, **changes)
    with pytest.raises(HvlcError) as refused:
        packaged(tiny_checkpoint, made, tmp_path / "package")
    assert code is None or code in (refused.value.code, *(p.code for p in refused.value.problems))
    assert not (tmp_path / "package").exists()


def request(tmp_path: Path, **changes: Any) -> VrcRequest:
    small = {"train": 12, "calibration": 8, "heldout": 8}
    asked = VrcRequest(nano_checkpoint(), "documents", tmp_path / "vrc", tmp_path / "work", counts=small)
    return replace(asked, minutes=0.02, scales=(0.5, 1.0), proxy_size=64, floor=0.0, **changes)


def test_a_compressor_is_trained_measured_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(tmp_path)
    told: list[tuple[str, int, int]] = []

    def stop(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        if (what, done) == ("label calibration", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_vrc(asked, stop)
    assert not asked.output.exists()
    made: list[str] = []
    original = vrc.example_digest

    from hvlc.training.vrc import labels

    answered = labels.label

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(arguments[1].id)
        return answered(*arguments, **options)

    monkeypatch.setattr(labels, "label", counted)
    settings = train_vrc(asked)
    assert original is vrc.example_digest
    assert len(made) == 5 + 8  # of the calibration's 8, 3 were there; of train all
    assert settings.accepted
    assert settings.held_out is not None
    assert settings.held_out.n == 8
    assert CompressorSettings.model_validate_json((asked.output / "config.json").read_text()) == settings
    output = packaged(asked.checkpoint, asked.output, tmp_path / "package")
    assert VisionLanguageModel(output).manifest.images is not None


def test_one_that_loses_too_much_is_written_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hvlc.training.vrc import fitting

    monkeypatch.setattr(fitting, "scales_of", lambda said, *_: said[:, 0] * 0 + 0.5)
    asked = replace(request(tmp_path), floor=0.999, scales=(0.1, 0.5, 1.0))
    monkeypatch.setattr(fitting, "indices_of", lambda labels, scales: [0] * len(labels))
    with pytest.raises(GateError) as refused:
        train_vrc(asked)
    assert refused.value.code == "vrc.floor"
    with pytest.raises(UserError) as again:
        packaged(asked.checkpoint, asked.output, tmp_path / "package")
    assert again.value.code == "vrc.floor"


def lines(place: Path, count: int, **changes: Any) -> Path:
    place.mkdir()
    rows = []
    for number in range(count):
        picture(20 + number, 30).save(place / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "question": "What?", "answers": ["x"], **changes}))
    (place / "questions.jsonl").write_text("\n".join(rows))
    return place


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"answers": []}, "task.invalid"),
        ({"answers": [" "]}, "task.invalid"),
        ({"image": "gone.png"}, "task.invalid"),
        ({"image": None}, "train.data"),
    ],
)
def test_wrong_data_are_refused_before_the_work(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    place = lines(tmp_path / "data", 4, **change)
    with pytest.raises(UserError) as refused:
        train_vrc(replace(request(tmp_path), data=str(place)))
    assert refused.value.code == code
    assert not (tmp_path / "work").exists()


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of each are needed"):
        train_vrc(replace(request(tmp_path), data=str(lines(tmp_path / "data", 9))))


def test_a_model_that_cannot_answer_is_told_with_its_score(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scores 0%") as refused:
        train_vrc(replace(request(tmp_path), data=str(lines(tmp_path / "data", 90))))
    assert refused.value.code == "vrc.answers"
    assert not (tmp_path / "work" / "labels-train.jsonl").exists()


def test_questions_about_one_image_stay_together(tmp_path: Path) -> None:
    from hvlc.workflows.train.data import open_splits

    place = lines(tmp_path / "data", 120)
    whole = (place / "questions.jsonl").read_text().splitlines()
    (place / "questions.jsonl").write_text("\n".join([*whole, *(w.replace("What?", "Why?") for w in whole)]))
    splits = open_splits(str(place), {})
    images = {name: {task.example(k).images[0].tobytes() for k in range(len(task))} for name, task in splits.items()}
    assert sum(len(task) for task in splits.values()) == 240
    assert not images["train"] & images["heldout"]
    assert not images["train"] & images["calibration"]
    assert not images["calibration"] & images["heldout"]


def test_a_work_directory_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    with pytest.raises(UserError, match=r"train\.work"):
        train_vrc(request(tmp_path))


def test_views_are_laid_out_as_training_reads_them(tmp_path: Path) -> None:
    from hvlc.training.vrc.compressor import _room

    views = _room(tmp_path / "work", (5, 4, 4, 3)).permute(0, 3, 1, 2)
    views[3] = torch.full((3, 4, 4), 0.5)
    assert views.dtype == torch.float16
    assert views.contiguous(memory_format=torch.channels_last).data_ptr() == views.data_ptr()  # fit makes no copy
    assert views.sum(dim=(1, 2, 3)).tolist() == [0, 0, 0, 24, 0]
    assert list((tmp_path / "work").iterdir()) == []
