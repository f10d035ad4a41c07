"""`hvlc lint` and `hvlc targets`: exit codes, JSON, tables and SARIF."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import onnx
import pytest

from hvlc.targets import load_target, shipped_targets
from hvlc.workflows.lint import probing
from tests.helpers.commands import Hvlc
from tests.lint.corpus import corpus

SCHEMA = Path(__file__).parents[1] / "schemas" / "sarif-2.1.0.json"
CASES = {case.name: case for case in corpus()}


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    def saved(name: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(CASES[name].model, path)
        return path

    return saved


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("Relu-float32", (), 0),
        ("Trilu", (), 3),
        ("Trilu", ("--allow-hazards",), 3),
        ("MatMul-dynamic-uint16-uint16", (), 3),
        ("MatMul-dynamic-uint16-uint16", ("--allow-hazards",), 0),
    ],
)
def test_exit_codes(hvlc: Hvlc, model, name: str, options: tuple[str, ...], code: int) -> None:
    found = hvlc("lint", model(name), "--target", "qnn-sm8750", *options, "--json")
    assert (found.code, found.err) == (code, "")
    assert found.json["refused"] is (code == 3)
    assert found.json["schema_version"] == 1


def test_a_refused_node_is_told_with_reason_fix_evidence_and_source(hvlc: Hvlc, model) -> None:
    path = model("block-residual-rms-fused")
    found = hvlc("lint", path, "--target", "qnn-sm8750")
    for words in (
        "refused",
        "SkipSimplifiedLayerNormalization",
        "--fix takes them apart",
        "operators.fused-norms, run",
    ):
        assert words in found.out
    (graph,) = hvlc("lint", path, "--target", "qnn-sm8750", "--json").json["graphs"]
    assert (graph["nodes"], graph["refused"], graph["partitions"]) == (3, 1, 1)
    (finding,) = graph["findings"]
    assert finding["node"] == "SkipSimplifiedLayerNormalization_0"
    assert finding["source"]


def test_dimensions_are_taken_as_fixed(hvlc: Hvlc, model) -> None:
    path = model("MatMul-dynamic-length")
    assert hvlc("lint", path, "--target", "qnn-sm8750").code == 3
    assert hvlc("lint", path, "--target", "qnn-sm8750", "--dim", "s=64").code == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--dim", "t=64"), "[lint.dim] no dimension 't'"),
        (("--dim", "s=many"), "write NAME=SIZE"),
        (("--dim", "s=0"), "a size is within 1 and 2147483647"),
        (("--dim", "s=64", "--probe"), "--dim is for the rules alone"),
    ],
)
def test_wrong_dimensions_are_refused(hvlc: Hvlc, model, options: tuple[str, ...], code: str) -> None:
    found = hvlc("lint", model("MatMul-dynamic-length"), "--target", "qnn-sm8750", *options)
    assert found.code == 2
    assert code in found.err


def test_it_fixes_into_a_directory(hvlc: Hvlc, model, tmp_path: Path) -> None:
    path = model("block-residual-rms-fused")
    found = hvlc("lint", path, "--target", "qnn-sm8750", "--fix", "-o", tmp_path / "fixed")
    assert found.code == 0
    assert "fixed: DecomposeSkipNorm 1" in found.out
    assert hvlc("lint", tmp_path / "fixed" / path.name, "--target", "qnn-sm8750").code == 0


@pytest.mark.parametrize("options", [("--fix",), ("-o", "out")])
def test_fix_and_output_need_each_other(hvlc: Hvlc, model, options: tuple[str, ...]) -> None:
    found = hvlc("lint", model("Relu-float32"), "--target", "cpu", *options)
    assert found.code == 2
    assert "--fix" in found.err


def test_a_probe_without_the_compiler_stops_before_the_work(
    hvlc: Hvlc, model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probing, "is_installed", lambda: False)
    options = ("--probe", "--fix", "-o", tmp_path / "out")
    found = hvlc("lint", model("Trilu"), "--target", "qnn-sm8750", *options)
    assert found.code == 2
    assert "[lint.probe]" in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not probing.is_installed(), reason="needs Qualcomm's compiler: pip install 'hvlc[qnn]' on x86-64 Linux"
)
def test_a_probe_says_where_rules_and_compiler_disagree(hvlc: Hvlc, model, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'schema_version = 1\nname = "mine"\ndescription = "x"\nextends = "qnn-sm8750"\n'
        '[rules.no-relu]\noperators = ["Relu"]\nreason = "wrong"\nevidence = "inferred"\nsource = "nowhere"\n'
    )
    found = hvlc("lint", model("Relu-float32"), "--target", tmp_path / "mine.toml", "--probe")
    assert found.code == 3
    assert "disagreement: Relu_0 (Relu): the compiler takes it, rules do not" in found.out
    agreed = hvlc("lint", model("Relu-float32"), "--target", "qnn-sm8750", "--probe", "--json")
    assert agreed.code == 0
    assert agreed.json["graphs"][0]["probed"]["disagreements"] == []


@pytest.mark.parametrize("name", ["Trilu", "MatMul-dynamic-uint16-uint16", "Relu-float32"])
def test_sarif_is_valid_and_points_at_the_node(hvlc: Hvlc, model, tmp_path: Path, name: str) -> None:
    path = model(name)
    hvlc("lint", path, "--target", "qnn-sm8750", "--sarif", tmp_path / "lint.sarif")
    log = json.loads((tmp_path / "lint.sarif").read_text())
    jsonschema.validate(log, json.loads(SCHEMA.read_text()))
    (run,) = log["runs"]
    expected = {"Trilu": ["error"], "MatMul-dynamic-uint16-uint16": ["warning"], "Relu-float32": []}
    assert [result["level"] for result in run["results"]] == expected[name]
    for result in run["results"]:
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"].endswith(f"{name}.onnx")
        assert location["logicalLocations"][0]["name"] in result["message"]["text"]
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_the_sarif_check_sees_a_broken_log() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"version": "2.1.0", "runs": [{"results": []}]}, json.loads(SCHEMA.read_text()))


# Targets.


def test_targets_are_listed_with_how_far_they_were_tried(hvlc: Hvlc) -> None:
    listed = hvlc("targets", "list", "--json").json
    assert set(listed) == set(shipped_targets())
    assert listed["qnn-sm8750"]["tried"] == "compiled and emulated"
    assert listed["coreml-ane"]["tried"] == "rules only"
    out = hvlc("targets", "list").out
    assert all(name in out for name in listed)


@pytest.mark.parametrize("name", shipped_targets())
def test_a_target_is_shown_resolved_with_evidence_for_every_limit(hvlc: Hvlc, name: str) -> None:
    shown = hvlc("targets", "show", name).out
    target = load_target(name)
    assert target.description.split()[0] in shown
    assert "not stated" not in shown
    assert hvlc("targets", "show", name, "--json").json == target.model_dump(mode="json")


def test_a_limit_without_a_source_is_shown_as_such(hvlc: Hvlc, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'schema_version = 1\nname = "mine"\ndescription = "x"\nexecution_provider = "cpu"\n'
        'evidence = "run"\nmax_rank = 4\n'
    )
    assert "not stated" in hvlc("targets", "show", tmp_path / "mine.toml").out
