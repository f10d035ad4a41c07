"""Records as files: written whole or not at all, read strictly."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from hvlc.errors import UserError
from hvlc.files.reading import EVALUATION, read_bytes, shown
from hvlc.files.whole import write_files
from hvlc.results.measurement import SCHEMA_VERSION
from hvlc.results.reading import Measured

_LONGEST = 300  # characters of a problem
#: Code of the error of a result that cannot be written.
UNWRITABLE = "results.unwritable"


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write a UTF-8 text file whole or not at all; see `hvlc.files.whole.replacing`.

    Raises:
        UserError: the file cannot be written.
    """
    write_files({path: (encoded(part) for part in parts)}, UNWRITABLE)


def write_results(texts: Mapping[Path, Iterable[str]], others: Mapping[Path, Iterable[bytes]]) -> None:
    """Write the results of a command; none appears before the last of them is written.

    Args:
        texts: the parts of each text file.
        others: of each other file.

    Raises:
        UserError: a file cannot be written.
    """
    encoded_texts = {path: [encoded(part) for part in parts] for path, parts in texts.items()}
    write_files({**encoded_texts, **others}, UNWRITABLE)


def encoded(text: str) -> bytes:
    """A text in UTF-8; bytes of paths that are not UTF-8 are escaped, as hvlc's messages show them."""
    return text.encode("utf-8", "backslashreplace")


def write_evaluation(path: Path, evaluation: Measured) -> None:
    """Write an evaluation as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    write_whole(path, [evaluation.model_dump_json(indent=1), "\n"])


def read_evaluation(path: Path) -> Measured:
    """Read what `write_evaluation` wrote.

    Raises:
        UserError: the file is missing, cut short, of another version, or has unknown keys.
    """
    content = read_bytes(path, "results.unreadable", limit=EVALUATION)
    fix = "run `hvlc eval` again to write a new file"
    try:
        version = _Head.model_validate_json(content).schema_version
        if version != SCHEMA_VERSION:
            cause = f"{shown(path)} has version {version} of the format, and this hvlc reads version {SCHEMA_VERSION}"
            raise UserError("results.version", cause, fix)
        return _MEASURED.validate_json(content)
    except (ValidationError, ArithmeticError) as error:  # the latter by sums and exponentials of absurd numbers
        cause = f"{shown(path)} is not an evaluation that this version reads: {_said(error)}"
        raise UserError("results.invalid", cause, fix) from error


def _said(error: ValidationError | ArithmeticError) -> str:
    """The first problem, in a few lines."""
    if not isinstance(error, ValidationError):
        return f"its numbers do not add up ({error})"[:_LONGEST]
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where[:_LONGEST]}: {first['msg'][:_LONGEST]}"


class _Head(BaseModel):
    """Field of a file of any version."""

    schema_version: int


_MEASURED: TypeAdapter[Measured] = TypeAdapter(Annotated[Measured, Field(discriminator="kind")])
