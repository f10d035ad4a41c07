"""Output directories that appear whole or not at all, and replace an older package without losing it.

A temporary sibling is locked by the process that fills it. The system releases the lock when the process ends,
however it ends, so what a killed run left is told from what a living one is filling, also between containers whose
process ids repeat.
"""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvlc.errors import UserError
from hvlc.manifest.manifest import MANIFEST

_PARTIAL, _PREVIOUS = "partial", "previous"


@contextlib.contextmanager
def atomic_directory(output: Path, *, force: bool) -> Iterator[Path]:
    """A temporary sibling that becomes `output` when the block ends well, and vanishes when it does not.

    Raises:
        UserError: `output` exists and `force` is off, its parent is missing, or the disk is full.
    """
    check_output(output, force=force)
    try:
        with _sibling(output, _PARTIAL) as partial:
            yield partial
            partial.chmod(0o755)
            _replace(partial, output)
    except OSError as error:
        raise _as_user_error(error, output) from error


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output that would overwrite something, before any work.

    What a killed run left for the same output is cleaned up; a package that it had moved aside is put back.

    Raises:
        UserError: the parent is missing, or something is there that may not be replaced.
    """
    _clean_up(output)
    if not output.parent.is_dir():
        raise UserError("output.parent", f"{output.parent} is no directory", "create it first")
    if not output.exists():
        return
    if not force:
        raise UserError("output.exists", f"{output} exists", "choose another output or pass --force")
    empty = output.is_dir() and not any(output.iterdir())
    if not empty and not (output / MANIFEST).is_file():
        fix = "--force replaces packages only; choose another output"
        raise UserError("output.foreign", f"{output} is no hvlc package", fix)


@contextlib.contextmanager
def _sibling(output: Path, kind: str) -> Iterator[Path]:
    """A new hidden directory beside `output`, locked while the block runs and removed after."""
    with _locked(output.parent, wait=True):
        path = Path(tempfile.mkdtemp(prefix=f".{output.name}.{kind}-", dir=output.parent))
        lock = contextlib.ExitStack()
        lock.enter_context(_locked(path, wait=False))
    try:
        yield path
    finally:
        if output.exists() or not (path / "package").exists():  # a package that could not be put back stays
            shutil.rmtree(path, ignore_errors=True)
        lock.close()


def _replace(partial: Path, output: Path) -> None:
    """Rename into place; an older package is moved aside first and deleted after."""
    if not output.exists():
        partial.rename(output)
        return
    with _sibling(output, _PREVIOUS) as aside:
        kept = aside / "package"
        try:
            output.rename(kept)
            partial.rename(output)
        except BaseException:  # Ctrl-C too
            if kept.exists():
                kept.rename(output)
            raise


def _clean_up(output: Path) -> None:
    """Remove the leftovers of processes that are gone; put a package back that one had moved aside."""
    if not output.parent.is_dir():
        return
    with contextlib.suppress(PermissionError), _locked(output.parent, wait=True):
        for kind in (_PREVIOUS, _PARTIAL):
            for leftover in sorted(output.parent.glob(f".{glob.escape(output.name)}.{kind}-*")):
                with contextlib.suppress(BlockingIOError), _locked(leftover, wait=False):
                    if kind == _PREVIOUS and not output.exists() and (leftover / "package").is_dir():
                        (leftover / "package").rename(output)
                    shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool) -> Iterator[None]:
    """Hold the advisory lock of a directory.

    Raises:
        BlockingIOError: another process holds it, and `wait` is off.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _as_user_error(error: OSError, output: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("output.disk_full", f"the disk of {output} is full", "free space or choose another disk")
    return UserError("output.write", f"cannot write {output}: {error.strerror or error}", "check permissions and path")
