"""Opening files that others wrote: regular files alone, and none larger than its kind may be.

A FIFO waits for ever, a device reads without end, a sparse file claims terabytes: what a checkpoint, a package or a
command line names is looked at before it is read. Nothing here follows a rule of a format; see `hvlc.inputs`.
"""

import codecs
import errno
import mmap
import os
import stat
from pathlib import Path
from typing import BinaryIO

from hvlc.errors import UserError

#: Largest size in bytes of a file that is read whole, by what it is.
DOCUMENT = 16_000_000  # JSON that a person or a tool wrote: configurations, manifests, results
EVALUATION = 200_000_000  # records of as many questions as anybody asks
SOURCE = 512_000  # YAML, TOML: parsed by Python at some 100 kB/s
TEMPLATE = 1_000_000
TOKENIZER = 200_000_000  # the largest public ones have 35 MB
TEXT = 1_000_000_000  # prompts, calibration texts
GRAPH = 2_147_483_647  # protobuf's own bound
IMAGE = 500_000_000
ANY = None  # weights: mapped, never read whole

_FIX = "check the path"
#: Byte order marks, and how what follows is read; that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def state_of(path: Path) -> os.stat_result | None:
    """Status of the file at a path, links followed; None where nothing is, or where it cannot be looked at.

    Never raises: names that are too long, have a NUL or lie in a forbidden directory lead nowhere.
    """
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def is_file(path: Path) -> bool:
    """Whether a regular file is there; see `state_of`."""
    found = state_of(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_directory(path: Path) -> bool:
    """Whether a directory is there; see `state_of`."""
    found = state_of(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def open_file(path: Path, code: str, *, limit: int | None = ANY, fix: str = _FIX) -> BinaryIO:
    """A regular file, opened for reading without buffering surprises: FIFOs and devices are refused, not waited for.

    Args:
        path: the file.
        code: of the error.
        limit: largest size in bytes.
        fix: way out of the error.

    Raises:
        UserError: missing, unreadable, not a regular file, or larger than `limit`.
    """
    try:
        # O_NONBLOCK: opening a FIFO returns at once, and has no effect on a regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise UserError(code, f"cannot read {shown(path)}: {reason(error)}", fix) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(code, f"{shown(path)} is {_kind(found.st_mode)}, not a regular file", fix)
        if limit is not None and found.st_size > limit:
            cause = f"{shown(path)} has {found.st_size} bytes, more than the {limit} that such a file may have"
            raise UserError(code, cause, fix)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, code: str, *, limit: int, fix: str = _FIX) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        UserError: see `open_file`; or the file grew beyond the limit while it was read.
    """
    with open_file(path, code, limit=limit, fix=fix) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise UserError(code, f"cannot read {shown(path)}: {reason(error)}", fix) from error
    if len(content) > limit:
        raise UserError(code, f"{shown(path)} has more than {limit} bytes", fix)
    return content


def read_text(path: Path, code: str, *, limit: int, fix: str = _FIX) -> str:
    """The content of a text file, without a byte order mark; see `decoded`.

    Raises:
        UserError: see `read_bytes`; or it is in another encoding.
    """
    content = read_bytes(path, code, limit=limit, fix=fix)
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        cause = f"{shown(path)} is not {_named(error.encoding)}: {error.reason} at byte {error.start}"
        raise UserError(code, cause, "save it as UTF-8") from error


def decoded(content: bytes) -> str:
    """Text of UTF-8 bytes, or of UTF-16 or UTF-32 where a byte order mark says so, as Windows' editors write it.

    Raises:
        UnicodeDecodeError: a byte that does not belong there.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding)


def _named(encoding: str) -> str:
    return "UTF-16" if "16" in encoding else "UTF-32" if "32" in encoding else "UTF-8"


def map_file(path: Path, code: str, *, fix: str = "fetch it again") -> mmap.mmap:
    """A regular file that is not empty, mapped for reading: its pages are loaded as they are touched.

    Raises:
        UserError: see `open_file`; or it is empty.
    """
    with open_file(path, code, fix=fix) as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise UserError(code, f"cannot read {shown(path)}: {reason(error)}", fix) from error


def reason(error: OSError | ValueError) -> str:
    """Cause of an error, without the path, which the caller names."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def shown(path: Path | str, longest: int = 300) -> str:
    """A path for a message: without bytes that are not UTF-8, and not longer than a few lines."""
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}"


def is_full(error: OSError) -> bool:
    """Whether a disk, or a quota on it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
