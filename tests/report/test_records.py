import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from hvlc.errors import UserError
from hvlc.evaluation.compare import with_agreement
from hvlc.results import Answered, Score, read_evaluation, write_evaluation


@pytest.fixture
def file(tmp_path: Path, evaluation) -> Path:
    reference = evaluation(["0", "1", "x"], name="float32")
    path = tmp_path / "w4a16.json"
    write_evaluation(path, with_agreement(evaluation(["0", "<é>", "x"]), reference))
    return path


def test_a_file_comes_back_as_it_was(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    write_evaluation(again, read_evaluation(file))
    assert again.read_bytes() == file.read_bytes()
    assert read_evaluation(again) == read_evaluation(file)
    assert json.loads(file.read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["summary"].update(f1=1), "summary.f1"),
        (lambda d: d["examples"][1].update(note=1), "examples.1.note"),
        (lambda d: d.update(schema_version=2), "schema_version"),
        (lambda d: d["examples"].pop(), "the summary counts 3"),
        (lambda d: d["examples"][0].update(id="e1"), "2 ids"),
        (lambda d: d["examples"][0].update(exact=False), "the summary says"),
        (lambda d: d["agreement"].update(lost=9), "there are 3"),
        (lambda d: d["summary"]["exact_match"].update(low=0.9), "outside its interval"),
        (lambda d: d["summary"].update(mean_visual_tokens=math.nan), "mean_visual_tokens"),
        (lambda d: d["summary"]["anls"].update(value=None), "summary.anls.value"),
    ],
)
def test_a_file_that_was_changed_is_refused(file: Path, change, where: str) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        read_evaluation(file)
    assert error.value.code == "results.invalid"
    assert where in error.value.cause


def test_a_file_that_was_cut_short_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"results\.invalid"):
        read_evaluation(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.unreadable"):
        read_evaluation(tmp_path / "none.json")


def test_nan_is_no_measurement() -> None:
    fields = {
        "text": "",
        "tokens": (),
        "encoder": "base",
        "scales": (),
        "tiles": 0,
        "visual_tokens": 0,
        "prompt_tokens": 0,
    }
    with pytest.raises(ValidationError):
        Answered(**fields, time_to_first_token=math.nan, decode_seconds=0)
    with pytest.raises(ValidationError):
        Answered(**fields, time_to_first_token=0.1, decode_seconds=-1)
    with pytest.raises(ValidationError):
        Score(value=math.nan, low=0, high=1, n=1, method="wilson")
