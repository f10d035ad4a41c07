"""Gates on `hvlc eval`: exit codes, files, and what is refused before the work."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from hvlc.cli.gates import GateRequest, gate_options
from hvlc.recipes.loading import recipe_path
from tests.helpers.commands import Hvlc, Result, commands
from tests.helpers.faults import NAMES, planted

Eval = Callable[..., Result]


@pytest.fixture
def evaluated(capsys: pytest.CaptureFixture[str], tiny_w4a16: Path) -> Iterator[Eval]:
    """`hvlc eval PACKAGE -n 6 --encoder base ARGUMENTS`."""
    for hvlc in commands(capsys):

        def run(*arguments: object, package: Path = tiny_w4a16, hvlc: Hvlc = hvlc) -> Result:
            return hvlc("eval", package, "-n", 6, "--encoder", "base", "--no-vrc", *arguments)

        yield run


def test_gates_that_hold_leave_exit_code_0_and_files(evaluated: Eval, tmp_path: Path, tiny_float32: Path) -> None:
    files = {kind: tmp_path / f"gates.{kind}" for kind in ("junit", "sarif", "markdown")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", path)]
    gates = ("--gate", "size <= 0.9x", "--gate", "size <= 40MB", "--gate", "visual_tokens <= 1x")
    code, out, err = evaluated("--reference", tiny_float32, "--no-fidelity", *gates, *options)
    assert (code, err) == (0, "")
    assert out.index("passed") < out.index("exact")
    assert ElementTree.parse(files["junit"]).getroot().get("failures") == "0"
    assert json.loads(files["sarif"].read_text())["runs"][0]["results"] == []
    assert files["markdown"].read_text().startswith("### ✅ 3 gates passed")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())


def test_a_broken_gate_ends_with_4_after_all_files_are_written(evaluated: Eval, tmp_path: Path) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text("schema_version: 1\ngates:\n- {gate: size <= 1kB, reason: what the store takes}\n")
    recipe = recipe_path("w4a16-rtn")
    files = ("--junit", tmp_path / "j.xml", "--sarif", tmp_path / "s.json", "--markdown", tmp_path / "m.md")
    code, out, err = evaluated(
        "--gates", file, "--gate", "size <= 40MB", "-o", tmp_path / "out", *files, "--recipe-file", recipe
    )
    assert code == 4
    assert " ".join(out.split()).startswith("❌ size of w4a16-rtn · base is ")
    assert err.startswith("error [gate.broken] size of w4a16-rtn · base is ")
    assert "above 1kB (1 of 2 gates broken)" in err
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    (result,) = json.loads((tmp_path / "s.json").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 3
    assert "what the store takes" in (tmp_path / "m.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()


def test_json_is_one_object_with_the_error_in_it(evaluated: Eval) -> None:
    code, out, err = evaluated("--gate", "size <= 1kB", "--json")
    found = json.loads(out)
    assert (code, err, found["error"]["code"]) == (4, "", "gate.broken")
    assert found["judgement"]["evaluations"][0]["outcomes"][0]["verdict"] == "broken"
    assert found["evaluations"][0]["summary"]["n"] == 6
    code, out, _ = evaluated("--gate", "size <= 40MB", "--json")
    assert (code, "error" in json.loads(out)) == (0, False)
    code, out, _ = evaluated("--json")
    assert isinstance(json.loads(out), list)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--gate", "sise <= 1kB"), "gate.metric"),
        (("--gate", "size <= 1x"), "gate.reference"),
        (("--gate", "perplexity <= 9"), "gate.metric"),
        (("--gate", "size[large] <= 1kB"), "gate.encoder"),
        (("--gate", "size <= 1kB", "--gate", "size >= 2kB"), "gate.contradiction"),
        (("--gates", "none.yaml"), "spec.unreadable"),
        (("--junit", "j.xml"), "gate.missing"),
        (("--gate", "size <= 1kB", "--recipe-file", "r.yaml"), "gate.recipe"),
        (("--gate", "size <= 1kB", "--sarif", "s.json", "--recipe-file", "r.yaml"), "gate.recipe"),
        (("--gate", "size <= 1kB", "--junit", "none/j.xml"), "results.unwritable"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_work(
    evaluated: Eval, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], code: str
) -> None:
    def worked(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("hvlc.workflows.evaluate.evaluate.evaluate_questions", worked)
    monkeypatch.chdir(tmp_path)
    exit_code, out, _ = evaluated(*arguments, "--json")
    assert (exit_code, json.loads(out)["error"]["code"]) == (2, code)
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_computed_ends_with_2_and_no_file(evaluated: Eval, tmp_path: Path) -> None:
    code, out, _ = evaluated("--gate", "p95_ttft <= 10s", "--junit", tmp_path / "j.xml", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "gate.too_few")
    assert list(tmp_path.iterdir()) == []


def test_gates_stop_every_planted_fault(evaluated: Eval, tiny_w4a16: Path, tmp_path: Path) -> None:
    gates = ("--reference", tiny_w4a16, "--max-new-tokens", 1, "--gate", "surely kl <= 1e-6 nats", "--json")
    gates += ("-o", tmp_path / "out", "--reuse")  # the reference is measured once
    healthy = shutil.copytree(tiny_w4a16, tmp_path / "healthy")
    assert evaluated(*gates, package=healthy).code == 0
    for index, name in enumerate(NAMES):
        code, out, _ = evaluated(*gates, package=planted(name, tiny_w4a16, tmp_path / str(index)))
        assert (code, json.loads(out)["error"]["code"]) == (4, "gate.broken"), name


def test_a_command_gets_its_gates_as_one_argument() -> None:
    @click.command()
    @gate_options
    def command(gates: GateRequest) -> GateRequest:
        return gates

    arguments = ["--gate", "a", "--gate", "b", "--gates", "f", "--junit", "j"]
    assert command.main(arguments, standalone_mode=False) == GateRequest(("a", "b"), Path("f"), Path("j"))
    assert command.main([], standalone_mode=False) == GateRequest()
