"""`hvlc tune`: candidates are asked, one is chosen and confirmed, and a package with it comes out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hvlc.cli import cli
from hvlc.errors import HvlcError, UserError
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.opening.package import open_package
from hvlc.package.tuning import front_with_margin
from hvlc.results.tuning import Asked
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.workflows.build.build import build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from hvlc.workflows.tune import tune as tuning
from hvlc.workflows.tune.asking import Asking
from hvlc.workflows.tune.candidates import Candidate, front_of
from hvlc.workflows.tune.tune import TuneRequest, tune
from hvlc.zoo import nano_checkpoint
from tests.helpers.tiny import picture

LARGE, BASE = Candidate("large", None, None), Candidate("base", None, None)
ROWS = st.lists(
    st.tuples(st.sampled_from((0.0, 1.0)), st.integers(1, 500), st.floats(0.001, 2)), min_size=8, max_size=8
)


def asked(score: float, tokens: int = 10, seconds: float = 1.0, n: int = 8) -> list[Asked]:
    return [Asked(score=score, tokens=tokens, seconds=seconds)] * n


@given(st.lists(ROWS, min_size=1, max_size=6), st.floats(0, 1))
def test_the_choice_keeps_the_floor_and_is_the_fastest(
    rows: list[list[tuple[float, int, float]]], floor: float
) -> None:
    others = [Candidate("base", 1.0, at + 1) for at in range(len(rows))]
    answers = {
        one: [Asked(score=score, tokens=tokens, seconds=seconds) for score, tokens, seconds in own]
        for one, own in zip(others, rows, strict=True)
    }
    answers[LARGE] = asked(1.0, 600, 3.0)
    candidates = [LARGE, *others]
    front = front_of("it", floor, candidates, answers)
    chosen = front.candidates[front.chosen]
    assert chosen.kept_choosing >= floor
    for one, answer in zip(front.candidates, candidates, strict=True):
        assert one.kept_choosing == pytest.approx(np.mean([a.score for a in answers[answer][::2]]))
        if one.kept_choosing >= floor:
            assert chosen.seconds <= one.seconds
    assert front.confirmed == (chosen.kept_confirming >= floor)
    assert front.kept.value == pytest.approx(chosen.kept_confirming)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_front_is_what_nobody_beats(rows: list[tuple[float, int, int]]) -> None:
    candidates = [LARGE, *(Candidate("base", 1.0, at + 1) for at in range(len(rows)))]
    costs = [(1.0, 9, 9.0), *((score, tokens, float(seconds)) for score, tokens, seconds in rows)]
    front = front_of("it", 0.5, candidates, {c: asked(*cost) for c, cost in zip(candidates, costs, strict=True)})
    for one, (score, tokens, seconds) in zip(front.candidates, costs, strict=True):
        beaten = any(
            s >= score and t <= tokens and p <= seconds and (s, t, p) != (score, tokens, seconds) for s, t, p in costs
        )
        assert one.best == (not beaten)


def test_the_better_encoder_at_full_size_is_the_measure() -> None:
    answers = {LARGE: asked(0.5, seconds=2.0), BASE: asked(0.8, seconds=1.0)}
    front = front_of("it", 1.0, [LARGE, BASE], answers)
    assert front.full_score == pytest.approx(0.8)
    assert front.candidates[front.chosen].encoder == "base"


def test_what_fails_to_be_confirmed_is_told() -> None:
    lucky = [Asked(score=float(at % 2 == 0), tokens=1, seconds=0.1) for at in range(8)]
    bounded = Candidate("base", None, 5)
    front = front_of("it", 0.9, [LARGE, bounded], {LARGE: asked(1.0), bounded: lucky})
    assert front.chosen == 1
    assert not front.confirmed
    with pytest.raises(HvlcError) as refused:
        tuning.require_confirmed(front)
    assert refused.value.code == "tune.floor"


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tune") / "nano"
    return build(open_request(nano_checkpoint(), "cpu", "float32", output)).output


def request(nano: Path, tmp_path: Path, **changes: Any) -> TuneRequest:
    asked_for = TuneRequest(nano, "documents", tmp_path / "tuned", count=8, floor=0.5, margins=(0.7, 1.0), threads=1)
    return replace(asked_for, bounds=(40,), max_new_tokens=12, **changes)


def test_a_margin_is_a_factor_on_the_scale_that_a_host_gets(nano: Path) -> None:
    image = np.asarray(picture(180, 240))
    with Asking(VisionLanguageModel(nano, threads=1), [0.5, 1.0, 100.0], threads=1) as asking:
        scales = [asking._fronts[margin].see(image, compress=True).scale for margin in (0.5, 1.0, 100.0)]
    own = VisionLanguageModel(nano, threads=1)._vision.see(image, compress=True).scale
    assert scales[1] == own
    assert scales[0] == pytest.approx(max(0.1, own * 0.5), abs=0.026)
    assert scales[2] == 1


def test_a_tuned_package_does_what_was_measured(nano: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in nano.iterdir() if path.stat().st_size < 10**6}
    front = tune(request(nano, tmp_path, journal=tmp_path / "answers.jsonl"))
    assert len(front.candidates) == 2 * 3 * 2
    chosen = front.candidates[front.chosen]
    manifest = open_package(tmp_path / "tuned", verify=True).manifest
    assert manifest.tuned is not None
    assert manifest.policy is not None
    assert manifest.policy.default == manifest.tuned.encoder == chosen.encoder
    assert manifest.images is not None
    assert manifest.images.max_visual_tokens == (chosen.bound or manifest.tuned.max_visual_tokens_before)
    model = VisionLanguageModel(tmp_path / "tuned", threads=1)
    task = tuning.open_task("documents")
    answered = [
        model.answer(task.example(at).question, task.example(at).images, encoder="auto", vrc=True, max_new_tokens=12)
        for at in range(8)
    ]
    assert np.mean([one.visual_tokens for one in answered]) == pytest.approx(chosen.tokens)
    right = [one.text in task.example(at).answers for at, one in enumerate(answered)]
    assert np.mean(right) == pytest.approx(chosen.score)
    assert {path.name: path.read_bytes() for path in nano.iterdir() if path.name in before} == before
    assert rebuild(tmp_path / "tuned", nano_checkpoint()).files > 5


def test_full_size_is_a_choice_too(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [Candidate("base", None, None)]
    monkeypatch.setattr(tuning, "_candidates", lambda *_: whole)
    tune(request(nano, tmp_path))
    model = VisionLanguageModel(tmp_path / "tuned", threads=1)
    image = picture(180, 240)
    said = model.answer("Total?", [image], encoder="auto", vrc=True, max_new_tokens=2)
    assert said.scales == (1.0,)
    assert said.encoder == "base"


def test_a_killed_run_goes_on(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = request(nano, tmp_path, journal=tmp_path / "answers.jsonl")

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(asked_for, stop)
    assert not asked_for.output.exists()
    count: list[str] = []
    ask = Asking.ask

    def counted(self: Asking, example: Any, *rest: Any) -> Any:
        count.append(example.id)
        return ask(self, example, *rest)

    monkeypatch.setattr(Asking, "ask", counted)
    tune(asked_for)
    assert len(count) == 3


def silent(place: Path) -> Path:
    """Questions that no model answers as they want."""
    place.mkdir()
    picture(60, 60).save(place / "0.png")
    rows = [json.dumps({"image": "0.png", "question": f"{k}?", "answers": ["no such"]}) for k in range(8)]
    (place / "questions.jsonl").write_text("\n".join(rows))
    return place / "questions.jsonl"


def test_what_cannot_be_tuned_is_refused_before_the_work(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as few:
        tune(replace(request(nano, tmp_path), count=4))
    assert few.value.code == "tune.data"
    with pytest.raises(UserError) as empty:
        tune(replace(request(nano, tmp_path), data=str(silent(tmp_path / "silent"))))
    assert empty.value.code == "tune.answers"
    assert not (tmp_path / "tuned").exists()


def test_a_tuned_package_is_not_tuned_again(nano: Path, tmp_path: Path) -> None:
    tune(request(nano, tmp_path))
    with pytest.raises(UserError) as refused:
        tune(replace(request(nano, tmp_path), package=tmp_path / "tuned", output=tmp_path / "twice"))
    assert refused.value.code == "tune.package"
    content = json.loads((tmp_path / "tuned" / MANIFEST).read_text())
    assert Manifest.load(nano).tuned is None
    assert "tuned" not in json.loads((nano / MANIFEST).read_text())
    assert content["tuned"]["data"] == "documents"


def test_where_a_disk_has_no_links_files_are_copied(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    tune(request(nano, tmp_path))
    assert open_package(tmp_path / "tuned", verify=True).manifest.tuned is not None
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "tuned").iterdir())


def test_a_graph_without_a_margin_is_refused(nano: Path) -> None:
    with pytest.raises(HvlcError):
        front_with_margin(nano / Manifest.load(nano).components["stitch"].file, 1.0)


def test_the_command_writes_a_report(nano: Path, tmp_path: Path) -> None:
    command = [
        "tune",
        str(nano),
        "--data",
        "documents",
        "-n",
        "8",
        "--margins",
        "1",
        "--bounds",
        "40",
        "--floor",
        "0.3",
    ]
    command += ["-o", str(tmp_path / "tuned"), "--report", str(tmp_path / "report"), "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code in (0, 4), done.output
    front = json.loads((tmp_path / "report" / "front.json").read_text())
    assert json.loads(done.stdout)["chosen"] == front["chosen"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"front.json", "front.png", "front.svg"}
