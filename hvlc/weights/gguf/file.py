"""Read the header of a GGUF file and check it against the file's size before using any value.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Block sizes come
from the gguf package; its reader is not used, because an array that claims 2**60 elements keeps it busy for ever, and a
vocabulary of 49,152 tokens takes it seconds. Metadata is skipped over and decoded on request, so that unused keys
cannot fail, be large or have another encoding.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import is_file, map_file, open_file, shown

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the data section, where the file names no other
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_STRING, _ARRAY = 8, 9
#: Value type to struct's code of a scalar.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LEAST_ELEMENT = 8  # bytes of a text or an array within an array: its length, at least

# Bounds far above those of public files: they keep time and memory small whatever a header claims.
_MOST_VALUES, _MOST_TENSORS = 100_000, 200_000
_LONGEST_KEY, _LONGEST_NAME = 65_535, 512  # bytes
_LONGEST_TEXT, _LONGEST_TEXTS = 16_000_000, 100_000_000  # bytes of a text that is read, and of an array of them
# Texts and arrays in all arrays; the largest public vocabularies have 262,144 tokens and 600,000 merges.
_MOST_ELEMENTS = 2_000_000
_DEEPEST = 8  # arrays within each other
_MOST_SURPLUS = 1 << 20  # bytes after the last tensor: padding, never a sparse terabyte


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

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + math.prod(self.shape[:-1]) * self.row_bytes


class Metadata(Mapping[str, Any]):
    """The metadata of a file by key; a value is decoded when it is asked for, arrays become lists.

    Raises:
        UserError: the value that is asked for is not UTF-8, or too large to be what anyone reads.
    """

    def __init__(self, path: Path, buffer: mmap.mmap, places: dict[str, tuple[int, int]]) -> None:
        self._path, self._buffer, self._places = path, buffer, places

    def __getitem__(self, key: str) -> Any:
        kind, position = self._places[key]
        cursor = _Cursor(self._path, self._buffer, position)
        try:
            return cursor.value(kind)
        except UnicodeDecodeError as error:
            cause = f"{shown(self._path)}: {shown(key)} is not UTF-8"
            raise UserError("checkpoint.gguf", cause, "convert the model again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file.

    Attributes:
        path: of the file.
        metadata: values by key.
        entries: its tensors by ggml's names.
        buffer: the mapped file.
    """

    path: Path
    metadata: Mapping[str, Any]
    entries: Mapping[str, GgufEntry]
    buffer: mmap.mmap


class _Cursor:
    """Reader of values one after another, never past the end."""

    def __init__(self, path: Path, buffer: mmap.mmap, position: int = 0) -> None:
        self.path, self.buffer, self.position = path, buffer, position
        self.elements = 0

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

    def name(self, longest: int) -> str:
        """A key or a tensor's name. What is not UTF-8 is nobody's key, and stays another than all others."""
        size = self.one("Q")
        if size > longest:
            self.require(size)
            raise self.damaged(f"a name at byte {self.position} has {size} bytes")
        return self._bytes(size).decode("utf-8", "backslashreplace")

    def text(self) -> str:
        size = self.one("Q")
        if size > _LONGEST_TEXT:
            raise self.damaged(f"a text at byte {self.position} has {size} bytes")
        return self._bytes(size).decode()

    def _bytes(self, size: int) -> bytes:
        self.require(size)
        self.position += size
        return self.buffer[self.position - size : self.position]

    def value(self, kind: int) -> Any:
        """Decode a value that was skipped once, and so lies inside the file.

        Raises:
            UnicodeDecodeError: a text is not UTF-8.
        """
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.one(_SCALARS[kind])
        kind, count = self.one("I"), self.one("Q")
        if count > _MOST_ELEMENTS:
            raise self.damaged(f"an array at byte {self.position} has {count} elements")
        if kind in _SCALARS:
            return list(self.take(_SCALARS[kind], count))
        return self._texts(count) if kind == _STRING else [self.value(kind) for _ in range(count)]

    def _texts(self, count: int) -> list[str]:
        """Texts one after another; in one loop, because there are hundreds of thousands.

        Raises:
            UnicodeDecodeError: one is not UTF-8.
        """
        start, length = self.position, struct.Struct("<Q")
        self.skip_texts(count)
        if self.position - start > _LONGEST_TEXTS:
            raise self.damaged(f"an array at byte {start} has texts of {self.position - start} bytes")
        content, position, found = self.buffer[start : self.position], 0, []
        for _ in range(count):
            begin = position + length.size
            position = begin + length.unpack_from(content, position)[0]
            found.append(content[begin:position].decode())
        return found

    def skip(self, kind: int, depth: int = 0) -> None:
        """Walk over a value without decoding it."""
        if kind == _STRING:
            self.skip_texts(1)
        elif kind == _ARRAY:
            self._skip_array(depth)
        else:
            self.skip_bytes(struct.calcsize(f"<{self.code(kind)}"))

    def _skip_array(self, depth: int) -> None:
        kind, count = self.one("I"), self.one("Q")
        if kind not in (_STRING, _ARRAY):
            self.skip_bytes(count * struct.calcsize(f"<{self.code(kind)}"))
            return
        self.require(count * _LEAST_ELEMENT)
        self.elements += count
        if self.elements > _MOST_ELEMENTS:
            raise self.damaged(f"its arrays hold more than {_MOST_ELEMENTS} texts")
        if kind == _STRING:
            self.skip_texts(count)
        elif depth >= _DEEPEST:
            raise self.damaged(f"more than {_DEEPEST} arrays lie within each other at byte {self.position}")
        else:
            for _ in range(count):
                self._skip_array(depth + 1)

    def skip_texts(self, count: int) -> None:
        """Walk over texts: their lengths alone are read."""
        position, end, length = self.position, len(self.buffer), struct.Struct("<Q")
        for _ in range(count):
            if position + length.size > end:
                break
            position += length.size + length.unpack_from(self.buffer, position)[0]
        self.skip_bytes(max(position - self.position, count * _LEAST_ELEMENT))

    def skip_bytes(self, size: int) -> None:
        self.require(size)
        self.position += size

    def code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.damaged(f"a value at byte {self.position} has the unknown type {kind}")
        return _SCALARS[kind]

    def require(self, size: int) -> None:
        if size > self.left:
            raise self.damaged(f"{size} bytes are announced at byte {self.position}, {self.left} are left")

    def damaged(self, cause: str) -> UserError:
        return UserError("checkpoint.truncated", f"{shown(self.path)}: {cause}", "fetch it again")


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is GGUF: by its suffix, or by its first bytes, as in a cache that keeps no names."""
    if not is_file(path):
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with open_file(path, "checkpoint.gguf") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except (UserError, OSError):
        return False


def read_gguf(path: Path) -> GgufFile:
    """Map a GGUF file and read its header.

    Raises:
        UserError: not a GGUF file, of an unknown version or type, cut short, or its header lies; or the gguf package
            is missing.
    """
    buffer = map_file(path, "checkpoint.truncated")
    cursor = _Cursor(path, buffer)
    tensor_count, value_count = _read_start(cursor)
    places: dict[str, tuple[int, int]] = {}
    for _ in range(value_count):
        key, kind = cursor.name(_LONGEST_KEY), cursor.one("I")
        if key in places:
            raise cursor.damaged(f"{shown(key)} stands in it twice")
        places[key] = kind, cursor.position
        cursor.skip(kind)
    metadata = Metadata(path, buffer, places)
    found = [_read_tensor(cursor) for _ in range(tensor_count)]
    return GgufFile(path, metadata, _placed(cursor, found, metadata.get("general.alignment", _ALIGNMENT)), buffer)


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of metadata values."""
    if cursor.left < len(_MAGIC) or cursor.buffer[: len(_MAGIC)] != _MAGIC:
        raise UserError("checkpoint.gguf", f"{shown(cursor.path)} is not a GGUF file", "name a .gguf file")
    cursor.position = len(_MAGIC)
    version = cursor.one("I")
    if version not in _VERSIONS:
        what = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        fix = f"convert it to a little-endian file of version {_VERSIONS[-1]}"
        raise UserError("checkpoint.gguf", f"{shown(cursor.path)} is {what}", fix)
    tensors, values = cursor.one("Q"), cursor.one("Q")
    for count, most, what in ((tensors, _MOST_TENSORS, "tensors"), (values, _MOST_VALUES, "values")):
        if count > most:
            raise cursor.damaged(f"it announces {count} {what}, and a model has at most {most}")
    return tensors, values


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, dimensions (rows first), type and offset in the data section."""
    name, count = cursor.name(_LONGEST_NAME), cursor.one("I")
    if not 1 <= count <= _MOST_DIMENSIONS:
        raise cursor.damaged(f"{name} has {count} dimensions")
    shape = tuple(reversed(cursor.take("Q", count)))
    if 0 in shape:
        raise cursor.damaged(f"{name} has a dimension of 0")
    return name, shape, cursor.one("I"), cursor.one("Q")


def _placed(
    cursor: _Cursor, found: list[tuple[str, tuple[int, ...], int, int]], alignment: Any
) -> dict[str, GgufEntry]:
    """The tensors with their places, each inside the file and apart from the others."""
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {repr(alignment)[:80]}, expected is a power of 2")
    start = -(-cursor.position // alignment) * alignment
    sizes = _type_sizes()
    entries: dict[str, GgufEntry] = {}
    for name, shape, number, offset in found:
        if number not in sizes:
            cause = f"{shown(cursor.path)}: {name} has the unknown type {number}"
            raise UserError("checkpoint.dtype", cause, "update hvlc")
        kind, block, size = sizes[number]
        if shape[-1] % block:
            raise cursor.damaged(f"rows of {name} hold {shape[-1]} values, {kind} stores {block} at a time")
        if name in entries:
            raise cursor.damaged(f"{name} stands in it twice")
        if offset % alignment:
            raise cursor.damaged(f"{name} begins at {offset}, which is not a multiple of {alignment}")
        entries[name] = GgufEntry(name, kind, shape, shape[-1] // block * size, start + offset)
        if entries[name].end > len(cursor.buffer):
            raise cursor.damaged(f"{name} lies outside the file")
    _check_apart(cursor, entries)
    surplus = len(cursor.buffer) - max([start, *(entry.end for entry in entries.values())])
    if surplus > _MOST_SURPLUS:
        raise cursor.damaged(f"{surplus} bytes follow its last tensor")
    return entries


def _check_apart(cursor: _Cursor, entries: Mapping[str, GgufEntry]) -> None:
    """Refuse tensors that share bytes.

    Raises:
        UserError: two of them do.
    """
    order = sorted(entries.values(), key=lambda entry: entry.offset)
    for before, after in pairwise(order):
        if before.end > after.offset:
            raise cursor.damaged(f"{before.name} and {after.name} share bytes")


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
