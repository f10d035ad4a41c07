"""Scratch space goes with its run, whoever ended it, and nothing else goes with it."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.files import locks, scratch
from hvlc.files.locks import abandoned, locked_directory
from hvlc.files.scratch import own_directory, scratch_directory, sweep, temporary_directory, temporary_place
from hvlc.files.whole import replacing, write_files

ROOT = Path(__file__).parents[2]
TOKENS = "[0-9a-f]{16}"
DEAD = "0123456789abcdef"

HOLDER = """
import sys, time
from pathlib import Path
from hvlc.files.scratch import scratch_directory, temporary_directory
from hvlc.files.whole import replacing
kind, place = sys.argv[1], Path(sys.argv[2])
made = {
    "temporary": lambda: temporary_directory("test"),
    "scratch": lambda: scratch_directory(place, "values-"),
    "file": lambda: replacing(place / "found.json", "test.write"),
}[kind]()
with made as held:
    (held / "big").write_bytes(b"x") if kind != "file" else held.write(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "place").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "place"))
    return tmp_path / "place"


@contextmanager
def holder(kind: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds scratch space of a kind."""
    command = [sys.executable, "-c", HOLDER, kind, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def make(kind: str, place: Path) -> None:
    """Use scratch space of a kind once."""
    if kind == "file":
        with replacing(place / "found.json", "test.write") as file:
            file.write(b"whole")
        return
    with temporary_directory("other") if kind == "temporary" else scratch_directory(place, "values-") as made:
        (made / "file").touch()
        assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["temporary", "scratch", "file"])
def test_what_a_killed_run_left_goes_and_what_a_living_one_uses_stays(place: Path, kind: str) -> None:
    result = {"found.json"} if kind == "file" else set()
    with holder(kind, place) as process:
        (held,) = [path.name for path in place.iterdir()]
        make(kind, place)
        assert {path.name for path in place.iterdir()} == {held, *result}
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (place / held).exists()
        make(kind, place)
        assert {path.name for path in place.iterdir()} == result


def test_what_people_named_stays(place: Path) -> None:
    mine = ["hvlc-build", "hvlc-build-old", "hvlc-build-0123", f"hvlc-{DEAD}", f"my-hvlc-build-{DEAD}"]
    for name in (*mine, f"hvlc-build-{DEAD}"):
        (place / name).mkdir()
        (place / name / "thesis").write_text("years")
    make("temporary", place)
    assert sorted(path.name for path in place.iterdir()) == sorted(mine)


@pytest.mark.parametrize("plant", ["link", "file link", "fifo", "another user's"])
def test_what_others_planted_is_not_followed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str
) -> None:
    target, planted = tmp_path / "target", place / f"hvlc-build-{DEAD}"
    target.mkdir()
    (target / "thesis").write_text("years")
    if plant == "fifo":
        os.mkfifo(planted)
    elif plant == "another user's":
        planted.mkdir()
        monkeypatch.setattr(locks.os, "geteuid", lambda: os.getuid() + 1)
    else:
        planted.symlink_to(target if plant == "link" else target / "thesis")
    make("temporary", place)
    assert [path.name for path in place.iterdir()] == [planted.name]
    assert (target / "thesis").read_text() == "years"


def test_links_inside_a_leftover_are_not_followed(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years")
    (place / f"hvlc-build-{DEAD}").mkdir()
    (place / f"hvlc-build-{DEAD}" / "link").symlink_to(tmp_path / "thesis")
    make("temporary", place)
    assert list(place.iterdir()) == []
    assert (tmp_path / "thesis" / "text").read_text() == "years"


def test_one_that_is_swept_before_it_is_locked_is_made_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[int] = []

    def slow(descriptor: int, *, seconds: float = 0) -> bool:
        if not swept:
            swept.append(descriptor)
            monkeypatch.setattr(scratch, "lock", locks.lock)
            sweep(place, f"hvlc-test-{TOKENS}")
        return locks.lock(descriptor, seconds=seconds)

    monkeypatch.setattr(scratch, "lock", slow)
    with own_directory(place, "hvlc-test-") as made:
        assert swept
        assert [path.name for path in place.iterdir()] == [made.name]
    assert list(place.iterdir()) == []


def test_without_locks_nothing_is_swept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    (place / f"hvlc-build-{DEAD}").mkdir()
    make("temporary", place)
    make("file", place)
    assert {path.name for path in place.iterdir()} == {f"hvlc-build-{DEAD}", "found.json"}


def test_a_failure_leaves_nothing(place: Path) -> None:
    with pytest.raises(UserError, match="File exists"), temporary_directory("test") as made:
        [(made / "a").mkdir() for _ in range(2)]
    with pytest.raises(KeyboardInterrupt), replacing(place / "found.json", "test.write"):
        raise KeyboardInterrupt
    assert list(place.iterdir()) == []


def test_a_lock_is_waited_for_no_longer_than_said(place: Path) -> None:
    started = time.monotonic()
    with locked_directory(place), pytest.raises(BlockingIOError), locked_directory(place, seconds=0.2):
        pass
    assert 0.2 <= time.monotonic() - started < 5
    with pytest.raises(BlockingIOError), locked_directory(place), abandoned(place):
        pass


def test_the_temporary_directory_is_the_first_that_can_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "missing"))
    monkeypatch.setenv("TEMP", str(place))
    assert temporary_place() == place
    monkeypatch.setenv("TEMP", "x" * 5000)
    monkeypatch.setattr(scratch, "_SEARCHED", (str(place / "none"),))
    with pytest.raises(UserError, match="set TMPDIR") as caught, temporary_directory("test"):
        pass
    assert caught.value.code == "output.temporary"


def test_nothing_replaces_a_device_or_a_fifo(place: Path) -> None:
    os.mkfifo(place / "pipe")
    with pytest.raises(UserError, match="cannot write"):
        write_files({place / "pipe": [b"x"]}, "test.write")  # nobody reads it
    reader = os.open(place / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_files({place / "pipe": [b"x"]}, "test.write")
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    (place / "null").symlink_to("/dev/null")
    write_files({place / "null": [b"x"]}, "test.write")
    assert (place / "null").is_symlink()
    with pytest.raises(UserError, match="is full") as caught:
        write_files({Path("/dev/full"): [b"x"]}, "test.write")
    assert caught.value.code == "output.disk_full"


def test_files_appear_together(place: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"a"
        assert list(place.glob("*.json")) == []
        raise OSError(locks.errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="is full"):
        write_files({place / "a.json": [b"a"], place / "b.json": parts()}, "test.write")
    assert list(place.iterdir()) == []
    write_files({place / ("n" * 255): [b"a"], place / "b.json": [b"b"]}, "test.write")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"n" * 255: b"a", "b.json": b"b"}


def uses_of_tempfile(root: Path) -> list[str]:
    """Modules below a directory that import tempfile."""
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if "tempfile" in names:
                found.append(str(path.relative_to(root)))
    return found


def test_nobody_else_makes_temporary_files(tmp_path: Path) -> None:
    assert uses_of_tempfile(ROOT / "hvlc") == ["files/scratch.py"]
    (tmp_path / "a.py").write_text("def f():\n    from tempfile import mkdtemp")
    (tmp_path / "b.py").write_text("import tempfile")
    assert uses_of_tempfile(tmp_path) == ["a.py", "b.py"]
