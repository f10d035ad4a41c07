"""Damage to bytes, drawn from a seed, and what must be true of any command that meets it."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_SECONDS, _BYTES = 20, 2_000_000_000
_HANGS = 150  # seconds by the clock
_TOKENS = (b"\0", b"\xff", b"{", b"[", b'"', b"9" * 30, b"-", b"1e999", b"\n", b"\xed\xa0\x80", b"null", b"%")

#: Runs commands of hvlc, one a line of standard input as JSON, in one process, and says of each how it ended.
_CHILD = """
import contextlib, io, json, resource, sys, time
from hvlc import cli
from tests.fuzz.processes import recorded_processes
# Libraries map gigabytes that they never touch; what is resident is held against 2 GB by the parent.
resource.setrlimit(resource.RLIMIT_AS, (12_000_000_000,) * 2)
for line in sys.stdin:
    arguments = json.loads(line)
    out, code, began = io.StringIO(), 0, time.process_time()
    with recorded_processes() as started, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said = out.getvalue()[-2000:]
    seconds = time.process_time() - began
    found = {"code": code, "said": said, "started": started, "resident": resident, "seconds": seconds}
    print(json.dumps(found), flush=True)
"""


def mutated(content: bytes, source: random.Random) -> bytes:
    """Bytes with one to six changes: flipped, set, cut, repeated, moved or inserted ones."""
    changed = bytearray(content)
    for _ in range(source.randint(1, 6)):
        if not changed:
            break
        at, length = source.randrange(len(changed)), source.choice((1, 2, 4, 8, 64, 512))
        early = source.random() < 0.5
        at = at % 64 if early else at
        match source.randrange(7):
            case 0:
                changed[at] ^= 1 << source.randrange(8)
            case 1:
                changed[at : at + length] = source.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length] * source.randint(1, 4)
            case 4:
                changed[at:at] = source.choice(_TOKENS)
            case 5:
                other = source.randrange(len(changed))
                changed[at : at + length] = changed[other : other + length]
            case _:
                del changed[max(1, at) :]
    return bytes(changed)


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: exit code.
        said: the end of what it printed.
        started: processes that it started.
        resident: most bytes of memory that it or a command before it took.
        seconds: of CPU time that it took: on a busy machine the clock says little.
    """

    code: int
    said: str
    started: list[str]
    resident: int
    seconds: float


class Commands:
    """A child process that runs one command after another in a scratch directory, within bounds.

    Args:
        process: the child.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, *arguments: str | Path) -> Ended:
        """Run a command.

        Raises:
            AssertionError: it took too long, or a signal ended the child.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        began = time.monotonic()
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        with _alarm(self._process):
            line = self._process.stdout.readline()
        assert line, f"{arguments} ended the process with {self._process.wait()} after {time.monotonic() - began:.1f} s"
        return Ended(**json.loads(line))


@contextlib.contextmanager
def commands(scratch: Path) -> Iterator[Commands]:
    """A child that runs commands in `scratch`."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=scratch,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
    )
    try:
        yield Commands(process)
    finally:
        process.kill()
        process.wait()


def check(ended: Ended, codes: Sequence[int] = (0, 2, 3, 4)) -> None:
    """Assert the right end of a command that met bad input.

    Raises:
        AssertionError: another exit code, a bug, a process, or too long.
    """
    assert ended.code in codes, ended.said
    assert "[bug]" not in ended.said
    assert "Traceback" not in ended.said
    assert ended.code != 2 or "error [" in ended.said
    assert ended.started == []
    assert ended.seconds < _SECONDS
    assert ended.resident < _BYTES


def files(directory: Path) -> Mapping[str, int]:
    """Every file below a directory, with its time of change."""
    return {str(path): path.lstat().st_mtime_ns for path in directory.rglob("*")}


def attempt(read: Callable[[], object], errors: type[BaseException]) -> str:
    """Whether reading gave something ("read") or the error that it may raise ("refused").

    Raises:
        BaseException: any other, or it took too long.
    """
    began = time.process_time()
    try:
        read()
        result = "read"
    except errors:
        result = "refused"
    assert time.process_time() - began < _SECONDS
    return result


@contextlib.contextmanager
def _alarm(process: "subprocess.Popen[str]") -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(_HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
