"""Every option of every command has bounds, and what is outside of them is the user's error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hvlc.cli import cli
from hvlc.cli.options import Blocks, Dimension, Grids, Numbers, PathParameter, Real, Size, TextParameter
from tests.helpers.commands import Hvlc

LONG = "9" * 5000


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = {" ".join(path): command for path, command in commands(cli)}


def is_bounded(kind: object) -> bool:
    if isinstance(kind, click.IntRange):
        return kind.max is not None
    return isinstance(
        kind,
        PathParameter
        | TextParameter
        | Real
        | Size
        | Dimension
        | Blocks
        | Grids
        | Numbers
        | click.Choice
        | click.types.BoolParamType,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_bounds(name: str) -> None:
    loose = [parameter.name for parameter in COMMANDS[name].params if not is_bounded(parameter.type)]
    assert loose == []


@pytest.mark.parametrize("kind", [click.INT, click.IntRange(1), click.FLOAT, click.FloatRange(0, 1), click.STRING])
def test_types_without_bounds_are_told(kind: object) -> None:
    assert not is_bounded(kind)


def values(kind: object) -> list[str]:
    """What an option of a type refuses."""
    if isinstance(kind, TextParameter):
        return ["caf\udce9"]
    if isinstance(kind, PathParameter):
        return ["caf\udce9", "x" * 5000, "x/" * 3000, "y" * 256]
    if isinstance(kind, click.IntRange):
        return [LONG, str(2**63), "-" + LONG, "1.5", "nan"]
    if isinstance(kind, Real):
        return ["nan", "inf", "-inf", "1e999", "0", "-1", LONG]
    if isinstance(kind, Size):
        return ["0", LONG + "GB", "1e9GB", "-1GB", "nan", "99999999999GB"]
    if isinstance(kind, Dimension):
        return ["a=0", "a=" + LONG, "a=2147483648", "=1", "a", "a=²"]
    if isinstance(kind, Grids):
        return ["", "448", "448x", "0x28", "28x16385", "28x28,", f"28x{LONG}", "-28x28"]
    if isinstance(kind, Numbers):
        return ["", "0", "0,1", "1.5", "a", "0.5,", "nan", LONG, "0.5," * 200 + "1"]
    if isinstance(kind, click.Choice):
        return ["none of them", LONG]
    if isinstance(kind, Blocks):
        return ["int4b8", "int4b" + LONG, "int4b99999999", "int5b32"]
    return []


REFUSED = [
    (name, parameter, value)
    for name, command in COMMANDS.items()
    for parameter in command.params
    for value in values(parameter.type)
    if not isinstance(parameter, click.Argument) or parameter is command.params[0]
]


@pytest.mark.parametrize(("name", "parameter", "value"), REFUSED)
def test_what_is_out_of_bounds_is_refused(hvlc: Hvlc, name: str, parameter: click.Parameter, value: str) -> None:
    given = [value] if isinstance(parameter, click.Argument) else [f"{parameter.opts[0]}={value}"]
    ended = hvlc(*name.split(), *given)
    assert ended.code == 2, ended.err
    assert "error [usage]" in ended.err
    assert len(ended.err) < 15_000
    ended.err.encode("utf-8")


def test_nothing_runs_in_a_deleted_directory(tmp_path: Path) -> None:
    script = "import os, sys; os.rmdir(os.getcwd()); from hvlc.cli import main; main(sys.argv[1:])"
    gone = tmp_path / "gone"
    gone.mkdir()
    for arguments in (("inspect", "package"), ("run", "package", "--prompt", "?"), ("demo",), ("plan", "/nowhere")):
        gone.mkdir(exist_ok=True)
        ended = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=gone,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert "the working directory was deleted" in ended.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_error_of_a_path_prints_in_every_encoding(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for option in ([], ["--json"]):
        ended = subprocess.run(
            [sys.executable, "-m", "hvlc", "inspect", b"/caf\xe9/\xe6\xbc\xa2", *option],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert b"is not UTF-8" in ended.stdout + ended.stderr
