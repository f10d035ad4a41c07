"""What cannot be printed is a coded error or an escaped character, never a traceback."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvlc.cli import streams
from hvlc.cli.streams import say, say_json, standard_streams
from hvlc.errors import UserError
from tests.helpers.commands import Hvlc

ROOT = Path(__file__).parents[2]


def shell(command: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the shell; `hvlc` is the command line of this tree."""
    script = f'hvlc() {{ "{sys.executable}" -m hvlc "$@"; }}\n{command}'
    return subprocess.run(
        ["sh", "-c", script, "sh", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "unbuffered"), [("recipes list", ""), ("recipes list --json", ""), ("--help", "1"), ("--version", "")]
)
def test_a_full_standard_output_is_the_users_error(command: str, unbuffered: str) -> None:
    ended = shell(f"hvlc {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == 2
    if "--json" in command:
        assert json.loads(ended.stderr)["error"]["code"] == "output.stdout"
    else:
        assert ended.stderr.startswith("error [output.stdout] cannot write standard output: No space left on device")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_closed_standard_output_is_found_before_the_work(tmp_path: Path, option: str) -> None:
    ended = shell(f'hvlc build --recipe float32 -o "$1" {option} >&-', tmp_path / "out")
    assert ended.returncode == 2
    assert "output.stdout" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_standard_error_that_cannot_be_written_is_nobodys_error() -> None:
    for redirection in ("2> /dev/full", "2>&-"):
        ended = shell(f"hvlc verify nowhere {redirection}")
        assert (ended.returncode, ended.stdout) == (2, "")
    ended = shell("hvlc verify nowhere --json > /dev/full 2> /dev/full")
    assert ended.returncode == 2
    assert shell("hvlc verify nowhere > /dev/full 2>&- <&-").returncode == 2


@pytest.mark.parametrize("command", ["recipes list", "recipes show w4a16 --json", "--help"])
def test_a_reader_that_has_gone_is_not_an_error(command: str) -> None:
    ended = shell(f"{{ sleep 0.3; hvlc {command}; echo $? >&2; }} | true")
    assert ended.stderr.strip() == "141"


@pytest.mark.parametrize(
    ("encoding", "option"), [("ascii", ""), ("ascii", "--json"), ("latin-1", "--json"), ("utf-8", "")]
)
def test_characters_that_an_encoding_lacks_are_escaped(
    tiny_w4a16: Path, encoding: str, option: str, tmp_path: Path
) -> None:
    named = tmp_path / "päck–\N{GRINNING FACE}"
    named.symlink_to(tiny_w4a16)
    for command in (f'hvlc inspect "$1" {option}', f'hvlc verify "$1"/none {option}'):
        ended = subprocess.run(
            ["sh", "-c", command.replace("hvlc", f'"{sys.executable}" -m hvlc', 1), "sh", os.fsencode(named)],
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == (2 if "none" in command else 0), ended.stderr
        assert b"Traceback" not in ended.stderr
        text = ended.stdout.decode(encoding)
        if option:
            assert json.loads(text)


def test_json_holds_any_path(capsys: pytest.CaptureFixture[str]) -> None:
    path = os.fsdecode(b"a\xff")
    say_json({"path": path, "cost": "–"})
    assert json.loads(capsys.readouterr().out) == {"path": path, "cost": "–"}


def test_a_stream_that_refuses_does_so_once() -> None:
    class Refusing(io.RawIOBase):
        calls = 0

        def write(self, data: object) -> int:
            Refusing.calls += 1
            raise OSError(errno.EIO, "Input/output error")

    guarded = streams._Guarded(Refusing(), strict=True)
    with pytest.raises(UserError, match="Input/output error"):
        guarded.write(b"x")
    assert guarded.write(b"xy") == 2
    assert streams._Guarded(Refusing(), strict=False).write(b"xyz") == 3
    assert Refusing.calls == 2


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    script = "import sys; from hvlc.cli.streams import *\nwith standard_streams():\n say('x' * 300_000)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT) as process:
        os.close(writer)
        content = b""
        while part := os.read(reader, 1 << 16):
            content += part
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(reader)
    assert process.returncode == 0
    assert len(content) == 300_001


def test_streams_that_a_caller_put_there_stay(capsys: pytest.CaptureFixture[str]) -> None:
    mine = sys.stdout
    with standard_streams():
        assert sys.stdout is mine
        say("said")
    assert capsys.readouterr().out == "said\n"


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/file"), "output.disk_full", "/disk/file"),
        (PermissionError(errno.EACCES, "Permission denied", "/secret"), "file.refused", "/secret: Permission denied"),
        (OSError(errno.EMFILE, "Too many open files", b"/a\xff"), "file.refused", "/a\\udcff: Too many"),
        (OSError("a library's own words"), "file.refused", "a library's own words"),
        (MemoryError(), "memory.exhausted", "not enough memory"),
    ],
)
@pytest.mark.parametrize("option", ["--json", ""])
def test_what_the_system_refuses_is_never_a_bug(
    hvlc: Hvlc, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, cause: str, option: str
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr("hvlc.recipes.loading.shipped_recipes", failing)
    ended = hvlc("recipes", "list", *([option] if option else []))
    assert ended.code == 2
    if option:
        assert ended.json["error"]["code"] == code
        assert cause in ended.json["error"]["cause"]
    else:
        assert ended.err.startswith(f"error [{code}] ")
        assert cause in ended.err
    with pytest.raises(type(error)):
        hvlc("--debug", "recipes", "list")


def test_control_characters_are_shown_and_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[31m\x07\x9b\tb\r\n", end="")
    say("good\rbad\x1b]0;title\x07", error=True)
    out, err = capsys.readouterr()
    assert out == "a\\x1b[31m\\x07\\x9b\tb\r\n"
    assert err == "good\\x0dbad\\x1b]0;title\\x07\n"
