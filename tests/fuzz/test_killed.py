"""kill -9 at any moment leaves nothing that the next run of the same command does not sweep up."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hvlc.zoo import nano_checkpoint
from tests.export.tiny_families import save_text

ROOT = Path(__file__).parents[2]
KILLS = 40  # of each command, in the slow form
ROUND = 8  # kills before a run that is left to end

#: Forks a run for each line of its input, and kills it after some seconds or where the n-th scratch space is made.
SERVER = """
import json, os, signal, sys, time
import matplotlib.figure, onnxruntime, torch, transformers
import hvlc.report.figures, hvlc.workflows.demo, hvlc.workflows.build.rebuild, hvlc.workflows.sensitivity.pareto
from hvlc import cli
from hvlc.files import scratch, whole

def dying(function, counted, last):
    def counting(*arguments, **options):
        made = function(*arguments, **options)
        counted.append(made)
        if len(counted) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return made
    return counting

def run(command, last):
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    counted = []
    scratch._made = dying(scratch._made, counted, last)
    whole.lock = dying(whole.lock, counted, last)
    code = 1
    try:
        cli.main(command)
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code if isinstance(code, int) else 1)

for line in sys.stdin:
    asked = json.loads(line)
    started, pid = time.monotonic(), os.fork()
    if not pid:
        os.environ.update(asked["environment"])
        run(asked["command"], asked["last"])
    ends = started + asked["seconds"]
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(ended[1])
    print(json.dumps({"code": code, "seconds": time.monotonic() - started}), flush=True)
"""


@dataclass(frozen=True)
class Place:
    """Where a command works: a temporary directory, a cache, and a folder of outputs, all of its own."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> "Place":
        for name in ("tmp", "cache", "out"):
            (root / name).mkdir(parents=True)
        return cls(root)

    def names(self) -> list[str]:
        """Everything there, but for what libraries keep in the cache."""
        found = [path.relative_to(self.root) for path in self.root.rglob("*")]
        return sorted(str(p) for p in found if p.parts[0] != "cache" or p.parts[1:2] in ((), ("hvlc",)))

    @property
    def environment(self) -> dict[str, str]:
        """What sends a command here."""
        return {"TMPDIR": str(self.root / "tmp"), "XDG_CACHE_HOME": str(self.root / "cache")}


@dataclass(frozen=True)
class Runs:
    """Starts commands in forks of one process, which has imported what they need."""

    process: "subprocess.Popen[str]"

    def __call__(self, command: list[str], place: Place, *, seconds: float = 600, last: int = 0) -> tuple[int, float]:
        """Exit code and seconds of a run that is killed after some seconds, or at the `last` scratch space."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"command": command, "environment": place.environment, "seconds": seconds, "last": last}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["seconds"]


@pytest.fixture(scope="module")
def run() -> Iterator[Runs]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, **pipes) as process:
        yield Runs(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model, a text, and a package that was calibrated."""
    directory = tmp_path_factory.mktemp("inputs")
    save_text(directory / "llama", "llama")
    (directory / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return directory


def commands(inputs: Path, place: Path, *, small: bool) -> dict[str, list[str]]:
    """The commands that keep something while they run."""
    out, model = str(place / "out"), str(inputs / "llama")
    checkpoint = model if small else str(nano_checkpoint())
    built, to = ["--threads", "1", "--force"], ["-o", f"{out}/package"]
    measured = [model, "--samples", "2", "--tokens", "16", "--threads", "1", "--force", "-o", f"{out}/found"]
    return {
        "build": ["build", checkpoint, "--recipe", "w4a16", "--samples", "4", *built, *to],
        "build-rtn": ["build", checkpoint, "--recipe", "w4a16-rtn", *built, *to],
        "eval": ["eval", model, "--task", str(inputs / "text.txt"), "--tokens", "64", "--window", "32", "-o", out],
        "sensitivity": ["sensitivity", *measured],
        "pareto": [
            *("pareto", *measured, "--points", "2", "--format", "int4b32", "--format", "int8b32"),
            *(() if small else ("--measure", "--text", str(inputs / "text.txt"), "--score-tokens", "200")),
        ],
        "verify": ["verify", f"{out}/package", "--rebuild", model, "--threads", "1"],
        "demo": ["demo", "-n", "1", "-o", f"{out}/demo"],
    }


def prepared(name: str, inputs: Path, place: Place, run: Runs, *, small: bool) -> list[str]:
    """A command in its place, with the package that it verifies."""
    if name == "verify":
        assert run(commands(inputs, place.root, small=True)["build"], place)[0] == 0
    return commands(inputs, place.root, small=small)[name]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pareto", "verify")]


@pytest.mark.parametrize("name", ["build", "eval", "sensitivity", *SLOW])
def test_whatever_a_killed_run_had_made_is_swept(inputs: Path, tmp_path: Path, run: Runs, name: str) -> None:
    """Killed as soon as each of the first scratch spaces is there."""
    undisturbed, place = Place.made(tmp_path / "undisturbed"), Place.made(tmp_path / "place")
    assert run(prepared(name, inputs, undisturbed, run, small=True), undisturbed)[0] == 0
    command, left = prepared(name, inputs, place, run, small=True), 0
    before = place.names()
    for last in range(1, 4):
        code, _ = run(command, place, last=last)
        left += place.names() != before
        if code == 0:
            break  # it makes no more
        assert code == -9
    assert left
    assert run(command, place)[0] == 0
    assert place.names() == undisturbed.names()
    assert list((place.root / "tmp").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build", "build-rtn", "eval", "sensitivity", "pareto", "verify", "demo"])
def test_a_kill_at_a_random_moment_leaves_nothing(inputs: Path, tmp_path: Path, run: Runs, name: str) -> None:
    """40 kills of each command; every 8th is followed by a run that ends, and looks as if none had been killed."""
    undisturbed, place, random_ = Place.made(tmp_path / "undisturbed"), Place.made(tmp_path / "place"), random.Random(0)
    code, whole = run(prepared(name, inputs, undisturbed, run, small=False), undisturbed)
    assert code == 0
    asked, killed = prepared(name, inputs, place, run, small=False), 0
    while killed < KILLS:
        for _ in range(ROUND):
            code, _ = run(asked, place, seconds=random_.uniform(0, whole))
            assert code in (0, -9)
            killed += code == -9
        code, whole = run(asked, place)
        assert code == 0
        assert place.names() == undisturbed.names()
