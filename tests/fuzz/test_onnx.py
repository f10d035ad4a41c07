"""`hvlc lint` of ONNX files that somebody could have made, held against onnxruntime.

Seeds are fixed; `-m slow` runs 600 of each kind and 100 of each with --fix and for a phone.
"""

import contextlib
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

from tests.fuzz.onnx_models import KINDS, sound
from tests.fuzz.onnx_oracle import refusals
from tests.fuzz.processes import recorded_processes
from tests.helpers.commands import Hvlc

_SECONDS = 20
_MEMORY = 2_000_000  # kB resident
_GOOD = frozenset({0, 2, 3})
#: Share of files on which hvlc and onnxruntime have to agree. What is left: functions of ONNX whose inside has no
#: kernel, and constants that a kernel refuses when it is folded.
_AGREEING = 0.99


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """A block that ends in time and starts no process."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not within {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_SECONDS)
    try:
        with recorded_processes() as started:
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert started == []


def made(kind: str, seeds: range, directory: Path) -> list[Path]:
    """A file for each seed, in a directory of its own."""
    paths = []
    for seed in seeds:
        place = directory / f"{kind}-{seed}"
        place.mkdir()
        paths.append(KINDS[kind](seed, place))
    return paths


def linted(hvlc: Hvlc, path: Path, *options: object) -> int:
    """Exit code, within the bounds."""
    with bounded():
        found = hvlc("lint", path, *options)
    assert found.code in _GOOD, (path.parent.name, found.err)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < _MEMORY
    return found.code


def agreement(hvlc: Hvlc, kind: str, seeds: range, directory: Path) -> tuple[int, list[str]]:
    """How many files are taken, and the files that one takes and the other does not."""
    paths = made(kind, seeds, directory)
    codes = [linted(hvlc, path, "--target", "cpu") for path in paths]
    said = refusals(paths)
    apart = [
        f"{path.parent.name}: {code}, onnxruntime: {words or 'loads it'}"
        for path, code, words in zip(paths, codes, said, strict=True)
        if (code == 0) is bool(words)
    ]
    return codes.count(0), apart


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_lint_ends_well_and_agrees_with_onnxruntime(hvlc: Hvlc, kind: str, tmp_path: Path) -> None:
    taken, apart = agreement(hvlc, kind, range(40), tmp_path)
    assert apart == []
    assert taken > 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_fixes_for_a_phone_end_well_and_write_nothing_else(hvlc: Hvlc, kind: str, tmp_path: Path) -> None:
    for path in made(kind, range(1000, 1010), tmp_path):
        before = sorted(path.parent.rglob("*"))
        code = linted(hvlc, path, "--target", "qnn-sm8750", "--fix", "-o", path.parent / "fixed")
        left = [place for place in path.parent.rglob("*") if "fixed" not in place.parts]
        assert sorted(left) == before
        assert (path.parent / "fixed").exists() is (code != 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_lint_ends_well_on_many(hvlc: Hvlc, kind: str, tmp_path: Path) -> None:
    seeds = range(2000, 2600)
    taken, apart = agreement(hvlc, kind, seeds, tmp_path)
    assert len(apart) <= (1 - _AGREEING) * len(seeds), "\n".join(apart)
    assert taken > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_fixes_end_well_on_many(hvlc: Hvlc, kind: str, tmp_path: Path) -> None:
    for path in made(kind, range(3000, 3100), tmp_path):
        linted(hvlc, path, "--target", "qnn-sm8750", "--fix", "-o", path.parent / "fixed")


# The check of the check.


def test_the_oracle_tells_what_loads_from_what_does_not(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    model = sound(random.Random(0))
    good.write_bytes(model.SerializeToString())
    model.graph.node[0].op_type = "NoSuch"
    bad.write_bytes(model.SerializeToString())
    assert [bool(said) for said in refusals([good, bad, good])] == [False, True, False]


def test_the_sound_model_is_sound() -> None:
    model = sound(random.Random(0))
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_bounds_stop_what_hangs_and_see_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import time

    monkeypatch.setattr("tests.fuzz.test_onnx._SECONDS", 1)
    with pytest.raises(TimeoutError), bounded():
        time.sleep(5)
    with pytest.raises(AssertionError), bounded():
        subprocess.run(["true"], check=True)
