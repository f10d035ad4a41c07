"""`hvlc train dcl`: the small encoder follows the large one, is measured, and a checkpoint comes out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hvlc.errors import UserError
from hvlc.evaluation.documents import DocumentsTask
from hvlc.export.references import vision_language_checkpoint
from hvlc.models.loaded import LoadedModel
from hvlc.training.alignment import divergence
from hvlc.training.consistency import Consistency, answer_ids, answer_logits, own_parameters, train_consistency
from hvlc.workflows.train.dcl import REPORT, DclRequest, train_dcl
from hvlc.zoo import nano_checkpoint
from tests.helpers.tiny_vision_language import save_grid

COUNTS = {"train": 12, "calibration": 8, "heldout": 4}


def opened(place: Path) -> LoadedModel:
    found = vision_language_checkpoint(place)
    assert found is not None
    return found.loaded()


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return opened(nano_checkpoint())


def request(tmp_path: Path, **changes: Any) -> DclRequest:
    asked = DclRequest(nano_checkpoint(), "documents", tmp_path / "out", tmp_path / "work", counts=COUNTS)
    return replace(asked, minutes=0.05, questions=2, **changes)


def test_an_encoders_own_parameters_are_its_tower_and_projector(nano: LoadedModel) -> None:
    example = DocumentsTask(1).example(0)
    names = own_parameters(nano, example, "base", ["large"])
    assert names
    assert {name.split(".")[2] for name in names} == {"base"}
    assert set(names) == {n for n, _ in nano.model.named_parameters() if n.startswith("model.branches.base.")}


def test_encoders_that_are_one_have_none(nano: LoadedModel) -> None:
    with pytest.raises(UserError) as refused:
        own_parameters(nano, DocumentsTask(1).example(0), "base", ["base"])
    assert refused.value.code == "dcl.encoder"


def test_logits_of_an_answer_are_those_of_transformers_loss(nano: LoadedModel) -> None:
    """The model's own loss, with labels, is the cross-entropy of what is taken here."""
    example = DocumentsTask(1).example(0)
    answer = answer_ids(nano, example.answers[0])
    inputs = nano.inputs(example.question, example.images, [1.0])
    prompt = inputs["input_ids"]
    whole = torch.cat([prompt, answer[None]], 1)
    labels = torch.cat([torch.full_like(prompt, -100), answer[None]], 1)
    given = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole), "labels": labels}
    with torch.no_grad():
        for encoder in ("base", "large"):
            expected = nano.model(**given, **nano.chosen(encoder)).loss
            found = functional.cross_entropy(answer_logits(nano, example, answer, encoder), answer)
            assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def spoiled() -> LoadedModel:
    """The shipped model, its small encoder's projector turned by noise."""
    model = opened(nano_checkpoint())
    torch.manual_seed(0)
    with torch.no_grad():
        weight = model.model.model.branches["base"].projector.linear_2.weight
        weight += torch.randn_like(weight) * weight.std() * 0.7
    return model


@pytest.mark.parametrize("method", ["ce", "dcl"])
def test_the_small_encoder_comes_nearer_and_nothing_else_moves(tmp_path: Path, method: Any) -> None:
    model, task = spoiled(), DocumentsTask(6, split="train")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    recipe = Consistency("base", "large", method, "small", 1.0, 2.0, 1e-3, 0.2, 3, 0, tmp_path)

    def apart() -> float:
        with torch.no_grad():
            found = []
            for index in range(len(task)):
                example = task.example(index)
                answer = answer_ids(model, example.answers[0])
                large, small = (answer_logits(model, example, answer, name) for name in ("large", "base"))
                found.append(float(divergence(large, small, 1.0)))
        return sum(found) / len(found)

    first = apart()
    learned = train_consistency(model, task, recipe)
    assert apart() < first
    after = model.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert moved <= set(learned)


def test_with_all_parts_the_language_model_learns_too(tmp_path: Path) -> None:
    model, task = opened(nano_checkpoint()), DocumentsTask(4, split="train")
    recipe = Consistency("base", "large", "dcl", "all", 1.0, 2.0, 1e-3, 0.02, 2, 0, tmp_path)
    learned = train_consistency(model, task, recipe)
    assert {name.split(".")[1] for name in learned} == {"branches", "language_model"}
    alone = train_consistency(
        opened(nano_checkpoint()), task, replace(recipe, large=None, method="ce", work=tmp_path / "alone")
    )
    assert not any(".large." in name for name in alone)


def test_a_checkpoint_comes_out_and_a_killed_training_goes_on(tmp_path: Path) -> None:
    asked = request(tmp_path)

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("after", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dcl(asked, stop)
    assert not asked.output.exists()
    saved = list(asked.work.glob("*/consistency.pt"))
    assert len(saved) == 1
    stamp = saved[0].stat().st_mtime_ns
    result = train_dcl(asked)
    assert saved[0].stat().st_mtime_ns == stamp  # it was over
    assert (result.small, result.large) == ("base", "large")
    assert result.after.encoders["large"] == result.before.encoders["large"]
    assert result.before.same == sum(
        a == b for a, b in zip(*(answers(nano_checkpoint(), name) for name in ("base", "large")), strict=True)
    ) / len(DocumentsTask(COUNTS["heldout"]))
    report = json.loads((asked.output / REPORT).read_text())
    assert report["after"]["same"] == result.after.same
    assert {path.name for path in asked.output.iterdir()} >= {p.name for p in nano_checkpoint().glob("*.json")}
    model = opened(asked.output)
    assert model.encoders == ("large", "base") or set(model.encoders) == {"large", "base"}


def answers(place: Path, encoder: str) -> list[str]:
    found = vision_language_checkpoint(place)
    assert found is not None
    reference = found.reference("it")
    said = []
    for index in range(COUNTS["heldout"]):
        example = DocumentsTask(COUNTS["heldout"]).example(index)
        answered = reference.answer(example.question, example.images, encoder=encoder, vrc=False, max_new_tokens=32)
        said.append(" ".join(answered.text.split()))
    return said


def test_what_cannot_be_trained_is_refused_before_the_work(tmp_path: Path) -> None:
    one = save_grid(tmp_path / "one", "qwen3_vl")
    with pytest.raises(UserError) as refused:
        train_dcl(request(tmp_path, checkpoint=one))
    assert refused.value.code == "dcl.encoder"
    with pytest.raises(UserError) as unknown:
        train_dcl(request(tmp_path, small="huge"))
    assert unknown.value.code == "request.encoder"
    assert not (tmp_path / "work").exists()


def test_a_work_directory_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    with pytest.raises(UserError, match=r"train\.work"):
        train_dcl(request(tmp_path))
