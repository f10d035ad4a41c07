"""Records as files: written whole or not at all, read strictly."""

import contextlib
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from hvlc.errors import UserError
from hvlc.results.measurement import SCHEMA_VERSION
from hvlc.results.reading import Measured


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Writes a UTF-8 text file whole or not at all: to a temporary sibling that is then renamed.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
        temporary.replace(path)
    except OSError as error:
        fix = "choose another place or make room"
        raise UserError("results.unwritable", f"cannot write {path}: {error.strerror or error}", fix) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # also after Ctrl-C


def write_evaluation(path: Path, evaluation: Measured) -> None:
    """Writes an evaluation as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    write_whole(path, [evaluation.model_dump_json(indent=1), "\n"])


def read_evaluation(path: Path) -> Measured:
    """Reads what `write_evaluation` wrote.

    Raises:
        UserError: the file is missing, cut short, of another version, or has unknown keys.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        fix = "check the path"
        raise UserError("results.unreadable", f"cannot read {path}: {error.strerror or error}", fix) from error
    fix = "run `hvlc eval` again to write a new file"
    try:
        version = _Head.model_validate_json(content).schema_version
        if version != SCHEMA_VERSION:
            cause = f"{path} has version {version} of the format, and this hvlc reads version {SCHEMA_VERSION}"
            raise UserError("results.version", cause, fix)
        return _MEASURED.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        cause = f"{path} is not an evaluation that this version reads: {where}: {first['msg']}"
        raise UserError("results.invalid", cause, fix) from error


class _Head(BaseModel):
    """What a file of any version says."""

    schema_version: int


_MEASURED: TypeAdapter[Measured] = TypeAdapter(Annotated[Measured, Field(discriminator="kind")])
