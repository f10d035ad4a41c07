"""Writing files: what the system refuses becomes an error that names the place and the way out."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from hvlc.errors import UserError
from hvlc.files.reading import is_full, reason, shown

#: errno to the way out; what is not listed is a matter of permissions or of the path.
_WAYS_OUT = {
    errno.EROFS: "the disk is read-only: choose another place",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.ENOENT: "make its directory first",
    errno.ENOTDIR: "choose another place",
    errno.EISDIR: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def writing(place: Path, code: str, what: str = "") -> Iterator[None]:
    """Everything that a block writes below `place`: an OSError becomes a UserError that names the place.

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
        raise unwritable(error, place, code, what) from error


def unwritable(error: OSError, place: Path, code: str, what: str = "") -> UserError:
    """The error of a place that cannot be written."""
    named = f"{what} in {shown(place)}" if what else shown(place)
    if is_full(error):
        return UserError("output.disk_full", f"the disk of {named} is full", "free space or choose another disk")
    fix = _WAYS_OUT.get(error.errno or 0, "check permissions and path")
    return UserError(code, f"cannot write {named}: {reason(error)}", fix)
