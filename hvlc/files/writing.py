"""Writing files: what the system refuses becomes an error that names the place and the way out."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from hvlc.errors import UserError
from hvlc.files.reading import is_full, reason, shown

#: errno to the way out; what is not listed is a matter of permissions or of the path.
_WAYS_OUT = {
    errno.EAGAIN: "another run uses it: wait for it, or choose another place",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.ENOENT: "make its directory first",
    errno.ENOTDIR: "choose another place",
    errno.EISDIR: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
}
#: Characters of a file's name that a hidden file or directory beside it begins with.
HIDDEN = 50

_FREE_SPACE = "free space or choose another disk"


@contextlib.contextmanager
def writing(place: Path, code: str, what: str = "") -> Iterator[None]:
    """Everything that a block writes below `place`: an OSError becomes a UserError that names the place.

    An OSError that names a file elsewhere, such as one that the block reads, passes.

    Args:
        place: file or directory that is written.
        code: of the error; a full disk has `output.disk_full` whatever is written.
        what: what is written there, for the message ("the calibration state").

    Raises:
        UserError: the system refused.
    """
    try:
        yield
    except OSError as error:
        if not concerns(error, place):
            raise
        raise unwritable(error, place, code, what) from error


def unwritable(error: OSError, place: Path, code: str, what: str = "") -> UserError:
    """The error of a place that cannot be written."""
    named = f"{what} in {shown(place)}" if what else shown(place)
    if is_full(error):
        return UserError("output.disk_full", f"the disk of {named} is full", _FREE_SPACE)
    return UserError(code, f"cannot write {named}: {reason(error)}", _way_out(error, place))


def refused(error: OSError) -> UserError:
    """The error of a file that nobody foresaw any trouble with: what the system said of it, and a way out."""
    name = error.filename
    named = shown(os.fsdecode(name)) if isinstance(name, str | bytes) else ""
    if is_full(error):
        return UserError("output.disk_full", f"the disk of {named or 'a file'} is full", _FREE_SPACE)
    fix = _way_out(error, Path(named)) if error.errno != errno.ENOENT or named == "" else "check the path"
    return UserError("file.refused", f"{named}: {reason(error)}" if named else reason(error), fix)


def concerns(error: OSError, place: Path) -> bool:
    """Whether an error is about a place: it names no file, or one above, at, below or hidden beside the place."""
    name = error.filename
    if not isinstance(name, str | bytes):
        return True
    path, beside = Path(os.fsdecode(name)), place.parent.parts
    hidden = path.parts[: len(beside)] == beside and path.parts[len(beside) :][:1]
    return (
        path.is_relative_to(place)
        or place.is_relative_to(path)
        or bool(hidden and hidden[0].startswith((f".{place.name}.", f".{place.name[:HIDDEN]}.")))
    )


def make_directory(directory: Path, code: str, what: str = "") -> None:
    """A directory that is there afterwards, with those above it.

    Raises:
        UserError: it cannot be made, or is a file.
    """
    with writing(directory, code, what):
        directory.mkdir(parents=True, exist_ok=True)


def _way_out(error: OSError, place: Path) -> str:
    if error.errno == errno.ENOENT and not place.is_absolute() and not _has_working_directory():
        return "the working directory is gone: change to one that exists"
    return _WAYS_OUT.get(error.errno or 0, "check permissions and path")


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True
