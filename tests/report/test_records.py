"""Records of evaluations: what is written is read again, and nothing else is taken."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from hvlc.errors import UserError
from hvlc.evaluation.compare import with_agreement
from hvlc.evaluation.fidelity import fidelity
from hvlc.results import Answered, Divergence, Score, read_evaluation, write_evaluation
from hvlc.results.measures import MEASURES


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
    assert json.loads(file.read_text())["schema_version"] == 2


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["summary"].update(f1=1), "summary.f1"),
        (lambda d: d["examples"][1].update(note=1), "examples.1.note"),
        (lambda d: d.update(schema_version="new"), "schema_version"),
        (lambda d: d["examples"].pop(), "the summary counts 3"),
        (lambda d: d["examples"][0].update(id="e1"), "2 ids"),
        (lambda d: d["examples"][0].update(exact=False), "the summary says"),
        (lambda d: d["agreement"].update(lost=9), "there are 3"),
        (lambda d: d["summary"]["exact_match"].update(low=0.9), "outside its interval"),
        (lambda d: d["summary"]["visual_tokens"].update(value=math.nan), "visual_tokens.value"),
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


@pytest.mark.parametrize("version", [1, 3])
def test_a_file_of_another_version_says_so(file: Path, version: int) -> None:
    file.write_text(json.dumps({"schema_version": version, "name": "w4a16", "anything": []}))
    with pytest.raises(UserError, match=f"has version {version} of the format") as error:
        read_evaluation(file)
    assert error.value.code == "results.version"


def test_a_file_of_another_kind_is_refused(file: Path) -> None:
    for kind in ("text", "numbers"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": kind}))
        with pytest.raises(UserError, match=r"results\.invalid"):
            read_evaluation(file)


def test_a_text_evaluation_comes_back_as_it_was(tmp_path: Path, reading) -> None:
    write_evaluation(tmp_path / "t.json", reading([1.0, 2.0, 1.5]))
    assert read_evaluation(tmp_path / "t.json") == reading([1.0, 2.0, 1.5])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(tokens=31), "30 tokens are listed"),
        (lambda d: d["windows"].pop(), "20 tokens are listed"),
        (lambda d: d["perplexity"].update(value=4.0), "the windows' perplexity"),
        (lambda d: d["windows"][0].update(nll=math.nan), "nll"),
        (lambda d: d.update(kind="questions"), "questions."),
    ],
)
def test_a_text_evaluation_that_was_changed_is_refused(tmp_path: Path, reading, change, where: str) -> None:
    data = json.loads(reading([1.0, 2.0, 1.5]).model_dump_json())
    change(data)
    (tmp_path / "t.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"results\.invalid") as error:
        read_evaluation(tmp_path / "t.json")
    assert where in error.value.cause


def test_every_measure_reads_what_there_is(evaluation, reading) -> None:
    questions, text = evaluation(["0", "x"]), reading([1.0, 2.0])
    computed = {name for name, measure in MEASURES.items() if measure.read(questions)}
    costs = {"visual_tokens", "prompt_tokens", "generated_tokens", "p50_ttft", "p95_ttft", "size"}
    assert computed == {"exact_match", "anls"} | costs  # one-token answers have no rate
    assert {name for name, measure in MEASURES.items() if measure.read(text)} == {"perplexity"}
    found = fidelity("float32", "", [Divergence(tokens=2, kl=0.5, agreeing=1)])
    for record in (questions, text):
        held = record.model_copy(update={"fidelity": found, "peak_memory_bytes": 5, "bits_per_weight": 4.5})
        values = {
            name: MEASURES[name].read(held) for name in ("kl", "top1_agreement", "peak_memory", "bits_per_weight")
        }
        assert {name: value.value for name, value in values.items() if value} == {
            "kl": 0.5,
            "top1_agreement": 0.5,
            "peak_memory": 5,
            "bits_per_weight": 4.5,
        }


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
