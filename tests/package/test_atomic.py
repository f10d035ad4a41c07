"""Output appears whole or not at all, whatever goes wrong."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.manifest.manifest import MANIFEST
from hvlc.package.atomic import KeptError, atomic_directory, check_output

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


def appear(output: Path, kind: str) -> None:
    """What somebody puts at the output while the work goes on."""
    if kind == "file":
        output.write_text("years of work")
    elif kind == "broken link":
        output.symlink_to("nowhere")
    elif kind == "package":
        package(output, "another")
    else:
        output.mkdir()
        (output / "thesis.txt").write_text("years of work")


def contents(directory: Path) -> dict[str, str]:
    """Every file and link below a directory."""
    found = {
        p: f"-> {p.readlink()}" if p.is_symlink() else p.read_text() for p in directory.rglob("*") if not p.is_dir()
    }
    return {str(p.relative_to(directory)): text for p, text in sorted(found.items())}


def make(output: Path, content: str, force: bool, meanwhile: Callable[[], object]) -> None:
    """Write a package, during which something else happens."""
    with atomic_directory(output, force=force) as partial:
        (partial / MANIFEST).write_text(content)
        meanwhile()


def take_place(output: Path, kind: str) -> None:
    """Put something into the place of an older package or an empty directory."""
    shutil.rmtree(output, ignore_errors=True)
    appear(output, kind)


APPEARED = [
    *((kind, False, "nothing") for kind in ("file", "directory", "broken link", "package")),
    *((k, True, before) for k in ("file", "directory", "broken link") for before in ("nothing", "package", "empty")),
]


@pytest.mark.parametrize(("kind", "force", "before"), APPEARED)
def test_what_appears_at_the_output_is_not_lost(tmp_path: Path, kind: str, force: bool, before: str) -> None:
    output = tmp_path / "out"
    if before == "package":
        package(output)
    elif before == "empty":
        output.mkdir()
    with pytest.raises(KeptError) as error:
        make(output, "new", force, lambda: take_place(output, kind))
    assert error.value.code == ("output.foreign" if force else "output.exists")
    assert "out.new" in error.value.cause
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.new"]
    assert contents(tmp_path / "out.new") == {MANIFEST: "new"}
    if output.is_dir():
        assert contents(output) == ({MANIFEST: "another"} if kind == "package" else {"thesis.txt": "years of work"})
    elif kind == "file":
        assert output.read_text() == "years of work"
    else:
        assert output.readlink() == Path("nowhere")


def test_finished_packages_do_not_replace_each_other(tmp_path: Path) -> None:
    for number in (1, 2):
        with pytest.raises(KeptError):
            make(tmp_path / "out", str(number), False, lambda: appear(tmp_path / "out", "file"))
        (tmp_path / "out").unlink()
    assert contents(tmp_path) == {f"out.new/{MANIFEST}": "1", f"out.new2/{MANIFEST}": "2"}


def test_the_same_package_is_not_kept_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the same package") as error:
        make(tmp_path / "out", "new", False, lambda: package(tmp_path / "out", "new"))
    assert not isinstance(error.value, KeptError)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["before the look", "after the look", "after the move"])
def test_what_appears_between_the_renames_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The older package was moved aside, or is about to be, when something else takes its place."""
    output, rename = package(tmp_path / "out"), Path.rename

    def replaced(self: Path, target: Path) -> Path:
        if self == output and moment == "after the look":
            take_place(output, "directory")
        if "partial" in self.name and target == output and moment == "after the move":
            appear(output, "directory")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", replaced)
    with pytest.raises(KeptError):
        make(output, "new", True, lambda: moment == "before the look" and take_place(output, "directory"))
    expected = {"out/thesis.txt": "years of work", f"out.new/{MANIFEST}": "new"}
    if moment == "after the move":
        expected[f"out.old/{MANIFEST}"] = "old"
    assert contents(tmp_path) == expected


def test_force_keeps_what_lies_beside_the_files_of_a_package(tmp_path: Path) -> None:
    output = package(tmp_path / "out", json.dumps({"files": {"model.onnx": {}}}))
    (output / "model.onnx").touch()
    check_output(output, force=True)
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt") as error:
        check_output(output, force=True)
    assert error.value.code == "output.foreign"


@pytest.mark.parametrize("manifest", ["{", "{}", "[]", '{"files": ["thesis.txt"]}', ""])
def test_a_damaged_manifest_makes_nothing_a_package(tmp_path: Path, manifest: str) -> None:
    output = package(tmp_path / "out", manifest)
    check_output(output, force=True)
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt") as error:
        check_output(output, force=True)
    assert error.value.code == "output.foreign"


def test_a_directory_under_the_name_of_a_file_is_kept(tmp_path: Path) -> None:
    output = package(tmp_path / "out", json.dumps({"files": {"model.onnx": {}}}))
    (output / "model.onnx").mkdir()
    (output / "model.onnx" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"model\.onnx") as error:
        check_output(output, force=True)
    assert error.value.code == "output.foreign"


def test_an_older_package_whose_place_is_taken_stays_where_a_killed_run_put_it(tmp_path: Path) -> None:
    aside = tmp_path / ".out.previous-dead"
    aside.mkdir()
    package(aside / "package")
    appear(tmp_path / "out", "directory")
    with pytest.raises(UserError):
        check_output(tmp_path / "out", force=True)
    assert contents(tmp_path) == {f".out.previous-dead/package/{MANIFEST}": "old", "out/thesis.txt": "years of work"}
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError):
        check_output(tmp_path / "out", force=False)
    assert contents(tmp_path) == {f"out/{MANIFEST}": "old"}


def test_a_package_that_cannot_be_put_back_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, rename = package(tmp_path / "out"), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == output:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match=r"output\.write"), atomic_directory(output, force=True) as partial:
        (partial / MANIFEST).write_text("new")
    (kept,) = tmp_path.glob(".out.previous-*/package")
    assert contents(kept) == {MANIFEST: "old"}
    monkeypatch.undo()
    check_output(output, force=True)
    assert contents(tmp_path) == {f"out/{MANIFEST}": "old"}


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 250, os.fsdecode(b"\xff" * 250)])
def test_names_that_are_too_long_have_a_code(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="shorter name") as error, atomic_directory(tmp_path / name, force=False):
        pass
    assert error.value.code == "output.write"
    assert len(error.value.cause) < 500
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf8_works(tmp_path: Path) -> None:
    output = tmp_path / os.fsdecode(b"out\xff")
    for force in (False, True):
        with atomic_directory(output, force=force) as partial:
            (partial / MANIFEST).write_text("new")
    assert list(tmp_path.iterdir()) == [output]


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="working directory is gone"), atomic_directory(Path("out"), force=False):
        pass


def test_an_input_that_cannot_be_read_is_not_called_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_directory(tmp_path / "out", force=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "input"))
