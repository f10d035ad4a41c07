"""A calibration that was stopped goes on where it was, with the same inputs alone."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hvlc.calibration import segments
from hvlc.calibration.state import State, check_apart, check_foreign, pending
from hvlc.errors import UserError
from hvlc.manifest.manifest import Manifest
from hvlc.package.atomic import KeptError
from hvlc.solvers.rtn import round_to_nearest
from hvlc.weights.formats import Levels, Stream, WeightFormat
from hvlc.workflows.build import request as requesting
from hvlc.workflows.build.build import build
from hvlc.workflows.calibrate.build_calibration import fingerprint_of
from tests.export.tiny_families import save_text
from tests.helpers.calibration import StoppedError, contents, request, stopping, write_recipe
from tests.helpers.solvers import ASYMMETRIC, LPBQ, SYMMETRIC, normal

FINGERPRINT = {"checkpoint": "1", "recipe": "2"}


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path / "state", FINGERPRINT)


@pytest.mark.parametrize("format", [SYMMETRIC[0], SYMMETRIC[-1], ASYMMETRIC[0], ASYMMETRIC[-1], LPBQ[0]], ids=str)
@pytest.mark.parametrize("columns", [16, 40, 48])
def test_a_matrix_comes_back_as_it_was_put(state: State, format: WeightFormat, columns: int) -> None:
    levels = round_to_nearest(normal(5, columns), format)
    known = pending(state.directory, "model.a", (5, columns), format)
    assert not state.has(known)
    state.put("model.a", levels)
    assert state.has(known)
    for stream in known.streams:
        part = known.stream(stream)
        expected = levels.stored(stream)
        assert (part.shape, part.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(part.read(), expected)
        np.testing.assert_array_equal(part.rows(1, 3), expected[1:3])
    np.testing.assert_array_equal(known.dequantize(), levels.dequantize(columns))


@pytest.mark.parametrize("key", ["a/b", "../escape", "decoder./layers.0/mlp.down", "a_b", "%2F"])
def test_names_are_files_of_the_directory_and_do_not_clash(state: State, key: str) -> None:
    levels = round_to_nearest(normal(2, 16), SYMMETRIC[0])
    state.put(key, levels)
    assert state.has(pending(state.directory, key, (2, 16), SYMMETRIC[0]))
    assert len(list(state.directory.iterdir())) == 2
    others = {"a/b", "a_b", "a%2Fb", "%2F", "/"} - {key}
    assert not any(state.has(pending(state.directory, other, (2, 16), SYMMETRIC[0])) for other in others)


def _other(path: Path) -> None:
    tensors = load_file(path)
    save_file({**tensors, "levels": tensors["levels"][:1]}, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: path.write_text("{}"),
        lambda path: save_file({"levels": np.zeros(1, np.uint8)}, path),
        _other,
        lambda path: path.unlink(),
    ],
    ids=["cut", "empty", "zeros", "text", "one stream", "another shape", "gone"],
)
def test_a_damaged_matrix_is_none(state: State, damage: Callable[[Path], object]) -> None:
    format = SYMMETRIC[0]
    state.put("model.a", round_to_nearest(normal(2, 16), format))
    (path,) = state.directory.glob("*.safetensors")
    damage(path)
    assert not state.has(pending(state.directory, "model.a", (2, 16), format))
    state.put("model.a", round_to_nearest(normal(2, 16), format))
    assert state.has(pending(state.directory, "model.a", (2, 16), format))


def test_another_calibration_in_the_same_place_is_not_mixed_with_the_first(tmp_path: Path) -> None:
    found = []
    for seed in range(2):
        state = State.open(tmp_path / "state", {"seed": str(seed)})
        levels = round_to_nearest(normal(2, 16, seed), SYMMETRIC[0])
        state.put("model.a", levels)
        read = pending(state.directory, "model.a", (2, 16), SYMMETRIC[0]).stream(Stream.LEVELS).read()
        np.testing.assert_array_equal(read, levels.stored(Stream.LEVELS))
        found.append(read.copy())
        state.remove()
        assert not state.directory.exists()
    assert (found[0] != found[1]).any()


def test_the_same_inputs_go_on(state: State) -> None:
    state.put("a", round_to_nearest(normal(2, 16), SYMMETRIC[0]))
    assert State.open(state.directory, dict(reversed(FINGERPRINT.items()))) == state


@pytest.mark.parametrize(
    ("fingerprint", "changed"),
    [
        ({**FINGERPRINT, "recipe": "3"}, "another recipe"),
        ({"checkpoint": "1"}, "another recipe"),
        ({**FINGERPRINT, "target": "1"}, "another target"),
        ({"checkpoint": "x", "recipe": "y"}, "another checkpoint, recipe"),
    ],
)
def test_what_changed_is_named(state: State, fingerprint: dict[str, str], changed: str) -> None:
    before = contents(state.directory)
    with pytest.raises(UserError) as error:
        State.open(state.directory, fingerprint)
    assert error.value.code == "calibration.changed"
    assert error.value.cause.endswith(changed)
    assert contents(state.directory) == before


@pytest.mark.parametrize("content", ["[]", '"text"', "3", "null"])
def test_a_fingerprint_of_another_kind_is_another_calibration(state: State, content: str) -> None:
    (state.directory / "fingerprint.json").write_text(content)
    with pytest.raises(UserError) as error:
        State.open(state.directory, FINGERPRINT)
    assert error.value.code == "calibration.changed"


def test_a_damaged_fingerprint_is_an_error_with_a_code(state: State) -> None:
    (state.directory / "fingerprint.json").write_text("{")
    with pytest.raises(UserError) as error:
        State.open(state.directory, FINGERPRINT)
    assert error.value.code == "calibration.state"


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for refused in (lambda: check_foreign(tmp_path), lambda: State.open(tmp_path, FINGERPRINT)):
        with pytest.raises(UserError) as error:
            refused()
        assert error.value.code == "calibration.state"
    assert contents(tmp_path) == {"mine.txt": b"mine"}
    with pytest.raises(UserError, match="is a file"):
        check_foreign(tmp_path / "mine.txt")


def test_an_empty_directory_and_one_that_was_killed_at_once_are_taken(tmp_path: Path) -> None:
    State.open(tmp_path, FINGERPRINT)
    (tmp_path / "fingerprint.json").rename(tmp_path / "fingerprint.partial")
    assert json.loads((State.open(tmp_path, FINGERPRINT).directory / "fingerprint.json").read_text()) == FINGERPRINT


def test_a_place_that_cannot_be_written_is_an_error_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        State.open(tmp_path / "file" / "state", FINGERPRINT)
    assert error.value.code == "calibration.state"


@pytest.mark.parametrize(("state", "output"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/../b", "b")])
def test_state_and_package_are_apart(tmp_path: Path, state: str, output: str) -> None:
    with pytest.raises(UserError) as error:
        check_apart(tmp_path / state, tmp_path / output)
    assert error.value.code == "calibration.state"
    check_apart(tmp_path / "a", tmp_path / "ab")


def test_removing_keeps_what_is_not_ours(state: State) -> None:
    (state.directory / "mine.txt").write_text("mine")
    state.put("a", round_to_nearest(normal(2, 16), SYMMETRIC[0]))
    state.remove()
    assert contents(state.directory) == {"mine.txt": b"mine"}


# Whole builds.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("state") / "llama", "llama")


@pytest.fixture(scope="module")
def recipe(checkpoint: Path) -> str:
    return write_recipe(checkpoint.parent / "gptq.yaml")


@pytest.fixture(scope="module")
def package(checkpoint: Path, recipe: str) -> Path:
    """Built at once."""
    return build(request(checkpoint, recipe, checkpoint.parent / "package")).output


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all matrices that were solved."""
    keys: list[str] = []
    put = State.put

    def counting(self: State, key: str, levels: Levels) -> None:
        keys.append(key)
        put(self, key, levels)

    monkeypatch.setattr(State, "put", counting)
    return keys


@pytest.mark.parametrize("after", [0, 3, 5])
def test_a_stopped_build_goes_on(
    checkpoint: Path, recipe: str, package: Path, solved: list[str], tmp_path: Path, after: int
) -> None:
    asked = request(checkpoint, recipe, tmp_path / "package")
    with pytest.raises(StoppedError):
        build(asked, stopping("calibrate model", after))
    assert [p.name for p in tmp_path.iterdir()] == ["package.calibration"]
    before = list(solved)
    build(asked)
    assert len(solved) == len(set(solved)) == 15  # 7 in each of two layers, and the head
    assert bool(before) is (after > 0)
    assert contents(asked.output) == contents(package)
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_a_killed_build_goes_on(
    checkpoint: Path, recipe: str, package: Path, solved: list[str], tmp_path: Path
) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hvlc.workflows.build.build import build\n"
        "from tests.helpers.calibration import request\n"
        "def progress(what, done, total):\n"
        "    if what.startswith('calibrate model') and done > 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "build(request(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])), progress)\n"
    )
    output = tmp_path / "package"
    run = subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), recipe, str(output)],
        cwd=Path(__file__).parents[2],
        env={**os.environ},
        capture_output=True,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    found = sorted(p.name for p in (tmp_path / "package.calibration").iterdir())
    assert "fingerprint.json" in found
    assert all(name == "fingerprint.json" or name.endswith(".safetensors") for name in found)  # no spooled value
    build(request(checkpoint, recipe, output))
    assert len(solved) + len(found) - 1 == 15
    assert len(found) > 1
    assert contents(output) == contents(package)


def test_levels_survive_a_package_that_fails(
    checkpoint: Path, recipe: str, package: Path, solved: list[str], tmp_path: Path
) -> None:
    asked = request(checkpoint, recipe, tmp_path / "package")
    with pytest.raises(StoppedError):
        build(asked, stopping("package", 1))
    assert len(solved) == 15
    assert not asked.output.exists()
    build(asked)
    assert len(solved) == 15
    assert contents(asked.output) == contents(package)


def test_a_damaged_matrix_is_solved_again(
    checkpoint: Path, recipe: str, package: Path, solved: list[str], tmp_path: Path
) -> None:
    asked = request(checkpoint, recipe, tmp_path / "package")
    with pytest.raises(StoppedError):
        build(asked, stopping("package", 1))
    path = sorted(asked.state_directory.glob("*.safetensors"))[4]
    path.write_bytes(path.read_bytes()[:100])
    build(asked)
    assert len(solved) == 16
    assert solved[-1] == path.stem
    assert contents(asked.output) == contents(package)


def _other_weights(checkpoint: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    return {}


def _other_recipe(checkpoint: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    write_recipe(recipe, options={"damping": 0.02})
    return {}


def _other_samples(checkpoint: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    return {"samples": 3}


def _other_code(checkpoint: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr(requesting, "code_digest", lambda: "0" * 64)
    return {}


def _other_numpy(checkpoint: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    versions = {**requesting.tool_versions(), "numpy": "9.9"}
    monkeypatch.setattr(requesting, "tool_versions", lambda: versions)
    return {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_other_weights, "checkpoint"),
        (_other_recipe, "recipe"),
        (_other_samples, "calibration set"),
        (_other_code, "code of hvlc"),
        (_other_numpy, "version of numpy"),
    ],
)
def test_other_inputs_do_not_go_on(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Path, pytest.MonkeyPatch], dict[str, object]],
    named: str,
) -> None:
    copy, recipe = shutil.copytree(checkpoint, tmp_path / "checkpoint"), tmp_path / "gptq.yaml"
    write_recipe(recipe)
    with pytest.raises(StoppedError):
        build(request(copy, str(recipe), tmp_path / "package"), stopping("calibrate model", 3))
    before = contents(tmp_path / "package.calibration")
    options = change(copy, recipe, monkeypatch)
    with pytest.raises(UserError) as error:
        build(request(copy, str(recipe), tmp_path / "package", **options))
    assert error.value.code == "calibration.changed"
    assert error.value.cause.endswith(f"another {named}")
    assert contents(tmp_path / "package.calibration") == before
    assert not (tmp_path / "package").exists()


def test_the_users_own_directory(checkpoint: Path, recipe: str, package: Path, tmp_path: Path) -> None:
    asked = request(checkpoint, recipe, tmp_path / "package", state=tmp_path / "deep" / "state")
    with pytest.raises(StoppedError):
        build(asked, stopping("calibrate model", 3))
    assert (tmp_path / "deep" / "state" / "fingerprint.json").is_file()
    build(asked)
    assert contents(asked.output) == contents(package)
    assert not (tmp_path / "deep" / "state").exists()


@pytest.mark.parametrize(("state", "holds"), [("package", ""), (".", ""), ("taken", "mine.txt")])
def test_a_place_that_cannot_be_had_is_refused_before_the_work(
    checkpoint: Path, recipe: str, tmp_path: Path, state: str, holds: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    told: list[str] = []
    with pytest.raises(UserError) as error:
        build(
            request(checkpoint, recipe, tmp_path / "package", state=tmp_path / state),
            lambda what, *_: told.append(what),
        )
    assert error.value.code == "calibration.state"
    assert "calibrate" not in told
    assert [p.name for p in tmp_path.rglob("*.txt")] == ["mine.txt"]


# Several processes, and disks that refuse.


def test_a_second_build_is_told_of_the_first(
    checkpoint: Path, recipe: str, package: Path, solved: list[str], tmp_path: Path
) -> None:
    asked, codes = request(checkpoint, recipe, tmp_path / "package"), []

    def second(what: str, done: int, total: int) -> None:
        if what.startswith("calibrate model") and not codes:
            with pytest.raises(UserError) as error:
                build(asked)
            codes.append(error.value.code)

    build(asked, second)
    assert codes == ["calibration.busy"]
    assert len(solved) == 15
    assert contents(asked.output) == contents(package)
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_a_state_is_held_once(tmp_path: Path) -> None:
    with State.held(tmp_path / "state", FINGERPRINT) as state:
        state.put_arrays("a", {"a": np.zeros(3)})
        second = State.held(tmp_path / "state", FINGERPRINT)
        with pytest.raises(UserError, match="another build is running") as error, second:
            pass
    assert error.value.code == "calibration.busy"
    with State.held(tmp_path / "state", FINGERPRINT) as again:
        again.remove()
        with State.held(tmp_path / "state", FINGERPRINT) as anew:  # the lock of what was removed does not count
            assert anew.directory.is_dir()


@pytest.mark.parametrize("other", [False, True])
def test_a_state_that_outlived_its_package_goes(
    checkpoint: Path, recipe: str, package: Path, tmp_path: Path, other: bool
) -> None:
    """A build that was killed between its last two steps leaves both."""
    shutil.copytree(package, tmp_path / "package")
    asked = request(checkpoint, recipe, tmp_path / "package")
    sources = Manifest.load(package).sources
    fingerprint = fingerprint_of(sources.model_copy(update={"recipe": "0" * 64} if other else {}))
    State.open(asked.state_directory, fingerprint).put_arrays("a", {"a": np.zeros(3)})
    with pytest.raises(UserError, match=r"output\.exists"):
        build(asked)
    assert asked.state_directory.exists() is other


@pytest.mark.parametrize("call", ["write", "replace", "mkdir"])
def test_a_full_disk_is_named_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(self: Path, *args: object, **options: object) -> None:
        if call == "write":
            write(self, b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    write = Path.write_bytes
    monkeypatch.setattr(Path, {"write": "write_bytes"}.get(call, call), full)
    with pytest.raises(UserError, match="is full") as error, State.held(tmp_path / "state", FINGERPRINT):
        pass
    assert error.value.code == "output.disk_full"
    assert str(tmp_path / "state") in error.value.cause
    assert "--calibration-state" in error.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_of_values_between_layers_is_named(
    checkpoint: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Path) -> BinaryIO:
        return open("/dev/full", "r+b", buffering=0)  # noqa: PTH123, SIM115

    monkeypatch.setattr(segments, "nameless_file", full)
    monkeypatch.setattr(segments, "_ON_DISK", 1)
    with pytest.raises(UserError, match=r"values between layers in .*package\.calibration is full") as error:
        build(request(checkpoint, recipe, tmp_path / "package"))
    assert error.value.code == "output.disk_full"
    assert [p.name for p in tmp_path.iterdir()] == ["package.calibration"]


def test_a_package_that_has_to_stay_beside_its_place_needs_no_state(
    checkpoint: Path, recipe: str, package: Path, tmp_path: Path
) -> None:
    asked = request(checkpoint, recipe, tmp_path / "package")

    def thesis(what: str, done: int, total: int) -> None:
        if what == "package" and not asked.output.exists():
            asked.output.write_text("years of work")

    with pytest.raises(KeptError):
        build(asked, thesis)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["package", "package.new"]
    assert asked.output.read_text() == "years of work"
    assert contents(tmp_path / "package.new") == contents(package)
