"""What a calibration has found so far, on disk: it goes on where it was stopped, with the same inputs only."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from safetensors.numpy import save_file

from hvlc.errors import UserError
from hvlc.inputs.documents import read_json
from hvlc.weights.checkpoint import open_tensors
from hvlc.weights.formats import WeightFormat
from hvlc.weights.lazy import Box, Expression
from hvlc.weights.quantized import Levels, Solved, stored_array, stream_dtype, stream_shape, streams_of

_FINGERPRINT, _ARRAYS, _PARTIAL = "fingerprint.json", ".safetensors", ".partial"


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
            UserError: the directory belongs to other inputs, is no calibration's, or cannot be written.
        """
        check_foreign(directory)
        path = directory / _FINGERPRINT
        if path.is_file():
            _check_changed(directory, read_json(path, "calibration.state"), fingerprint)
            return cls(directory)
        partial = path.with_suffix(_PARTIAL)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(dict(fingerprint), indent=1, sort_keys=True), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            cause = f"cannot write {directory}: {error.strerror}"
            raise UserError("calibration.state", cause, "name another directory with --calibration-state") from error
        return cls(directory)

    def put(self, key: str, levels: Levels) -> None:
        """Keep a matrix; it is there whole or not at all."""
        self.put_arrays(key, {stream.value: stored_array(levels, stream) for stream in streams_of(levels.format)})

    def put_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under their names; they are there whole or not at all."""
        path = key_path(self.directory, key)
        partial = path.with_suffix(_PARTIAL)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
        partial.replace(path)

    def has(self, solved: Solved) -> bool:
        """Whether an awaited matrix was solved; a damaged file counts as none."""
        return all(part.is_there() for part in solved.stored if isinstance(part, Awaited))

    def remove(self) -> None:
        """Remove what a calibration wrote, and the directory if nothing else is in it."""
        for path in self.directory.iterdir():
            if path.name == _FINGERPRINT or path.suffix in (_ARRAYS, _PARTIAL):
                path.unlink()
        with contextlib.suppress(OSError):  # not empty
            self.directory.rmdir()


def check_foreign(directory: Path) -> None:
    """Refuse a directory that a calibration would have to share.

    Raises:
        UserError: it is a file, or holds files that no calibration wrote.
    """
    if not directory.exists() or (directory / _FINGERPRINT).is_file():
        return
    ours = Path(_FINGERPRINT).with_suffix(_PARTIAL).name  # killed at the first moment
    if not directory.is_dir() or any(path.name != ours for path in directory.iterdir()):
        held = "holds files that no calibration wrote" if directory.is_dir() else "is a file"
        cause = f"{directory} is in the way: it {held}"
        raise UserError("calibration.state", cause, "move it, or name another directory with --calibration-state")


def check_apart(directory: Path, output: Path) -> None:
    """Refuse a state and a package inside each other: either is removed or replaced as a whole.

    Raises:
        UserError: one lies inside the other.
    """
    state, package = directory.resolve(), output.resolve()
    if state == package or state in package.parents or package in state.parents:
        cause = f"{directory} keeps the calibration, and {output} is the package"
        raise UserError("calibration.state", cause, "name a directory beside the package with --calibration-state")


def _check_changed(directory: Path, known: Any, fingerprint: Mapping[str, str]) -> None:
    if known == dict(fingerprint):
        return
    found = known if isinstance(known, dict) else {}
    changed = [key for key in sorted({*fingerprint, *found}) if found.get(key) != fingerprint.get(key)]
    raise UserError(
        "calibration.changed",
        f"{directory} holds a calibration that was begun with another {', '.join(changed)}",
        "go on with the same inputs, or remove the directory to begin again",
    )


def key_path(directory: Path, key: str) -> Path:
    """The file of a matrix, or of arrays, in a state's directory."""
    return directory / f"{quote(key, safe='')}{_ARRAYS}"


def awaited(directory: Path, key: str, shape: tuple[int, int], format: WeightFormat) -> Solved:
    """A matrix of a state as lazy expressions; by the time they are read, it has to be solved.

    Args:
        directory: of the state.
        key: as given to `State.put`.
        shape: `[out, in]`.
        format: that it has.
    """
    path = key_path(directory, key)
    streams = (
        Awaited(path, stream.value, stream_shape(shape, format, stream), stream_dtype(format, stream))
        for stream in streams_of(format)
    )
    return Solved(shape, format, tuple(streams))


@dataclass(frozen=True)
class Awaited(Expression):
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
            found = open_tensors(self.path).get(self.name) if self.path.is_file() else None
        except UserError:
            return False
        return found is not None and (found.shape, found.dtype) == (self.shape, self.dtype)
