"""A user's task: a JSON Lines file with `image`, `question`, `answers` (and `kind`, if wished) per line.

The whole file is checked when it is opened, so that a bad line stops the work before it starts. Only the
lines' positions are kept; images are read when asked for.
"""

import json
from array import array
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hvlc.errors import UserError
from hvlc.evaluation.task import Example

_Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

#: More errors than this are counted, not named.
_NAMED_ERRORS = 10

_FIX = 'each line is an object like {"image": "a.png", "question": "Total?", "answers": ["9.90"]}'


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: _Words
    question: _Words
    answers: Annotated[list[_Words], Field(min_length=1)]
    kind: _Words = "other"


class JsonlTask:
    """The examples of a JSON Lines file; blank lines are left out, image paths are relative to the file.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing or empty, or lines are wrong: each is named with its number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers, self._offsets = array("Q"), array("Q")
        errors: list[str] = []
        try:
            self._scan(errors)
        except OSError as error:
            cause = f"cannot read the task {path}: {error.strerror or error}"
            raise UserError("task.unreadable", cause, "check the path") from error
        if errors:
            more = f" and {len(errors) - _NAMED_ERRORS} more" if len(errors) > _NAMED_ERRORS else ""
            raise UserError("task.invalid", f"{path}: {'; '.join(errors[:_NAMED_ERRORS])}{more}", _FIX)
        if not self._offsets:
            raise UserError("task.empty", f"the task {path} has no line", _FIX)

    @property
    def name(self) -> str:
        return self._path.stem

    def __len__(self) -> int:
        return len(self._offsets)

    def example(self, index: int) -> Example:
        """Reads line and image `index`.

        Raises:
            UserError: the line or its image can no longer be read.
        """
        number = self._numbers[index]
        try:
            with self._path.open("rb") as file:
                file.seek(self._offsets[index])
                line = _parse(file.readline())
            image = _load(self._image_path(line))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            cause = f"{self._path} line {number}: {_reason(error)}"
            raise UserError("task.invalid", cause, "check the file and its images") from error
        return Example(f"line-{number}", line.kind, line.question, tuple(line.answers), (image,))

    def _scan(self, errors: list[str]) -> None:
        offset = 0
        with self._path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    self._numbers.append(number)
                    self._offsets.append(offset)
                    try:
                        _measure(self._image_path(_parse(raw)))
                    except (OSError, ValueError, Image.DecompressionBombError) as error:
                        errors.append(f"line {number}: {_reason(error)}")
                offset += len(raw)

    def _image_path(self, line: _Line) -> Path:
        folder = self._path.parent.resolve()
        path = (folder / line.image).resolve()  # links followed: they must not lead out either
        if not path.is_relative_to(folder):
            raise ValueError(f"image {line.image!r} is outside {folder}")
        if not path.is_file():
            raise ValueError(f"image {line.image!r} does not exist")
        return path


def _parse(raw: bytes) -> _Line:
    return _Line.model_validate(json.loads(raw, object_pairs_hook=_unique))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key {key!r} is given twice")
    return dict(pairs)


def _measure(path: Path) -> None:
    with Image.open(path) as image:  # reads the header alone
        if 0 in image.size:
            raise ValueError(f"image {path.name!r} has no pixels")


def _load(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the line'}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return str(error)
