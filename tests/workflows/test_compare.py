"""Whole comparisons of packages and reports."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hvlc import cli
from hvlc.errors import UserError
from hvlc.inputs.images import to_array
from hvlc.report.comparison import comparison_markdown, comparison_tables, headline
from hvlc.results import write_evaluation
from hvlc.results.comparison import Comparison
from hvlc.results.trace_points import Question
from hvlc.workflows.evaluate.compare import (
    ComparisonResult,
    EvaluationRequest,
    compare_models,
    open_models,
    write_comparison,
)
from hvlc.workflows.evaluate.layerwise import trace
from tests.helpers.faults import FAULTS, planted
from tests.helpers.measurements import measured, read_text
from tests.helpers.tiny import picture
from tests.report.test_page import Page, requests

FEW = EvaluationRequest(count=6, encoders=("base",), traces=1, max_new_tokens=4)


def compared(
    *paths: Path, asking: EvaluationRequest = FEW, reference: str | None = None, work: Path | None = None
) -> ComparisonResult:
    return compare_models(open_models(paths, reference), asking, work=work)


@pytest.fixture(scope="module")
def quantized(tiny_float32: Path, tiny_w4a16: Path) -> ComparisonResult:
    return compared(tiny_float32, tiny_w4a16)


def test_a_package_against_itself_differs_nowhere(tiny_w4a16: Path) -> None:
    found = compared(tiny_w4a16, tiny_w4a16).comparison
    assert [c.name for c in found.contestants] == ["w4a16-rtn", "w4a16-rtn (2)"]
    assert {t.verdict for t in found.tests} == {"noise"}
    assert {t.p_value for t in found.tests} == {1.0}
    assert not found.flips
    assert not found.plan
    assert not found.settings
    assert {row.relative_error for row in found.layers} == {0.0}
    assert {row.relative_error for row in found.stages} == {0.0}
    assert {row.measures["kl"].value for row in found.runs if "kl" in row.measures} == {0.0}
    assert not found.notes
    assert "on every example" in headline(found)[0]
    assert "the same in every layer" in headline(found)[0]


def test_what_quantization_does_is_shown(quantized: ComparisonResult) -> None:
    found = quantized.comparison
    assert found.reference == "float32"
    assert [(c.name, c.facts["recipe"]) for c in found.contestants] == [
        ("float32", "float32"),
        ("w4a16-rtn", "w4a16-rtn"),
    ]
    errors = {(row.layer, row.kind): row.relative_error for row in found.layers}
    assert errors["model.layers.0", "mlp"] > 0.03
    stages = {row.stage: row.relative_error for row in found.stages}
    assert stages["preprocessing"] == 0
    assert 0 < (stages["decoder.layers.0"] or 0) < (stages["decoder.head"] or 0) * 3
    assert found.settings["w4a16-rtn"].keys() >= {"recipe", "manifest"}
    assert {"int4 b32 sym f16", "int8 whole sym f32"} <= {c.formats["w4a16-rtn"] for c in found.plan}
    assert [run.label for run in found.runs] == ["float32 · base · VRC", "w4a16-rtn · base · VRC"]
    assert "kl" in found.runs[1].measures
    assert found.runs[1].measures["size"].value < found.runs[0].measures["size"].value


def test_a_record_survives_its_file(quantized: ComparisonResult, tmp_path: Path) -> None:
    write_comparison(tmp_path / "out", quantized, "t")
    text = (tmp_path / "out" / "comparison.json").read_text()
    assert Comparison.model_validate_json(text) == quantized.comparison
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert requests(page) == []
    assert len(Page(page).all("img")) == 6
    assert "More than noise?" in page
    assert "Error of values" in page
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert rows
    for head, rule in pairwise(rows):  # a rule is as wide as the row above it
        if re.fullmatch(r"\|( :?-+:? \|)+", rule):
            assert head.count("|") - head.count("\\|") == rule.count("|")


def test_the_first_value_that_differs_is_where_the_fault_is(tiny_w4a16: Path, tmp_path: Path) -> None:
    images = tuple(to_array(picture(70, 50, seed)) for seed in (1,))
    question = Question("What is it?", images, encoder="base", vrc=False)
    visible = {name: fault.stage for name, fault in FAULTS.items() if name != "swapped token ids"}
    packages = {"sound": tiny_w4a16, **{name: planted(name, tiny_w4a16, tmp_path / name) for name in visible}}
    errors, notes = trace(packages, [question], lambda *_: None)
    assert not notes
    first: dict[str, str] = {}
    for row in errors:
        if row.relative_error != 0:
            first.setdefault(row.contestant, row.stage)
    assert first == visible


def test_a_package_that_cannot_be_traced_is_a_note(tiny_w4a16: Path, tmp_path: Path) -> None:
    for damaged in ("sound", "other"):
        copies = {name: Path(shutil.copytree(tiny_w4a16, tmp_path / damaged / name)) for name in ("sound", "other")}
        (copies[damaged] / "hvlc.lock.json").unlink()
        errors, notes = trace(copies, [Question("?")], lambda *_: None)
        assert not errors
        assert [note.partition(":")[0] for note in notes] == [damaged]


def test_a_fault_is_in_the_headline(tiny_w4a16: Path, tmp_path: Path) -> None:
    damaged = planted("wrong int4 scales", tiny_w4a16, tmp_path / "damaged")
    found = compared(tiny_w4a16, damaged, asking=replace(FEW, count=1, fidelity=False)).comparison
    assert "differ from decoder.layers.1 on: " in headline(found)[0]


def test_swapped_tokens_show_in_the_tokenizer(tiny_w4a16: Path, tmp_path: Path) -> None:
    damaged = planted("swapped token ids", tiny_w4a16, tmp_path / "damaged")
    found = compared(
        tiny_w4a16, damaged, asking=EvaluationRequest(count=1, encoders=("base",), traces=0, fidelity=False)
    ).comparison
    assert {c.key for c in found.settings["damaged"]["tokenizer"]} == {"vocab['t']", "vocab['e']"}


def write(path: Path, right: list[bool], **fields: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_evaluation(path, measured(right, **fields))  # type: ignore[arg-type]
    return path


def test_reports_are_compared_as_they_are(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", [True] * 40, name="good")
    bad = write(tmp_path / "bad.json", [True] * 20 + [False] * 20, name="bad")
    found = compared(good, bad).comparison
    assert {t.verdict for t in found.tests} == {"worse"}
    assert "is worse in exact match" in headline(found)[0]
    assert {f.direction for f in found.flips} == {"lost"}
    assert len(found.flips) == 20
    assert "packages alone" in " ".join(found.notes)
    other_way = compared(good, bad, reference="bad").comparison
    assert {t.verdict for t in other_way.tests} == {"better"}


def test_a_damaged_package_is_worse_and_no_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "reports"
    write(directory / "a.json", [True] * 30, name="a")
    write(directory / "b.json", [False] * 30, name="b")
    cli.main(["compare", str(directory), "-o", str(tmp_path / "out"), "--json"])
    data = json.loads(capsys.readouterr().out)
    assert {t["verdict"] for t in data["tests"]} == {"worse"}
    assert (tmp_path / "out" / "comparison.html").is_file()
    cli.main(["compare", str(directory)])
    assert "worse" in capsys.readouterr().out


def test_texts_are_compared_by_window(tmp_path: Path) -> None:
    for name, nll in (("a", [2.0, 2.1, 1.9, 2.2] * 3), ("b", [2.4, 2.5, 2.2, 2.7] * 3)):
        write_evaluation(tmp_path / f"{name}.json", read_text(nll, name=name))
    result = compared(tmp_path / "a.json", tmp_path / "b.json")
    (test,) = result.comparison.tests
    assert (test.measure, test.verdict) == ("perplexity", "worse")
    write_comparison(tmp_path / "out", result, "texts")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert requests(page) == []
    assert "perplexity" in page
    assert comparison_tables(result.comparison, result.evaluations)
    assert "perplexity" in comparison_markdown(result.comparison, result.evaluations)


def code(*paths: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        compared(*paths, **options)  # type: ignore[arg-type]
    return caught.value.code


def test_what_cannot_be_compared_is_refused(tmp_path: Path, tiny_w4a16: Path) -> None:
    one = write(tmp_path / "one.json", [True] * 4, name="one")
    other = write(tmp_path / "other.json", [True] * 4, name="other", examples_digest="1" * 64)
    large = write(tmp_path / "large.json", [True] * 4, name="large", encoder="large")
    assert code(one, other) == "compare.unpaired"  # shuffled or other examples
    assert code(one, large) == "compare.unpaired"
    assert code(one) == "compare.few"
    assert code(one, one, reference="two") == "compare.reference"
    (tmp_path / "empty").mkdir()
    assert code(one, tmp_path / "empty") == "compare.input"
    assert code(one, tmp_path / "nowhere") == "compare.input"
    cut = tmp_path / "cut.json"
    cut.write_text(one.read_text()[:-200])
    assert code(one, cut) == "results.invalid"
    nan, content = tmp_path / "nan.json", json.loads(one.read_text())
    content["summary"]["anls"]["value"] = float("nan")
    nan.write_text(json.dumps(content))
    assert code(one, nan) == "results.invalid"
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert code(tiny_w4a16, tiny_w4a16, asking=EvaluationRequest(task=str(empty))).startswith("task.")
    assert code(tiny_w4a16, tiny_w4a16, asking=EvaluationRequest(encoders=("huge",))) == "request.encoder"


def test_options_of_another_task_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--task", "a.txt", "-n", "3"], ["--window", "64"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["compare", "a", "b", *arguments])
        assert stop.value.code == 2
        assert "compare.option" in capsys.readouterr().err


def test_evaluations_are_kept_and_taken(tiny_w4a16: Path, tmp_path: Path) -> None:
    asking = EvaluationRequest(count=2, encoders=("base",), traces=0, max_new_tokens=2, fidelity=False)
    copy = Path(shutil.copytree(tiny_w4a16, tmp_path / "copy"))
    first = compared(tiny_w4a16, copy, asking=asking, work=tmp_path / "work")
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    again = compared(tiny_w4a16, copy, asking=asking, work=tmp_path / "work")
    assert first.comparison == again.comparison  # times too: nothing was asked again
    assert files
