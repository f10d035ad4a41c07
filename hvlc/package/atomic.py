"""Write an output directory atomically: it appears complete or not at all, and an older package is never lost.

The package is made in a hidden sibling (`hvlc.files.scratch`). What others put at the output meanwhile is never removed
or replaced: a rename onto a directory that is not empty fails, and an older package that gives way is looked at again
after it was moved aside.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from hvlc.errors import UserError
from hvlc.files.reading import DOCUMENT, is_directory, is_file, read_bytes, shown
from hvlc.files.scratch import own_directory, sweep
from hvlc.files.writing import writing
from hvlc.inputs.documents import read_json
from hvlc.manifest.manifest import MANIFEST

_PARTIAL, _PREVIOUS = "partial", "previous"
_PACKAGE = "package"  # what was moved aside, in its sibling
_SHOWN = 3  # of foreign files


class KeptError(UserError):
    """The work is done, and its place is taken: it stays beside it."""


@contextlib.contextmanager
def atomic_directory(output: Path, *, force: bool) -> Iterator[Path]:
    """A temporary sibling that becomes `output` when the block ends well, and vanishes when it does not.

    Raises:
        UserError: `output` exists and `force` is off, its parent is missing, or the disk is full; or something that may
            not be replaced has appeared at `output`.
        KeptError: the same; the finished directory stays beside `output` as "OUTPUT.new".
    """
    check_output(output, force=force)
    with writing(output, "output.write"), own_directory(output.parent, f".{output.name}.{_PARTIAL}-") as partial:
        yield partial
        partial.chmod(0o755)
        _place(partial, output, force=force)


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output that would overwrite something, before any work.

    What a killed run left for the same output is cleaned up; a package that it had moved aside is put back.

    Raises:
        UserError: the parent is missing, or something is there that may not be replaced.
    """
    _clean_up(output)
    if not is_directory(output.parent):
        raise UserError("output.parent", f"{shown(output.parent)} is not a directory", "create it first")
    with writing(output, "output.write"):
        found = _obstacle(output, force=force)
    if found:
        raise found


def _obstacle(output: Path, *, force: bool) -> UserError | None:
    """Reason why a new package may not take the place of what is at `output`; None: it may.

    Raises:
        OSError: it cannot be looked at.
    """
    if not _is_there(output):
        return None
    if not force:
        return UserError("output.exists", f"{shown(output)} exists", "choose another output or pass --force")
    foreign = _foreign(output)
    if foreign is None:
        return None
    return UserError(
        "output.foreign",
        f"{shown(output)} {foreign}",
        "--force replaces packages only, and nothing beside their files: choose another output, or move it away",
    )


def _is_there(path: Path) -> bool:
    """Whether anything is there, broken links too.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _foreign(directory: Path) -> str | None:
    """Reason why a directory is neither a package nor empty; None: it is one of them."""
    if not is_directory(directory):
        return "is not a package"
    found = list(directory.iterdir())
    if not found:
        return None
    if not is_file(directory / MANIFEST):
        return "is not an hvlc package"
    listed = _files_of(directory) | {MANIFEST}
    others = sorted(path.name for path in found if path.name not in listed or is_directory(path))
    if not others:
        return None
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"has {', '.join(shown(name) for name in others[:_SHOWN])}{more}, which its manifest does not list"


def _files_of(directory: Path) -> set[str]:
    """Names that a package's manifest lists, of whatever version; none where it is damaged: then nothing is its own."""
    try:
        content = read_json(directory / MANIFEST, "package.manifest")
    except UserError:
        return set()
    files = content.get("files") if isinstance(content, dict) else None
    return set(files) if isinstance(files, dict) else set()


def _place(partial: Path, output: Path, *, force: bool) -> None:
    """Rename into place; an older package is moved aside first and deleted after.

    Raises:
        UserError: something else is there; see `atomic_directory`.
        OSError: the system refused.
    """
    found = _obstacle(output, force=force)
    if found is None:
        found = _replace(partial, output) if _is_there(output) else _renamed(partial, output)
    if found is None:
        return
    if _is_same(partial, output):
        raise UserError(found.code, f"{shown(output)} exists: another run made the same package", "use that one")
    kept = _beside(partial, output, "new")
    raise KeptError(
        found.code,
        f"{found.cause}, and was not there when the work began; the finished package is in {shown(kept)}",
        f"move one of the two: {shown(output)} is left as it is",
    )


def _is_same(partial: Path, output: Path) -> bool:
    """Whether two packages have the same manifest, and so the same files."""
    pair = [path / MANIFEST for path in (partial, output)]
    if not all(is_file(path) for path in pair):
        return False
    first, second = (read_bytes(path, "package.manifest", limit=DOCUMENT) for path in pair)
    return first == second


def _replace(partial: Path, output: Path) -> UserError | None:
    """Move an older package (or an empty directory) aside, and the new one into its place."""
    placed = False

    def holds_package(aside: Path) -> bool:
        return not placed and _is_there(aside / _PACKAGE)

    with own_directory(output.parent, f".{output.name}.{_PREVIOUS}-", holds_package) as aside:
        kept = aside / _PACKAGE
        try:
            output.rename(kept)
            foreign = _foreign(kept)  # between the look before and the rename it may have changed
            if foreign is None:
                found = _renamed(partial, output)
                placed = found is None
            else:
                found = UserError("output.foreign", f"{shown(output)} {foreign}", "move it away")
        finally:  # after Ctrl-C too
            if not placed:
                _put_back(kept, output)
        return found


def _renamed(partial: Path, output: Path) -> UserError | None:
    """Rename a directory where nothing is, or an empty directory; an error where something else is."""
    try:
        partial.rename(output)
    except OSError:
        if not _is_there(output):
            raise
        return UserError("output.exists", f"{shown(output)} exists", "choose another output")
    return None


def _put_back(kept: Path, output: Path) -> None:
    """Put an older package back, or beside what has taken its place."""
    if not _is_there(kept):
        return
    if not _is_there(output):
        kept.rename(output)
    else:
        _beside(kept, output, "old")


def _beside(directory: Path, output: Path, kind: str) -> Path:
    """Keep a directory beside `output` under the first free name."""
    number = 1
    while True:
        place = output.with_name(f"{output.name}.{kind}{'' if number == 1 else number}")
        if not _is_there(place):
            directory.rename(place)
            return place
        number += 1


def _clean_up(output: Path) -> None:
    """Remove the leftovers of processes that are gone; put a package back that one had moved aside."""

    def restore(leftover: Path) -> None:
        # Where there is a package, the new one had its place already; where there is something else, the rename fails
        # and the older package stays.
        if is_directory(leftover / _PACKAGE) and not is_file(output / MANIFEST):
            (leftover / _PACKAGE).rename(output)
        shutil.rmtree(leftover, ignore_errors=True)

    name = re.escape(f".{output.name}.")
    sweep(output.parent, rf"{name}{_PREVIOUS}-\w+", restore)
    sweep(output.parent, rf"{name}{_PARTIAL}-\w+")
