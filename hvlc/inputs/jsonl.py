"""JSON Lines files of a user: checked whole when they are opened, read line by line when asked for.

Evaluation and calibration read the same files; what a line must hold is theirs to say.
"""

import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from hvlc.errors import UserError
from hvlc.inputs.documents import parse_json

#: Text that is not blank, without the white space around it.
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

#: More errors than this are counted, not named.
_NAMED_ERRORS = 10


class Line(BaseModel):
    """What one line holds; unknown keys and other types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ImageLine(Line):
    """A question about an image.

    Attributes:
        image: path, relative to the file.
        question: the prompt.
        kind: group for scores and shares.
    """

    image: Words
    question: Words
    kind: Words = "other"


L = TypeVar("L", bound=Line)


class JsonLines(Generic[L]):
    """The checked lines of a file; blank lines are left out, and only the positions of the others are kept.

    Args:
        path: the file.
        parse: makes a line of a parsed object; raises ValueError or OSError with what is wrong.
        area: first part of the codes of errors, such as "task".
        fix: shows how a line looks.

    Raises:
        UserError: the file is missing or empty, or lines are wrong: the first are named with their numbers.
    """

    def __init__(self, path: Path, parse: Callable[[Any], L], *, area: str, fix: str) -> None:
        self.path = path
        self._parse, self._area, self._fix = parse, area, fix
        self._numbers, self._offsets = array("Q"), array("Q")
        errors: list[str] = []
        try:
            self._scan(errors)
        except OSError as error:
            cause = f"cannot read the {area} {path}: {error.strerror or error}"
            raise UserError(f"{area}.unreadable", cause, "check the path") from error
        if errors:
            raise UserError(f"{area}.invalid", f"{path}: {listed(errors)}", fix)
        if not self._offsets:
            raise UserError(f"{area}.empty", f"the {area} {path} has no line", fix)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> tuple[int, L]:
        """Number in the file, from 1, and content of line `index`, from 0.

        Raises:
            UserError: the line can no longer be read.
        """
        number = self._numbers[index]
        try:
            with self.path.open("rb") as file:
                file.seek(self._offsets[index])
                return number, self._parse(_object(file.readline()))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            cause = f"{self.path} line {number}: {_reason(error)}"
            raise UserError(f"{self._area}.invalid", cause, self._fix) from error

    def _scan(self, errors: list[str]) -> None:
        offset = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    self._numbers.append(number)
                    self._offsets.append(offset)
                    try:
                        self._parse(_object(raw))
                    except (OSError, ValueError, RecursionError, Image.DecompressionBombError) as error:
                        errors.append(f"line {number}: {_reason(error)}")
                offset += len(raw)


def listed(errors: list[str]) -> str:
    """The first errors, and how many more there are."""
    more = f" and {len(errors) - _NAMED_ERRORS} more" if len(errors) > _NAMED_ERRORS else ""
    return "; ".join(errors[:_NAMED_ERRORS]) + more


def image_beside(file: Path, name: str) -> Path:
    """The image that a line of `file` names, its header read.

    Raises:
        ValueError: it is missing, no image, or outside the directory of `file`.
        OSError: it cannot be read.
    """
    folder = file.parent.resolve()
    path = (folder / name).resolve()  # links followed: they must not lead out either
    if not path.is_relative_to(folder):
        raise ValueError(f"image {name!r} is outside {folder}")
    if not path.is_file():
        raise ValueError(f"image {name!r} does not exist")
    with Image.open(path) as image:  # reads the header alone
        if 0 in image.size:
            raise ValueError(f"image {path.name!r} has no pixels")
    return path


def _object(raw: bytes) -> Any:
    return parse_json(raw, unique=True)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the line'}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    return str(error)
