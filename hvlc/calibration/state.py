"""State of a calibration on disk, from which a stopped one continues if its inputs are the same."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from safetensors.numpy import save

from hvlc.errors import UserError
from hvlc.files.locks import is_at, lock
from hvlc.files.reading import is_file, shown, state_of
from hvlc.files.scratch import PARTIAL as _PARTIAL
from hvlc.files.writing import writing
from hvlc.inputs.documents import read_json
from hvlc.weights.checkpoint import open_tensors
from hvlc.weights.formats import Levels, WeightFormat
from hvlc.weights.lazy import Box, Expression
from hvlc.weights.quantized import SolvedWeight

_FINGERPRINT, _ARRAYS = "fingerprint.json", ".safetensors"
_CODE = "calibration.state"
_ELSEWHERE = "name another directory with --calibration-state"


@dataclass(frozen=True)
class State:
    """A directory of solved matrices and of what was observed.

    Attributes:
        directory: one safetensors file for each key, and the fingerprint of what they were made from.
    """

    directory: Path

    @classmethod
    def open(cls, directory: Path, fingerprint: Mapping[str, str]) -> "State":
        """Go on with a calibration, or begin one.

        Args:
            directory: made if it is not there.
            fingerprint: of all that the levels depend on, by the name of each input.

        Raises:
            UserError: the directory belongs to other inputs, is not a calibration's, or cannot be written.
        """
        check_foreign(directory)
        path = directory / _FINGERPRINT
        if is_file(path):
            _check_changed(directory, read_json(path, _CODE), fingerprint)
            return cls(directory)
        with _in_state(directory):
            directory.mkdir(parents=True, exist_ok=True)
            _write_partial(path, json.dumps(dict(fingerprint), indent=1, sort_keys=True).encode())
        return cls(directory)

    @classmethod
    @contextlib.contextmanager
    def held(cls, directory: Path, fingerprint: Mapping[str, str]) -> "Iterator[State]":
        """A state that no other process uses while the block runs; see `open`.

        Raises:
            UserError: another build uses it, or what `open` raises.
        """
        check_foreign(directory)
        descriptor = _hold(directory)
        try:
            yield cls.open(directory, fingerprint)
        finally:
            with contextlib.suppress(OSError):
                directory.rmdir()  # where nothing was found
            os.close(descriptor)

    @classmethod
    def remove_finished(cls, directory: Path, fingerprint: Mapping[str, str]) -> None:
        """Remove a state of exactly these inputs that no process uses: a killed build had finished with it.

        Args:
            directory: where it may be.
            fingerprint: of the package that it was for; it may have more entries.
        """
        try:
            known = read_json(directory / _FINGERPRINT, _CODE) if is_file(directory / _FINGERPRINT) else None
            if not isinstance(known, dict) or not known.items() <= dict(fingerprint).items():
                return
            descriptor = _hold(directory)
        except UserError:
            return
        try:
            cls(directory).remove()
        finally:
            os.close(descriptor)

    def put(self, key: str, levels: Levels) -> None:
        """Keep a matrix; it is there whole or not at all."""
        self.put_arrays(key, {stream.value: array for stream, array in levels.streams.items()})

    def put_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under their names; they are there whole or not at all.

        Raises:
            UserError: they cannot be written.
        """
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        with _in_state(self.directory):
            _write_partial(key_path(self.directory, key), content)

    def has(self, solved: SolvedWeight) -> bool:
        """Whether a pending matrix was solved; a damaged file counts as unsolved."""
        return all(part.is_there() for part in solved.stored if isinstance(part, Pending))

    def remove(self) -> None:
        """Remove what a calibration wrote, and the directory if nothing else is in it.

        Raises:
            UserError: a file cannot be removed.
        """
        with _in_state(self.directory):
            ours = [p for p in self.directory.iterdir() if p.suffix in (_ARRAYS, _PARTIAL)]
            for path in (*ours, self.directory / _FINGERPRINT):  # it comes last: without it the rest is foreign
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            self.directory.rmdir()


def check_foreign(directory: Path) -> None:
    """Refuse a directory that a calibration would have to share.

    Raises:
        UserError: it is a file, or holds files that no calibration wrote.
    """
    found = state_of(directory)
    if found is None or is_file(directory / _FINGERPRINT):
        return
    ours = Path(_FINGERPRINT).with_suffix(_PARTIAL).name  # killed at the first moment
    with _in_state(directory):
        is_ours = stat.S_ISDIR(found.st_mode) and all(path.name == ours for path in directory.iterdir())
    if not is_ours:
        held = "holds files that no calibration wrote" if stat.S_ISDIR(found.st_mode) else "is a file"
        cause = f"{shown(directory)} is in the way: it {held}"
        raise UserError(_CODE, cause, f"move it, or {_ELSEWHERE}")


def check_apart(directory: Path, output: Path) -> None:
    """Refuse a state and a package inside each other: either is removed or replaced as a whole.

    Raises:
        UserError: one lies inside the other.
    """
    # Unlike resolve(), it takes circles of links.
    state, package = (Path(os.path.realpath(path)) for path in (directory, output))
    if state == package or state in package.parents or package in state.parents:
        cause = f"{shown(directory)} keeps the calibration, and {shown(output)} is the package"
        raise UserError(_CODE, cause, "name a directory beside the package with --calibration-state")


def _check_changed(directory: Path, known: Any, fingerprint: Mapping[str, str]) -> None:
    if known == dict(fingerprint):
        return
    found = known if isinstance(known, dict) else {}
    changed = [key for key in sorted({*fingerprint, *found}) if found.get(key) != fingerprint.get(key)]
    raise UserError(
        "calibration.changed",
        f"{shown(directory)} holds a calibration that was begun with another {', '.join(changed)}",
        "go on with the same inputs, or remove the directory to begin again",
    )


def _hold(directory: Path) -> int:
    """A descriptor that holds the lock of a state's directory, which is made if it is not there.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    while True:
        with _in_state(directory):
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock(descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            cause = f"another build is running that keeps its calibration in {shown(directory)}"
            raise UserError("calibration.busy", cause, f"wait for it, or {_ELSEWHERE}") from error
        if is_at(directory, descriptor):
            return descriptor
        os.close(descriptor)  # the other build has removed it


@contextlib.contextmanager
def _in_state(directory: Path) -> Iterator[None]:
    """Errors of a state's directory, with the way out that only it has."""
    try:
        with writing(directory, _CODE, "the calibration"):
            yield
    except UserError as error:
        raise UserError(error.code, error.cause, f"{error.fix}; or {_ELSEWHERE}") from error


def _write_partial(path: Path, content: bytes) -> None:
    """Write a file of a state whole or not at all; a killed process leaves a part of it, which `remove` removes."""
    partial = path.with_suffix(_PARTIAL)
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()  # make room on a full disk
        raise


def key_path(directory: Path, key: str) -> Path:
    """The file of a matrix, or of arrays, in a state's directory."""
    return directory / f"{quote(key, safe='')}{_ARRAYS}"


def pending(directory: Path, key: str, shape: tuple[int, int], format: WeightFormat) -> SolvedWeight:
    """A matrix of a state as lazy expressions; by the time they are read, it has to be solved.

    Args:
        directory: of the state.
        key: as given to `State.put`.
        shape: `[out, in]`.
        format: that it has.
    """
    path = key_path(directory, key)
    streams = (
        Pending(path, stream.value, format.shape(stream, shape), format.dtype(stream)) for stream in format.streams
    )
    return SolvedWeight(shape, format, tuple(streams))


@dataclass(frozen=True)
class Pending(Expression):
    """An array of a state that will have been found when it is read.

    Attributes:
        path: of the file.
        name: of the array in it.
        shape: dimensions.
        dtype: of the values.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def box(self, box: Box) -> np.ndarray:
        """A view of the state's file."""
        return open_tensors(self.path)[self.name].read()[box]

    def is_there(self) -> bool:
        """Whether the file is whole and holds such an array."""
        try:
            found = open_tensors(self.path).get(self.name) if is_file(self.path) else None
        except UserError:
            return False
        return found is not None and (found.shape, found.dtype) == (self.shape, self.dtype)
