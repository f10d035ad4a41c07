"""The same inputs give the same bytes, also after a build that was killed at any moment."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.package import streaming
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.workflows.test_lying_checkpoints import shard, weights_of


def tree(directory: Path) -> dict[str, str]:
    """Digest of every file below a directory."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def aged(checkpoint: Path, directory: Path) -> Path:
    """A copy under another path, its files as if they were written one after another in another century."""
    copied = Path(shutil.copytree(checkpoint, directory))
    for position, path in enumerate(sorted(copied.rglob("*"), reverse=True)):
        os.utime(path, (10**6 * position, 10**6 * position))
    return copied


def test_neither_threads_nor_chunks_nor_places_nor_times_change_a_byte(
    tiny_checkpoint: Path, w4a16_build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tree(w4a16_build.output)
    assert MANIFEST in expected
    for threads, chunk in ((1, 1 << 10), (2, 1 << 18), (3, 1 << 6)):
        place = tmp_path / f"{threads} threads"
        place.mkdir()
        aged(tiny_checkpoint, place / "copied to a longer path")
        with monkeypatch.context() as patched:
            patched.chdir(place)
            patched.setattr(streaming, "CHUNK", chunk)
            patched.setattr("hvlc.workflows.build.prepare._thread_counts", lambda request: [request.threads])
            relative = open_request(Path("copied to a longer path"), "cpu", "w4a16-rtn", Path("out"), threads=threads)
            result = build(relative)
        assert result.estimate.threads == threads
        assert tree(place / "out") == expected


def test_shards_give_the_data_of_a_single_file(tiny_checkpoint: Path, w4a16_build: Any, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_checkpoint, tmp_path / "sharded"))
    assert len(set(shard(copied, weights_of(copied)).values())) == 3
    output = build(open_request(copied, "cpu", "w4a16-rtn", tmp_path / "out")).output
    single, sharded = tree(w4a16_build.output), tree(output)
    assert single.keys() == sharded.keys()
    assert {name for name in single if single[name] != sharded[name]} == {MANIFEST, LOCK}
    manifests = [Manifest.load(package).model_dump() for package in (w4a16_build.output, output)]
    assert len({manifest["sources"].pop("checkpoint") for manifest in manifests}) == 2
    assert len({manifest["files"].pop(LOCK)["sha256"] for manifest in manifests}) == 2
    assert manifests[0] == manifests[1]
    locks = [Lock.load(package).model_dump() for package in (w4a16_build.output, output)]
    assert len({frozenset(lock.pop("checkpoint")) for lock in locks}) == 2
    assert locks[0] == locks[1]


# One process imports everything, then forks a child for every build: a kill costs a second instead of ten. The
# child's disk is slowed down so that every moment of the last stage can be met.
KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from hvlc import cli
from hvlc.package import streaming, writer
from hvlc.workflows.build.build import plan_build
from hvlc.workflows.build.request import BuildRequest, open_request
import hvlc.report.builds

checkpoint = sys.argv[1]
plan_build(open_request(Path(checkpoint), "cpu", "w4a16-rtn", Path("package")), anywhere=True)

def slowed(function, seconds):
    def slow(*arguments):
        time.sleep(seconds)
        return function(*arguments)
    return slow

def child():
    streaming._Output.write = slowed(streaming._Output.write, 0.002)
    writer._sync = slowed(writer._sync, 0.4)
    Path.rename = slowed(Path.rename, 0.2)
    sys.stdout = open(os.devnull, "w")
    cli.main(["build", checkpoint, "--recipe", "w4a16-rtn", "-o", str(out), *force])

def written():
    found = [f for p in out.parent.glob(".out.partial-*") for f in p.glob("*")]
    names = {f.name for f in found}
    return names, sum(f.stat().st_size for f in found if f.name.endswith(".data"))

def reached(moment):
    names, size = written()
    if moment == "started": return True
    if moment == "first byte": return size > 0
    if moment == "half": return size > 700_000
    if moment == "manifest": return "hvlc.json" in names
    if moment == "aside": return not out.exists() and any(out.parent.glob(".out.previous-*/package"))
    return False

for line in sys.stdin:
    moment, work, *force = json.loads(line)
    out = Path(work) / "out"
    pid = os.fork()
    if not pid:
        try:
            child()
        finally:
            os._exit(0)
    deadline = time.monotonic() + 30
    while True:
        try:
            hit = reached(moment)
        except FileNotFoundError:
            hit = False
        if hit or time.monotonic() > deadline or os.waitpid(pid, os.WNOHANG)[0]:
            break
        time.sleep(0.001)
    time.sleep(0.05 if moment == "started" else 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    left = sorted(p.name for p in out.parent.iterdir())
    print(json.dumps({"moment": moment, "hit": hit, "left": left, "size": written()[1]}), flush=True)
"""


class Killer:
    """Starts builds and kills them (SIGKILL) at a moment."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, moment: str, work: Path, *options: str) -> dict[str, Any]:
        """What was left in `work`; fails when the moment did not come."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([moment, str(work), *options]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that starts builds is gone; its standard error is above"
        found: dict[str, Any] = json.loads(answer)
        assert found["hit"], found
        return found


@pytest.fixture(scope="module")
def killed(tiny_checkpoint: Path) -> Iterator[Killer]:
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Killer(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_killed_build_shows_nothing_and_the_next_one_sweeps_up(
    tiny_checkpoint: Path, w4a16_build: Any, tmp_path: Path, killed: Killer
) -> None:
    (tmp_path / "work").mkdir()
    found = [killed(moment, tmp_path / "work") for moment in ("started", "first byte", "half", "manifest")]
    assert all("out" not in f["left"] for f in found)
    assert found[0]["left"] == []
    assert all(len(f["left"]) == 1 for f in found[1:])  # each build sweeps up what the one before left
    assert len({f["left"][0] for f in found[1:]}) == 3
    assert 0 < found[1]["size"] < found[2]["size"] < found[3]["size"]
    output = build(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", tmp_path / "work" / "out")).output
    assert tree(output) == tree(w4a16_build.output)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["out"]


def test_a_killed_replacement_loses_no_package(
    tiny_checkpoint: Path, tiny_float32: Path, w4a16_build: Any, tmp_path: Path, killed: Killer
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(tiny_float32, work / "out")
    old, new = tree(tiny_float32), tree(w4a16_build.output)
    assert all("out" in killed(moment, work, "--force")["left"] for moment in ("half", "manifest"))
    assert tree(work / "out") == old
    assert (
        "out" not in killed("aside", work, "--force")["left"]
    )  # between two renames: the old package is whole beside it
    (kept,) = work.glob(".out.previous-*/package")
    assert tree(kept) == old
    with pytest.raises(UserError, match=r"output\.exists"):
        build(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", work / "out"))
    assert tree(work / "out") == old  # put back by the first look
    assert "out" not in killed("aside", work, "--force")["left"]
    output = build(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", work / "out", force=True)).output
    assert tree(output) == new
    assert [p.name for p in work.iterdir()] == ["out"]
