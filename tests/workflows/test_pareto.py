"""The front of a model that sees, built and asked."""

import json
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.recipes.schema import FormatSpec
from hvlc.results.sensitivity import Front
from hvlc.workflows.evaluate import evaluate
from hvlc.workflows.sensitivity.pareto import Scoring, pareto
from hvlc.workflows.sensitivity.sensitivity import SensitivityOptions, opened

FORMATS = (FormatSpec(bits=4, block_size=32), FormatSpec(bits=8, block_size=32))


def test_a_model_that_sees_is_asked_about_documents(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    original = evaluate.evaluate_directory

    def recording(directory: Path, task, settings, **options):
        asked.extend((directory.name, setting.encoder) for setting in settings)
        return original(directory, task, settings, **options)

    monkeypatch.setattr(evaluate, "evaluate_directory", recording)
    how = SensitivityOptions(FORMATS, samples=2, cache=tmp_path / "cache", loss=False)
    with opened(tiny_checkpoint, "w4a16-rtn", "cpu") as model:
        front = pareto(model, how, tmp_path / "front", count=2, scoring=Scoring(documents=1))
    assert front.score == "exact match"
    assert front.predicted == "output error"
    assert front.reference is not None
    assert [p.uniform for p in front.points] == [False, False, True, True]
    assert all(p.measured is not None for p in front.points)
    assert asked == [(name, e) for name in (tiny_checkpoint.name, *["package"] * 4) for e in ("base", "large")]
    assert Front.model_validate_json((tmp_path / "front" / "front.json").read_text()) == front


def test_an_older_front_is_refused_before_the_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "front.json").write_text(json.dumps({}))
    how = SensitivityOptions(FORMATS, samples=2, cache=tmp_path / "cache", loss=False)
    with opened(tiny_checkpoint, "w4a16-rtn", "cpu") as model, pytest.raises(UserError, match=r"output\.exists"):
        pareto(model, how, tmp_path, count=2)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    with opened(tiny_checkpoint, "w4a16-rtn", "cpu") as model, pytest.raises(UserError, match="is a file"):
        pareto(model, how, tmp_path / "file", count=2)


def test_what_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error, opened(tmp_path / "nothing", "w4a61", "cpuu"):
        pass
    assert [p.code for p in error.value.problems] == ["checkpoint.missing", "recipe.unknown", "target.unknown"]
