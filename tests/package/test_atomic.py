"""Output appears whole or not at all, whatever goes wrong."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.manifest.manifest import MANIFEST
from hvlc.package.atomic import atomic_directory, check_output

DEAD = 2**22 + 1  # above the largest process id


def package(path: Path, content: str = "old") -> Path:
    path.mkdir()
    (path / MANIFEST).write_text(content)
    return path


def tree(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_what_was_written_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with atomic_directory(output, force=False) as partial:
        (partial / MANIFEST).write_text("new")
        assert not output.exists()
        assert partial.parent == tmp_path
    assert tree(tmp_path) == {f"out/{MANIFEST}": "new"}
    assert output.stat().st_mode & 0o777 == 0o755


FAILURES = [
    (RuntimeError("no"), RuntimeError, ""),
    (KeyboardInterrupt(), KeyboardInterrupt, ""),
    (SystemExit(1), SystemExit, ""),
    (UserError("some.code", "cause", "fix"), UserError, "some.code"),
    (OSError(errno.ENOSPC, "No space left on device"), UserError, "output.disk_full"),
    (OSError(errno.EDQUOT, "Quota exceeded"), UserError, "output.disk_full"),
    (OSError(errno.EIO, "Input/output error"), UserError, "output.write"),
]


def fail_halfway(output: Path, failure: BaseException, *, force: bool) -> None:
    with atomic_directory(output, force=force) as partial:
        (partial / "half").write_text("half")
        raise failure


@pytest.mark.parametrize(("failure", "kind", "code"), FAILURES, ids=lambda v: str(v) if isinstance(v, str) else "")
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, failure: BaseException, kind: type[BaseException], code: str, existing: bool
) -> None:
    if existing:
        package(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(kind) as error:
        fail_halfway(tmp_path / "out", failure, force=existing)
    assert getattr(error.value, "code", "") in (code, 1)
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if existing else [])


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("moment", ["moving aside", "moving in"])
def test_a_failed_rename_puts_the_old_package_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, failure: BaseException
) -> None:
    output = package(tmp_path / "out")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if (moment == "moving aside" and self == output) or (moment == "moving in" and "partial" in self.name):
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((UserError, KeyboardInterrupt)), atomic_directory(output, force=True) as partial:
        (partial / MANIFEST).write_text("new")
    assert tree(tmp_path) == {f"out/{MANIFEST}": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_replaces_a_package(tmp_path: Path) -> None:
    package(tmp_path / "out")
    with atomic_directory(tmp_path / "out", force=True) as partial:
        (partial / MANIFEST).write_text("new")
    assert tree(tmp_path) == {f"out/{MANIFEST}": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    package(tmp_path / "out")
    with pytest.raises(UserError) as error:
        check_output(tmp_path / "out", force=False)
    assert error.value.code == "output.exists"
    assert "--force" in error.value.fix


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_force_never_replaces_what_is_no_package(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    if kind == "directory":
        output.mkdir()
        (output / "thesis.txt").write_text("years of work")
    else:
        output.write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(UserError) as error:
        check_output(output, force=True)
    assert error.value.code == "output.foreign"
    assert tree(tmp_path) == before


def test_an_empty_directory_may_be_filled_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out", force=True) as partial:
        (partial / MANIFEST).write_text("new")
    assert tree(tmp_path) == {f"out/{MANIFEST}": "new"}


def test_a_missing_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        check_output(tmp_path / "nowhere" / "out", force=False)
    assert error.value.code == "output.parent"


def test_leftovers_of_a_killed_run_are_swept_and_those_of_a_living_one_kept(tmp_path: Path) -> None:
    for name in (".out.partial-dead", ".out.partial-alive", ".other.partial-dead", ".out*.partial-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    script = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(); input()"
    command = [sys.executable, "-c", script, tmp_path / ".out.partial-alive"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        living.stdout.readline()
        with atomic_directory(tmp_path / "out", force=False) as partial:
            (partial / MANIFEST).write_text("new")
        left = {p.name for p in tmp_path.iterdir()}
        living.kill()
    assert left == {"out", ".out.partial-alive", ".other.partial-dead", ".out*.partial-dead"}
    check_output(tmp_path / "out", force=True)
    assert ".out.partial-alive" not in {p.name for p in tmp_path.iterdir()}


def test_two_builds_of_one_output_do_not_sweep_each_other(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out", force=False) as first:
        (first / MANIFEST).write_text("first")
        check_output(tmp_path / "out", force=False)
        assert first.is_dir()


def test_a_package_that_a_killed_run_had_moved_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".out.previous-dead"
    aside.mkdir()
    package(aside / "package")
    with pytest.raises(UserError, match=r"output\.exists"):
        check_output(tmp_path / "out", force=False)
    assert tree(tmp_path) == {f"out/{MANIFEST}": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("output", [Path("out"), Path("./out")])
def test_a_relative_output_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_directory(output, force=False) as partial:
        (partial / MANIFEST).write_text("new")
    assert tree(tmp_path) == {f"out/{MANIFEST}": "new"}
