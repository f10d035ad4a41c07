"""Output directories that appear whole or not at all, and replace an older package without losing it."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvlc.errors import UserError
from hvlc.manifest import MANIFEST

_PARTIAL, _PREVIOUS = "partial", "previous"


@contextlib.contextmanager
def atomic_directory(output: Path, *, force: bool) -> Iterator[Path]:
    """A temporary sibling that becomes `output` when the block ends well, and vanishes when it does not.

    Raises:
        UserError: `output` exists and `force` is off, its parent is missing, or the disk is full.
    """
    check_output(output, force=force)
    try:
        partial = _sibling(output, _PARTIAL)
    except OSError as error:
        raise _as_user_error(error, output) from error
    try:
        yield partial
        partial.chmod(0o755)
        _replace(partial, output)
    except OSError as error:
        raise _as_user_error(error, output) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def _sibling(output: Path, kind: str) -> Path:
    """A new hidden directory beside `output` that names its kind and this process."""
    return Path(tempfile.mkdtemp(prefix=f".{output.name}.{kind}-{os.getpid()}-", dir=output.parent))


def _replace(partial: Path, output: Path) -> None:
    """Rename into place; an older package is moved aside first and deleted after."""
    if not output.exists():
        partial.rename(output)
        return
    aside = _sibling(output, _PREVIOUS)
    kept = aside / "package"
    try:
        output.rename(kept)
        partial.rename(output)
    except BaseException:  # Ctrl-C too
        if kept.exists():
            kept.rename(output)
        raise
    finally:
        if output.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _clean_up(output: Path) -> None:
    """Remove the leftovers of processes that are gone; put a package back that one had moved aside."""
    for kind in (_PREVIOUS, _PARTIAL):
        start = f".{output.name}.{kind}-"
        found = [p for p in output.parent.iterdir() if p.name.startswith(start)] if output.parent.is_dir() else []
        for leftover in found:
            if _is_running(leftover.name.removeprefix(start).split("-")[0]):
                continue
            if kind == _PREVIOUS and not output.exists() and (leftover / "package").is_dir():
                (leftover / "package").rename(output)
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _as_user_error(error: OSError, output: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("output.disk_full", f"the disk of {output} is full", "free space or choose another disk")
    return UserError("output.write", f"cannot write {output}: {error.strerror or error}", "check permissions and path")
