"""JSON Lines files of a user: checked whole when they are opened, read line by line when asked for.

Evaluation and calibration read the same files; what a line must hold is theirs to say.
"""

import codecs
import io
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from hvlc.errors import UserError
from hvlc.files.reading import TEXT, is_file, open_file, read_text, reason, shown
from hvlc.inputs.documents import parse_json
from hvlc.inputs.images import image_size

#: Text that is not blank, without the white space around it.
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

#: More errors than this are counted, not named.
_NAMED_ERRORS = 10
_SHOWN = 300  # characters of an error
_MOST_RECODED = 100_000_000  # bytes of a file that is not UTF-8
_LONGEST = 4_000_000  # bytes of a line: a prompt of a million tokens


class Line(BaseModel):
    """Content of one line; unknown keys and other types are errors."""

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

    UTF-8, or UTF-16 or UTF-32 with a byte order mark; lines end in LF or CR LF.

    Args:
        path: the file.
        parse: makes a line of a parsed object; raises ValueError or UserError with what is wrong.
        area: first part of the codes of errors, such as "task".
        fix: shows how a line looks.

    Raises:
        UserError: the file is missing, empty or not a regular file, or lines are wrong: the first are named with their
            numbers.
    """

    def __init__(self, path: Path, parse: Callable[[Any], L], *, area: str, fix: str) -> None:
        self.path = path
        self._parse, self._area, self._fix = parse, area, fix
        self._numbers, self._offsets = array("Q"), array("Q")
        self._recoded = self._recode()
        errors: list[str] = []
        with self._open() as file:
            try:
                self._scan(file, errors)
            except OSError as error:
                raise self._unreadable(error) from error
        if errors:
            raise UserError(f"{area}.invalid", f"{shown(path)}: {listed(errors)}", fix)
        if not self._offsets:
            raise UserError(f"{area}.empty", f"the {area} {shown(path)} has no line", fix)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> tuple[int, L]:
        """Number in the file, from 1, and content of line `index`, from 0.

        Raises:
            UserError: the line can no longer be read.
        """
        number = self._numbers[index]
        with self._open() as file:
            try:
                file.seek(self._offsets[index])
                return number, self._parse(_object(file.readline(_LONGEST + 1)))
            except OSError as error:
                raise self._unreadable(error) from error
            except (ValueError, UserError) as error:
                cause = f"{shown(self.path)} line {number}: {_said(error)}"
                raise UserError(f"{self._area}.invalid", cause, self._fix) from error

    def _open(self) -> BinaryIO:
        if self._recoded is not None:
            return io.BytesIO(self._recoded)
        return open_file(self.path, f"{self._area}.unreadable", limit=TEXT)

    def _recode(self) -> bytes | None:
        """UTF-8 of a file in another encoding; None where it is UTF-8 already."""
        code = f"{self._area}.unreadable"
        with open_file(self.path, code, limit=TEXT) as file:
            start = file.read(2)
        if start not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"\0\0"):
            return None
        return read_text(self.path, code, limit=_MOST_RECODED, fix=self._fix).encode("utf-8", "surrogatepass")

    def _unreadable(self, error: OSError) -> UserError:
        cause = f"cannot read the {self._area} {shown(self.path)}: {reason(error)}"
        return UserError(f"{self._area}.unreadable", cause, "check the path")

    def _scan(self, file: BinaryIO, errors: list[str]) -> None:
        offset = number = 0
        while raw := file.readline(_LONGEST + 1):
            number += 1
            if len(raw) > _LONGEST:
                errors.append(f"line {number}: more than {_LONGEST} bytes")
                return
            if raw.strip():
                self._numbers.append(number)
                self._offsets.append(offset)
                try:
                    self._parse(_object(raw))
                except (ValueError, UserError) as error:
                    errors.append(f"line {number}: {_said(error)}")
            offset += len(raw)


def listed(errors: list[str]) -> str:
    """The first errors, and how many more there are."""
    more = f" and {len(errors) - _NAMED_ERRORS} more" if len(errors) > _NAMED_ERRORS else ""
    return "; ".join(errors[:_NAMED_ERRORS]) + more


def image_beside(file: Path, name: str) -> Path:
    """The image that a line of `file` names, its header read.

    Raises:
        ValueError: it is missing, or outside the directory of `file`.
        UserError: it is not an image that hvlc reads.
    """
    try:
        folder = file.parent.resolve()
        path = (folder / name).resolve()  # links followed: they must not lead out either
    except (OSError, RuntimeError) as error:  # a loop of links, or a working directory that was deleted
        raise ValueError(f"image {name[:_SHOWN]!r}: {error}") from error
    if not path.is_relative_to(folder):
        raise ValueError(f"image {name[:_SHOWN]!r} is outside {shown(folder)}")
    if not is_file(path):
        raise ValueError(f"image {name[:_SHOWN]!r} does not exist")
    image_size(path)
    return path


def _object(raw: bytes) -> Any:
    return parse_json(raw, unique=True)


def _said(error: Exception) -> str:
    """Problem of a line, in at most some three lines of text."""
    text = _described(error)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _described(error: Exception) -> str:
    if isinstance(error, UserError):
        return error.cause
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the line'}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    return str(error)
