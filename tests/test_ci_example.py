"""The example of a CI workflow: its YAML, its commands and its gates are what this hvlc takes."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from hvlc.cli import cli
from hvlc.evaluation.gates import read_gates, require_checkable
from hvlc.inputs.documents import read_yaml

CI = Path(__file__).parents[1] / "examples" / "ci"


def commands(workflow: Any) -> list[list[str]]:
    """The arguments of every call of hvlc."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = [line for step in steps for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("hvlc ")]


def parse(arguments: list[str]) -> dict[str, Any]:
    """What click makes of a command line, without running it."""
    context = click.Context(cli)
    name, command, rest = cli.resolve_command(context, arguments)
    assert command is not None
    return command.make_context(name, rest, parent=context).params


@pytest.fixture(scope="module")
def workflow() -> Any:
    return read_yaml(CI / "hvlc.yml")


def test_every_command_parses(workflow: Any) -> None:
    calls = [parse(arguments) for arguments in commands(workflow)]
    assert len(calls) == 4
    measured = calls[-1]
    assert measured["gates_file"] == Path("ci/gates.yaml")
    assert all(measured[kind] for kind in ("junit", "sarif", "markdown", "recipe_file", "reference"))
    built = [call["output"] for call in calls if "output" in call]
    assert {measured["directory"], measured["reference"]} <= set(built)


@pytest.mark.parametrize("wrong", ["eval x --gat y", "evla x", "eval x --junit", "build x --recipe y -o"])
def test_a_command_that_hvlc_does_not_take_is_noticed(wrong: str) -> None:
    with pytest.raises(click.ClickException):
        parse(shlex.split(wrong))


def test_what_a_step_reads_an_earlier_one_wrote(workflow: Any) -> None:
    steps = workflow["jobs"]["gates"]["steps"]
    written = parse(commands(workflow)[-1])
    files = {str(written[kind]) for kind in ("junit", "sarif", "markdown", "output")}
    after = [str(step) for step in steps[steps.index(next(s for s in steps if "eval" in s.get("run", ""))) + 1 :]]
    assert {name for step in after for name in re.findall(r"build/[\w.]+", step)} == files
    assert all("!cancelled()" in step for step in after)


def test_the_jobs_may_do_what_they_do_and_no_more(workflow: Any) -> None:
    assert workflow["permissions"] == {"contents": "read", "security-events": "write", "pull-requests": "write"}
    runs = [step["run"] for step in workflow["jobs"]["gates"]["steps"] if "run" in step]
    assert not any("${{" in run for run in runs)  # what others wrote never becomes a script


def test_the_gates_can_be_decided() -> None:
    gates = read_gates([], CI / "gates.yaml")
    assert len(gates) == 6
    require_checkable(gates, kind="questions", reference=True, fidelity=True, encoders=["base", "large"])
