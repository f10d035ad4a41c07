"""Scratch space: directories and files that are gone after a run, however the run ends.

A run locks what it makes. The next run that makes scratch space in the same place removes what is named like it and
nobody holds, which is what a killed run left (`hvlc.files.locks`). A name ends in 16 random hex digits, so nothing that
a person named is taken for it; links are not followed, and what other users own stays.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from hvlc.errors import UserError
from hvlc.files.locks import abandoned, is_at, lock
from hvlc.files.reading import is_directory, shown
from hvlc.files.writing import concerns, unwritable

TOKEN = r"[0-9a-f]{16}"
PARTIAL = ".partial"  # ends the name of what is not whole yet

_PREFIX = "hvlc-"
_SEARCHED = ("/tmp", "/var/tmp")  # after TMPDIR, TEMP and TMP


@contextlib.contextmanager
def temporary_directory(use: str) -> Iterator[Path]:
    """A directory of its own in the system's temporary directory, which only this user can enter.

    What killed runs left there for any use is removed first.

    Args:
        use: what it is for, in its name.

    Raises:
        UserError: there is no place for it.
    """
    place = temporary_place()
    sweep(place, rf"{_PREFIX}[a-z]+-{TOKEN}")
    with _scratch(place, f"{_PREFIX}{use}-") as path:
        yield path


@contextlib.contextmanager
def scratch_directory(place: Path, prefix: str) -> Iterator[Path]:
    """A directory of its own in `place`; what killed runs left there under this prefix is removed first.

    Raises:
        UserError: it cannot be made.
    """
    sweep(place, f"{re.escape(prefix)}{TOKEN}")
    with _scratch(place, prefix) as path:
        yield path


@contextlib.contextmanager
def own_directory(place: Path, prefix: str, keeps: Callable[[Path], bool] = lambda path: False) -> Iterator[Path]:
    """A new directory, locked while the block runs and removed after it.

    Args:
        place: directory that it is made in.
        prefix: of its name.
        keeps: asked at the end whether it holds something that must not be lost; then it stays.

    Raises:
        OSError: it cannot be made.
    """
    path, descriptor = _made(place, prefix)
    try:
        yield path
    finally:
        if is_at(path, descriptor) and not keeps(path):  # the block may have put it elsewhere
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def nameless_file(place: Path) -> BinaryIO:
    """A file without a name, which goes with the last descriptor or map of it.

    Where the file system knows no such files it has a name for a moment, which ends in `PARTIAL`.

    Raises:
        OSError: it cannot be made.
    """
    return cast(BinaryIO, tempfile.TemporaryFile(dir=place, suffix=PARTIAL))


def sweep(place: Path, pattern: str, remove: Callable[[Path], None] | None = None) -> None:
    """Remove what killed processes of this user left in a directory.

    Args:
        place: the directory; nothing is done where it cannot be read.
        pattern: regular expression of the whole names.
        remove: called with each leftover, which stays locked meanwhile; None removes it.
    """
    with contextlib.suppress(OSError, ValueError):
        for path in sorted(place.iterdir()):
            if re.fullmatch(pattern, path.name):
                with contextlib.suppress(OSError), abandoned(path):
                    (remove or discard)(path)


def discard(path: Path) -> None:
    """Remove a file or a directory, as far as that can be done."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def temporary_place() -> Path:
    """The system's temporary directory: the first that is there and can be written.

    Raises:
        UserError: there is none.
    """
    named = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    places = [Path(place) for place in (*named, *_SEARCHED) if place]
    for place in places:
        if is_directory(place) and os.access(place, os.W_OK | os.X_OK):
            return place.absolute()
    cause = f"no temporary directory can be written: {', '.join(shown(p) for p in dict.fromkeys(places))}"
    raise UserError("output.temporary", cause, "set TMPDIR to a directory with room")


def _made(place: Path, prefix: str) -> tuple[Path, int]:
    """A new directory and the descriptor that holds its lock."""
    while True:
        path = place / f"{prefix}{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                lock(descriptor, seconds=60)  # another run may be removing it, as nobody held it yet
                if is_at(path, descriptor):
                    return path, descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


@contextlib.contextmanager
def _scratch(place: Path, prefix: str) -> Iterator[Path]:
    """A new directory; what the system refuses about it and the files in it is an error of the user's."""
    made: Path | None = None
    try:
        with own_directory(place, prefix) as made:
            yield made
    except OSError as error:
        if made is None or (error.filename is not None and concerns(error, made)):
            raise unwritable(error, place, "output.temporary", "temporary files") from error
        raise
