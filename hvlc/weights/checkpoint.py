"""Checkpoints, opened without reading the weights: a directory of config.json and safetensors, or a GGUF file."""

import hashlib
import math
import mmap
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hvlc.errors import Collector, HvlcError, UserError, raise_all
from hvlc.files.digests import digest_file
from hvlc.files.links import leads_outside
from hvlc.files.reading import (
    is_directory,
    is_file,
    map_file,
    open_file,
    shown,
    state_of,
)
from hvlc.inputs.documents import parse_json, read_json
from hvlc.inputs.foreign_code import check_code
from hvlc.weights.checkpoint_files import INDEX, SETTINGS, SINGLE
from hvlc.weights.gguf.file import GgufEntry, GgufFile, is_gguf, read_gguf
from hvlc.weights.gguf.names import added_offset, derived_config, interleaved_heads, parameter_name
from hvlc.weights.hub import located, origin_of

_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
#: Files besides config.json that transformers looks for code in.
_NAMING_CODE = (
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_HEAD = "lm_head.weight"  # indices name it also where it is tied, and not stored
_GGUF_DTYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16", "I8": "I8", "I32": "I32", "I64": "I64"}  # not in blocks
_GGUF = ".gguf"
_PREFIX = 8  # bytes of a safetensors file before its header: the header's length
_HEADER_LIMIT = 32_000_000  # room for 200,000 tensors; the format's own bound takes gigabytes to parse
_MOST_DIMENSIONS, _LARGEST = 16, 2**63  # of a shape, and its numbers
_METADATA = "__metadata__"
#: Key of a checkpoint's config of a resolution compressor that joined it, and beginning of its parameters.
RESOLUTION_COMPRESSOR = "resolution_compressor"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, read only when asked for.

    Attributes:
        name: dotted parameter name.
        dtype: numpy dtype (ml_dtypes for bfloat16).
        shape: dimensions.
        buffer: the memory-mapped file.
        offset: first byte in the file.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    buffer: mmap.mmap
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """A view of the mapped bytes; pages are loaded as they are touched."""
        return np.frombuffer(self.buffer, self.dtype, self.size, self.offset).reshape(self.shape)

    def release(self) -> None:
        """Give the pages that were read back to the system; they stay in its cache, and views stay valid."""
        first = -(-self.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (self.offset + self.size * self.dtype.itemsize - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED, first, length)


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """One tensor of a GGUF file: numbers, or uint8 `[..., bytes of a row]` whose rows are ggml's blocks.

    Attributes:
        kind: ggml's name of its type, e.g. "Q4_1".
        columns: values of a row.
        heads: how many heads have the halves of their rows interleaved; 0 for none.
        added: what was added to every value.
    """

    kind: str = "F32"
    columns: int = 0
    heads: int = 0
    added: int = 0


def _read_header(path: Path, buffer: mmap.mmap) -> tuple[dict[str, Any], int]:
    """Header and first data byte of a safetensors file."""
    size = len(buffer)
    length = struct.unpack_from("<Q", buffer)[0] if size >= _PREFIX else _HEADER_LIMIT + 1
    if length > min(_HEADER_LIMIT, size - _PREFIX):
        cause = f"{path} is cut short or is not a safetensors file"
        raise UserError("checkpoint.truncated", cause, "fetch it again")
    try:
        header = parse_json(buffer[_PREFIX : _PREFIX + length], unique=True)
    except ValueError as error:
        raise UserError("checkpoint.truncated", f"{path} has a damaged header: {error}", "fetch it again") from error
    if not isinstance(header, dict):
        raise UserError("checkpoint.truncated", f"{path} has a damaged header", "fetch it again")
    return header, _PREFIX + length


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, by their names and by the aliases that its metadata gives them.

    Raises:
        UserError: the file is cut short, its header lies, or a dtype is not known.
    """
    buffer = map_file(path, "checkpoint.truncated")
    header, start = _read_header(path, buffer)
    metadata = header.pop(_METADATA, {})
    tensors = {name: _stored_tensor(path, name, entry, buffer, start) for name, entry in header.items()}
    ends = [tensor.offset + tensor.size * tensor.dtype.itemsize for tensor in tensors.values()]
    surplus = len(buffer) - max([start, *ends])
    if surplus:  # safetensors refuses it too; a sparse file would be digested for hours
        cause = f"{shown(path)} has {surplus} bytes after its last tensor"
        raise UserError("checkpoint.truncated", cause, "fetch it again")
    return {**tensors, **_aliases(metadata, tensors)}


def _stored_tensor(path: Path, name: str, entry: Any, buffer: mmap.mmap, start: int) -> StoredTensor:
    """One tensor of a header, held against the file.

    Raises:
        UserError: the header lies, or the dtype is not known.
    """
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"damaged entry of {name}") from error
    if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and n < _LARGEST for n in (*shape, begin, end)):
        raise _damaged(path, f"damaged entry of {name}")
    if dtype not in _DTYPES:
        cause = f"{shown(path)}: {name} is {dtype}"
        raise UserError("checkpoint.dtype", cause, "convert it to float32, float16 or bfloat16")
    wanted = math.prod(shape) * _DTYPES[dtype].itemsize
    if min(shape, default=0) < 0 or begin < 0 or end - begin != wanted or start + end > len(buffer):
        raise _damaged(path, f"{name} lies outside the file")
    return StoredTensor(name, _DTYPES[dtype], shape, buffer, start + begin)


def _damaged(path: Path, cause: str) -> UserError:
    return UserError("checkpoint.truncated", f"{shown(path)}: {cause}", "fetch it again")


def _aliases(metadata: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Other names of stored tensors: `safetensors.torch.save_model` stores what two modules share once, and notes
    the name that it dropped with the name that it kept.
    """
    named = metadata.items() if isinstance(metadata, dict) else ()
    return {
        alias: tensors[kept]
        for alias, kept in named
        if isinstance(kept, str) and kept in tensors and alias not in tensors
    }


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory, or a GGUF file.

    Attributes:
        directory: where config and tokenizer are; a GGUF file that was named itself has nothing beside it.
        config: parsed config.json, or the same from a GGUF file's metadata.
        tensors: every stored tensor by name.
        files: the weight files, sorted.
        problems: what exporting found wrong with the tensors, so that all of it can be told at once.
        notes: what was decided about the checkpoint and does not stop a build: the plan tells it.
        known: what others have found out about it once and need again, by their own names.
        given_up: set it to end digesting in another thread, when its result is no longer wanted.
        parts: checkpoints that joined this one, by the key of its config.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    problems: list[HvlcError] = field(default_factory=list, compare=False)
    notes: list[str] = field(default_factory=list, compare=False)
    known: dict[str, Any] = field(default_factory=dict, compare=False)
    given_up: threading.Event = field(default_factory=threading.Event, compare=False)
    parts: Mapping[str, "Checkpoint"] = field(default_factory=dict, compare=False)

    def joined(self, key: str, part: "Checkpoint") -> "Checkpoint":
        """This checkpoint with another one as a part of it.

        Args:
            key: of the part's config within this one; its parameters begin with it, and so do its files' names.
            part: the other one.
        """
        tensors = {f"{key}.{name}": replace(t, name=f"{key}.{t.name}") for name, t in part.tensors.items()}
        return replace(
            self,
            config={**self.config, key: dict(part.config)},
            tensors={**self.tensors, **tensors},
            parts={**self.parts, key: part},
        )

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Read the config and the headers of the weight files.

        Args:
            directory: of config.json and safetensors; of one GGUF file, with config.json and tokenizer beside it or
                not; or a GGUF file, whose neighbours are not looked at; or an id on the Hugging Face hub
                (`hvlc.weights.hub`).

        Raises:
            UserError: no directory, no config, no weights, or a damaged file; or the hub does not give it.
        """
        directory = located(directory)
        _check_settings(directory)
        gguf = _gguf_file(directory)
        if gguf is not None:
            return _open_gguf(directory, gguf)
        if not is_directory(directory):
            cause = f"{shown(directory)} is not a directory"
            fix = "name a checkpoint directory, a .gguf file, or a model of the hub as organization/name"
            raise UserError("checkpoint.missing", cause, fix)
        config = _read_config(directory)
        files, index = _weight_files(directory)
        found: dict[str, dict[str, StoredTensor]] = {}
        damaged: list[HvlcError] = []
        for file in files:
            try:
                found[file.name] = open_tensors(file)
            except UserError as error:
                damaged.append(error)
        raise_all(damaged)
        lost = [f"{name} in {file}" for name, file in index.items() if name not in found[file] and name != _HEAD]
        if lost:
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            cause = f"the index of {directory} names what is not there: {', '.join(lost[:3])}{more}"
            raise UserError("checkpoint.weights", cause, "fetch the checkpoint again")
        tensors = {name: tensor for some in found.values() for name, tensor in some.items()}
        tensors |= {name: found[file][name] for name, file in index.items() if name in found[file]}
        origin = origin_of(directory)
        notes = [f"the checkpoint is {origin} on the Hugging Face hub"] if origin else []
        return cls(directory, config, tensors, files, notes=notes)

    @property
    def gguf(self) -> Path | None:
        """The GGUF file that it is, if it is one."""
        return next((path for path in self.files if is_gguf(path)), None)

    @property
    def origin(self) -> str | None:
        """Id and commit on the Hugging Face hub of a snapshot in its cache; None for other checkpoints."""
        return origin_of(self.directory)

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture."""
        return str(self.config["model_type"])

    def digest_files(self) -> None:
        """Read every file that the build reads; `file_digests` is at hand from then on.

        Raises:
            InterruptedError: given up on the way.
        """
        len(self.file_digests)

    @cached_property
    def file_digests(self) -> dict[str, tuple[int, str]]:
        """Bytes and hex SHA-256 of every file that the build reads, by name."""
        paths = [p for p in (self.directory / n for n in SETTINGS) if is_file(p)] + list(self.files)
        found = {p.name: (p.stat().st_size, digest_file(p, self.given_up)) for p in paths}
        for key, part in self.parts.items():
            found |= {f"{key}/{name}": entry for name, entry in part.file_digests.items()}
        return found

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the names and contents of every file that the build reads."""
        lines = [f"{name} {sha256}" for name, (_, sha256) in self.file_digests.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_settings(directory: Path) -> None:
    """Look at every file beside the weights before anything reads it: transformers opens some of them itself.

    Raises:
        UserError: one is not a regular file, is too large, lies outside the directory, or names code; all of
            them at once.
    """
    found = Collector()
    for name, limit in SETTINGS.items():
        path = directory / name
        if not is_directory(directory) or state_of(path) is None:
            continue
        code = "checkpoint.tokenizer" if name in _TOKENIZER else "checkpoint.config"
        with found:
            if leads_outside(path, directory):
                cause = f"{shown(path)} is a link to a place outside the checkpoint"
                raise UserError("checkpoint.escape", cause, "copy the file there if you trust it")
            open_file(path, code, limit=limit, fix="check the directory").close()
            if name in _NAMING_CODE:
                check_code(read_json(path, code), str(shown(path)))
    found.raise_all()


def _read_config(directory: Path) -> dict[str, Any]:
    config = read_json(directory / "config.json", "checkpoint.config")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(
            "checkpoint.config", f"{directory / 'config.json'} names no model_type", "use a transformers config"
        )
    check_code(config, str(shown(directory / "config.json")))
    return config


def _gguf_file(given: Path) -> Path | None:
    """The GGUF file that is meant: the given one, by suffix or first bytes, or that of a directory without safetensors.

    Raises:
        UserError: the directory holds several.
    """
    if is_file(given):
        return given if is_gguf(given) else None
    if not is_directory(given) or any(is_file(given / name) for name in (SINGLE, INDEX)):
        return None
    found = sorted(path for path in given.iterdir() if path.suffix.lower() == _GGUF and is_file(path))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError("checkpoint.weights", f"{given} holds several GGUF files: {names}", "name one of them")
    return found[0] if found else None


def _open_gguf(given: Path, path: Path) -> Checkpoint:
    """A GGUF file as a checkpoint: config.json beside it wins over its own metadata."""
    file = read_gguf(path)
    parts = file.metadata.get("split.count", 0)
    if parts not in (0, 1):
        cause = f"{path} is one of {str(parts)[:20]} parts"
        raise UserError("checkpoint.weights", cause, "join them with llama.cpp's llama-gguf-split --merge")
    config = _read_config(given) if is_file(given / "config.json") else derived_config(file)
    tensors, architecture = {}, file.metadata.get("general.architecture")
    for name, entry in file.entries.items():
        tensor = _gguf_tensor(file, parameter_name(name, architecture) or name, entry)
        tensors[tensor.name] = tensor
    return Checkpoint(given, config, tensors, (path,))


def _gguf_tensor(file: GgufFile, name: str, entry: GgufEntry) -> GgufTensor:
    dtype = _GGUF_DTYPES.get(entry.kind)
    shape = entry.shape if dtype else (*entry.shape[:-1], entry.row_bytes)
    heads, added = interleaved_heads(file, entry.name), added_offset(file, name)
    found = _DTYPES[dtype or "U8"]
    return GgufTensor(name, found, shape, file.buffer, entry.offset, entry.kind, entry.shape[-1], heads, added)


def _weight_files(directory: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The safetensors files of a checkpoint, single or sharded, and which shard the index says holds a tensor."""
    single, index = directory / SINGLE, directory / INDEX
    if state_of(single) is not None:
        return (single,), {}
    if state_of(index) is None:
        raise UserError(
            "checkpoint.weights", f"{directory} holds no model.safetensors", "save the model as safetensors"
        )
    content = read_json(index, "checkpoint.config")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError("checkpoint.config", f"{index} has no weight_map", "save the model again")
    files: list[Path] = []
    missing: list[HvlcError] = []
    for name in sorted(set(weight_map.values())):
        path = directory / name
        if name in ("", ".", "..") or path.name != name:
            cause = f"{index} names a shard by a path, not by the name of a file beside it: {shown(name)}"
            raise UserError("checkpoint.escape", cause, "do not trust this file")
        if not is_file(path):
            missing.append(
                UserError("checkpoint.weights", f"shard {shown(name)} is missing", "fetch the checkpoint again")
            )
        files.append(path)
    raise_all(missing)
    return tuple(files), weight_map
