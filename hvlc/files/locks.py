"""Locks that end with the process that holds them, however it ends.

They are advisory and lie on an open file or directory (flock), so nothing has to be removed after a kill, and what a
dead process left is told from what a living one uses, also between containers whose process ids repeat.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

#: Error codes of file systems without such locks; NFS has none on directories (EBADF).
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
_PAUSE = 0.05  # seconds between attempts


def lock(descriptor: int, *, seconds: float = 0) -> bool:
    """Take the lock of an open file; it is held until its last descriptor is closed.

    Args:
        descriptor: of a file or a directory.
        seconds: to wait for another process.

    Returns:
        Whether it is held; False where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    ends = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends:
                raise
            time.sleep(_PAUSE)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        else:
            return True


@contextlib.contextmanager
def locked_directory(directory: Path, *, seconds: float = 0) -> Iterator[None]:
    """Hold the lock of a directory that stays where it is; no lock where the file system has none.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock(descriptor, seconds=seconds)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[None]:
    """Hold what a process of this user left behind.

    Raises:
        BlockingIOError: somebody uses it, or the file system cannot tell.
        OSError: it is not this user's, neither a file nor a directory itself (links are not followed), or gone.
    """
    found = path.lstat()
    if found.st_uid != os.geteuid() or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise PermissionError(errno.EPERM, "not of this user", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not lock(descriptor) or not is_at(path, descriptor):
            raise BlockingIOError(errno.EAGAIN, "in use", str(path))
        yield
    finally:
        os.close(descriptor)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file or directory is still what its path names."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
