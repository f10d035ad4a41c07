"""Only regular files are read, none beyond its bound, and every refusal is the user's error."""

import os
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.files import reading
from hvlc.files.reading import is_directory, is_file, map_file, open_file, read_bytes, read_text, shown

CODE = "thing.unreadable"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (fifo, "is a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (sparse, "more than the 100"),
    ],
    ids="missing directory fifo device loop sparse".split(),
)
def test_what_is_not_a_small_regular_file_is_refused_at_once(tmp_path: Path, make, cause: str) -> None:
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(UserError, match=cause) as caught:
        read_bytes(path, CODE, limit=100)
    assert caught.value.code == CODE


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a/" * 3000])
def test_names_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert not is_file(path)
    assert not is_directory(path)
    with pytest.raises(UserError) as caught:
        open_file(path, CODE)
    assert len(caught.value.cause) < 500


def test_the_bound_itself_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, CODE, limit=100) == b"x" * 100
    path.write_bytes(b"x" * 101)
    with pytest.raises(UserError, match="101 bytes"):
        read_bytes(path, CODE, limit=100)


def test_a_file_that_grows_while_it_is_read_is_still_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 200)
    real = reading.open_file
    monkeypatch.setattr(reading, "open_file", lambda path, code, limit, fix: real(path, code, fix=fix))
    with pytest.raises(UserError, match="more than 100 bytes"):
        read_bytes(path, CODE, limit=100)


def test_text_is_utf8_without_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes("\ufeffé".encode())
    assert read_text(path, CODE, limit=100) == "é"
    path.write_bytes(b"a\xff")
    with pytest.raises(UserError, match="at byte 1"):
        read_text(path, CODE, limit=100)


def test_an_empty_file_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        map_file(path, CODE)
    path.write_bytes(b"abc")
    assert bytes(map_file(path, CODE)) == b"abc"


def test_paths_are_shown_as_text() -> None:
    assert shown(Path(os.fsdecode(b"a\xffb"))) == "a\\udcffb"
    assert len(shown("x" * 5000)) < 400
