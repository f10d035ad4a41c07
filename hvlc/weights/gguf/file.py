"""The header of a GGUF file, held against the file before anything in it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The gguf package
knows what a type's blocks look like, and is asked; its reader is not used: an array that claims 2**60 elements keeps
it busy for ever, and a vocabulary of 49,152 tokens takes it seconds.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import map_file

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the data section, where the file names no other
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_STRING, _ARRAY = 8, 9
#: Value type to struct's code of a scalar.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LEAST_STRING = 8  # bytes: its length


@dataclass(frozen=True)
class GgufEntry:
    """A tensor as the header describes it; it lies inside the file.

    Attributes:
        name: ggml's.
        kind: ggml's name of its type, e.g. "Q4_1".
        shape: dimensions, rows first.
        row_bytes: bytes of one row, the last dimension.
        offset: first byte in the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    row_bytes: int
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file.

    Attributes:
        path: of the file.
        metadata: values by key; arrays are lists.
        entries: its tensors by ggml's names.
        buffer: the mapped file.
    """

    path: Path
    metadata: Mapping[str, Any]
    entries: Mapping[str, GgufEntry]
    buffer: mmap.mmap


class _Cursor:
    """Reads values one after another and never past the end."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path, self.buffer, self.position = path, buffer, 0

    @property
    def left(self) -> int:
        return len(self.buffer) - self.position

    def take(self, code: str, count: int = 1) -> tuple[Any, ...]:
        """Scalars of one type."""
        size = count * struct.calcsize(f"<{code}")
        self.require(size)
        values = struct.unpack_from(f"<{count}{code}", self.buffer, self.position)
        self.position += size
        return values

    def one(self, code: str) -> Any:
        return self.take(code)[0]

    def string(self) -> str:
        size = self.one("Q")
        self.require(size)
        data = self.buffer[self.position : self.position + size]
        self.position += size
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text at byte {self.position - size} is no UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        return self.one(self.code(kind))

    def array(self) -> list[Any]:
        kind, count = self.one("I"), self.one("Q")
        if kind != _STRING:
            return list(self.take(self.code(kind), count))
        self.require(count * _LEAST_STRING)
        return [self.string() for _ in range(count)]

    def code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.damaged(f"a value at byte {self.position} has the unknown type {kind}")
        return _SCALARS[kind]

    def require(self, size: int) -> None:
        if size > self.left:
            raise self.damaged(f"{size} bytes are announced at byte {self.position}, {self.left} are left")

    def damaged(self, cause: str) -> UserError:
        return UserError("checkpoint.truncated", f"{self.path}: {cause}", "fetch it again")


def read_gguf(path: Path) -> GgufFile:
    """Map a GGUF file and read its header.

    Raises:
        UserError: no GGUF file, of an unknown version or type, cut short, or its header lies; or the gguf package is
            missing.
    """
    buffer = map_file(path, "checkpoint.truncated")
    cursor = _Cursor(path, buffer)
    tensor_count, value_count = _read_start(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.string()
        if key in metadata:
            raise cursor.damaged(f"{key} stands in it twice")
        metadata[key] = cursor.value(cursor.one("I"))
    found = [_read_tensor(cursor) for _ in range(tensor_count)]
    return GgufFile(path, metadata, _placed(cursor, found, metadata.get("general.alignment", _ALIGNMENT)), buffer)


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of metadata values."""
    if cursor.left < len(_MAGIC) or cursor.buffer[: len(_MAGIC)] != _MAGIC:
        raise UserError("checkpoint.gguf", f"{cursor.path} is no GGUF file", "name a .gguf file")
    cursor.position = len(_MAGIC)
    version = cursor.one("I")
    if version not in _VERSIONS:
        what = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        fix = f"convert it to a little-endian file of version {_VERSIONS[-1]}"
        raise UserError("checkpoint.gguf", f"{cursor.path} is {what}", fix)
    return cursor.one("Q"), cursor.one("Q")


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, dimensions (rows first), type and offset in the data section."""
    name, count = cursor.string(), cursor.one("I")
    if not 1 <= count <= _MOST_DIMENSIONS:
        raise cursor.damaged(f"{name} has {count} dimensions")
    shape = tuple(reversed(cursor.take("Q", count)))
    return name, shape, cursor.one("I"), cursor.one("Q")


def _placed(
    cursor: _Cursor, found: list[tuple[str, tuple[int, ...], int, int]], alignment: Any
) -> dict[str, GgufEntry]:
    """The tensors with their places, each inside the file."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    sizes = _type_sizes()
    entries: dict[str, GgufEntry] = {}
    for name, shape, number, offset in found:
        if number not in sizes:
            raise UserError("checkpoint.dtype", f"{cursor.path}: {name} has the unknown type {number}", "update hvlc")
        kind, block, size = sizes[number]
        if shape[-1] % block:
            raise cursor.damaged(f"rows of {name} hold {shape[-1]} values, {kind} stores {block} at a time")
        row = shape[-1] // block * size
        if name in entries:
            raise cursor.damaged(f"{name} stands in it twice")
        if start + offset + math.prod(shape[:-1]) * row > len(cursor.buffer):
            raise cursor.damaged(f"{name} lies outside the file")
        entries[name] = GgufEntry(name, kind, shape, row, start + offset)
    return entries


def _type_sizes() -> dict[int, tuple[str, int, int]]:
    """Name, values in a block and bytes of a block of every type, by number.

    Raises:
        UserError: the gguf package is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("install.compile", "a GGUF file needs gguf", "pip install 'hvlc[compile]'") from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
