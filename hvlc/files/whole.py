"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from hvlc.files.locks import is_at, lock
from hvlc.files.reading import state_of
from hvlc.files.scratch import TOKEN, sweep
from hvlc.files.writing import HIDDEN, writing


def write_files(contents: Mapping[Path, Iterable[bytes]], code: str) -> None:
    """Write files whole or not at all; none appears before the last of them is written.

    Args:
        contents: the parts of each file.
        code: of the error.

    Raises:
        UserError: one cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for path, parts in contents.items():
            stack.enter_context(replacing(path, code)).writelines(parts)


@contextlib.contextmanager
def replacing(path: Path, code: str, what: str = "") -> Iterator[BinaryIO]:
    """A file that is written beside its path and takes its place when the block ends well.

    What killed runs left for the same path is removed. A device or a FIFO is written to, never replaced.

    Args:
        path: of the file.
        code: of the error.
        what: what is written, for the message.

    Raises:
        UserError: it cannot be written.
    """
    found = state_of(path)
    if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        with writing(path, code, what), _open_device(path) as device:
            yield device
        return
    with writing(path, code, what), _temporary_sibling(path) as (temporary, file):
        yield file
        file.flush()
        temporary.replace(path)


@contextlib.contextmanager
def _temporary_sibling(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside a path, locked while the block runs and removed after it."""
    prefix = f".{path.name[:HIDDEN]}."  # with the token no longer than a name may be
    sweep(path.parent, f"{re.escape(prefix)}{TOKEN}")
    temporary = path.with_name(f"{prefix}{secrets.token_hex(8)}")
    with temporary.open("xb") as file:
        try:
            lock(file.fileno(), seconds=60)
            if not is_at(temporary, file.fileno()):  # swept before it was locked
                raise OSError(errno.EAGAIN, "another run removed it", str(temporary))
            yield temporary, file
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()  # also after Ctrl-C


def _open_device(path: Path) -> BinaryIO:
    # O_NONBLOCK: a FIFO that nobody reads is an error, not a wait.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")
