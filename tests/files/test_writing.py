"""What the system refuses names the place and the way out."""

import errno
import os
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.files.writing import writing


@pytest.mark.parametrize(
    ("number", "code", "fix"),
    [
        (errno.ENOSPC, "output.disk_full", "free space"),
        (errno.EDQUOT, "output.disk_full", "free space"),
        (errno.EROFS, "state.write", "read-only"),
        (errno.EACCES, "state.write", "permissions"),
        (errno.ENOENT, "state.write", "make its directory"),
        (errno.ENAMETOOLONG, "state.write", "shorter name"),
        (errno.EIO, "state.write", "check permissions and path"),
    ],
)
def test_an_errno_becomes_a_way_out(number: int, code: str, fix: str) -> None:
    with pytest.raises(UserError, match=fix) as caught, writing(Path("there"), "state.write", "the state"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code
    assert "the state in there" in caught.value.cause


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="x"), writing(Path("there"), "state.write"):
        raise ValueError("x")
