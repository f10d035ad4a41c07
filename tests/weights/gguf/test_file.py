"""A GGUF file is held against itself: whatever is cut, changed or made up ends in an error with a code."""

import struct
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.gguf.file import read_gguf
from hvlc.weights.prequantized.reading import read_parameter
from tests.weights.prequantized.tiny_quantized import save_gguf


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(path, "Q4_K")
    return path


def test_the_header_is_what_the_gguf_package_reads(saved: Path) -> None:
    found, reader = read_gguf(saved), gguf.GGUFReader(saved)
    ours = {key: value for key, value in reader.fields.items() if not key.startswith("GGUF.")}
    assert set(found.metadata) == set(ours)
    for key, value in ours.items():
        assert found.metadata[key] == value.contents(), key
    assert set(found.entries) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        entry = found.entries[tensor.name]
        assert (entry.kind, entry.shape) == (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())))
        size = int(tensor.n_bytes)
        assert found.buffer[entry.offset : entry.offset + size] == np.asarray(tensor.data).tobytes()
        assert size == entry.row_bytes * int(np.prod(entry.shape[:-1]))


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_file_that_is_cut_short_is_refused(saved: Path, tmp_path: Path, cut: float) -> None:
    data = saved.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(cut * (len(data) - 32))])  # the last tensor is padded to 32 bytes
    with pytest.raises(UserError) as error:
        read_gguf(path)
    assert error.value.code in ("checkpoint.truncated", "checkpoint.gguf")


@given(place=st.integers(0, 20_000), value=st.binary(min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_other_bytes_in_the_header_are_read_or_refused(saved: Path, tmp_path: Path, place: int, value: bytes) -> None:
    data = bytearray(saved.read_bytes())
    data[place : place + len(value)] = value
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    try:
        found = read_gguf(path)
        opened = Checkpoint.open(path)
    except UserError:
        return
    for name in opened.tensors:
        with suppress(UserError):
            read_parameter(opened, name)
    for entry in found.entries.values():
        assert entry.offset + entry.row_bytes * int(np.prod(entry.shape[:-1])) <= len(data)


def header(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0, count: int | None = None) -> bytes:
    number = len(dims) if count is None else count
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", number, *dims, kind, offset)


LIES: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "checkpoint.truncated", "cannot read"),
    "no GGUF": (b"PK\3\4" + bytes(60), "checkpoint.gguf", "is not a GGUF file"),
    "an old version": (header(version=1), "checkpoint.gguf", "is version 1"),
    "another byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "checkpoint.gguf", "is big-endian"),
    "endless values": (header(values=2**60), "checkpoint.truncated", "announces 1152921504606846976 values"),
    "endless tensors": (header(tensors=2**60), "checkpoint.truncated", "announces 1152921504606846976 tensors"),
    "more values than there are": (header(values=9), "checkpoint.truncated", "8 bytes are announced"),
    "more tensors than there are": (header(tensors=9), "checkpoint.truncated", "8 bytes are announced"),
    "an endless key": (header(values=1) + struct.pack("<Q", 2**40) + bytes(99), "checkpoint.truncated", "announced"),
    "a long key": (header(values=1) + text("k" * 70_000) + bytes(99), "checkpoint.truncated", "has 70000 bytes"),
    "a long name": (header(1) + tensor("t" * 600, 1) + bytes(99), "checkpoint.truncated", "has 600 bytes"),
    "an array of more texts than anyone has": (
        header(values=1) + text("a") + struct.pack("<IIQ", 9, 8, 5_000_000) + bytes(40_000_000),
        "checkpoint.truncated",
        "more than 2000000 texts",
    ),
    "arrays that are too deep": (
        header(values=1) + text("a") + struct.pack("<I", 9) + 20 * struct.pack("<IQ", 9, 1) + bytes(99),
        "checkpoint.truncated",
        "arrays lie within each other",
    ),
    "a text of arrays that ends nowhere": (
        header(values=1) + text("a") + struct.pack("<IIQQ", 9, 8, 2, 2**63) + bytes(64),
        "checkpoint.truncated",
        "are announced",
    ),
    "an endless text": (header(values=1) + struct.pack("<Q", 2**62), "checkpoint.truncated", "are announced"),
    "an endless array of numbers": (
        header(values=1) + text("a") + struct.pack("<IIQ", 9, 4, 2**60) + bytes(64),
        "checkpoint.truncated",
        "are announced",
    ),
    "an endless array of texts": (
        header(values=1) + text("a") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(64),
        "checkpoint.truncated",
        "are announced",
    ),
    "an unknown type": (header(values=1) + text("a") + struct.pack("<I", 77), "checkpoint.truncated", "type 77"),
    "a key twice": (header(values=2) + 2 * (text("a") + struct.pack("<IB", 0, 1)), "checkpoint.truncated", "twice"),
    "an odd alignment": (
        header(values=1) + text("general.alignment") + struct.pack("<II", 4, 33),
        "checkpoint.truncated",
        "general.alignment is 33",
    ),
    "an alignment of text": (
        header(values=1) + text("general.alignment") + struct.pack("<I", 8) + text("x"),
        "checkpoint.truncated",
        "general.alignment is 'x'",
    ),
    "no dimensions": (header(1) + tensor("t"), "checkpoint.truncated", "t has 0 dimensions"),
    "many dimensions": (header(1) + tensor("t", count=2**31), "checkpoint.truncated", "dimensions"),
    "a dimension of 0": (header(1) + tensor("t", 4, 0) + bytes(99), "checkpoint.truncated", "t has a dimension of 0"),
    "a tensor between two places": (
        header(1) + tensor("t", 4, offset=8) + bytes(99),
        "checkpoint.truncated",
        "t begins at 8, which is not a multiple of 32",
    ),
    "tensors that share bytes": (
        header(2) + tensor("t", 16) + tensor("u", 8, offset=32) + bytes(199),
        "checkpoint.truncated",
        "t and u share bytes",
    ),
    "a tensor of 2**126 values": (header(1) + tensor("t", 2**63, 2**63) + bytes(99), "checkpoint.truncated", "outside"),
    "a tensor twice": (header(2) + 2 * tensor("t", 1) + bytes(99), "checkpoint.truncated", "t stands in it twice"),
    "an unknown kind": (header(1) + tensor("t", 1, kind=999) + bytes(99), "checkpoint.dtype", "unknown type 999"),
    "half a block": (header(1) + tensor("t", 33, kind=2) + bytes(99), "checkpoint.truncated", "32 at a time"),
    "an endless tensor": (header(1) + tensor("t", 2**40, 2**40), "checkpoint.truncated", "t lies outside the file"),
    "a far tensor": (header(1) + tensor("t", 4, offset=2**63), "checkpoint.truncated", "t lies outside the file"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lie_is_refused(tmp_path: Path, case: str) -> None:
    data, code, word = LIES[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError, match=word) as error:
        read_gguf(path)
    assert error.value.code == code


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_gguf(tmp_path / "none.gguf")


def test_the_oracle_of_lies_tells_the_truth_too(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(1) + tensor("t", 4) + bytes(99))
    assert read_gguf(path).entries["t"].shape == (4,)


#: Values that nobody reads, and that some reader of GGUF files does not take.
HARMLESS: dict[str, bytes] = {
    "arrays in arrays": struct.pack("<IIQ", 9, 9, 2)
    + struct.pack("<IQ", 8, 1)
    + text("x")
    + struct.pack("<IQB", 0, 1, 7),
    "an empty array": struct.pack("<IIQ", 9, 8, 0),
    "another encoding": struct.pack("<IQ", 8, 3) + b"Gr\xfc",
    "texts of another encoding": struct.pack("<IIQQ", 9, 8, 1, 2) + b"\xff\xfe",
    "many numbers": struct.pack("<IIQ", 9, 4, 1_000_000) + bytes(4_000_000),
    "a long text": struct.pack("<IQ", 8, 20_000_000) + bytes(20_000_000),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_values_that_nobody_reads_are_walked_over(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.gguf"
    data = header(1, 2) + text("general.odd") + HARMLESS[case] + text("general.name") + struct.pack("<I", 8) + text("m")
    path.write_bytes(data + tensor("t", 4) + bytes(99))
    found = read_gguf(path)
    assert found.metadata["general.name"] == "m"
    assert list(found.entries) == ["t"]


@pytest.mark.parametrize(("case", "word"), [("another encoding", "is not UTF-8"), ("a long text", "20000000 bytes")])
def test_values_that_are_read_have_their_errors_then(tmp_path: Path, case: str, word: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(0, 1) + text("general.odd") + HARMLESS[case])
    metadata = read_gguf(path).metadata
    with pytest.raises(UserError, match=word):
        metadata["general.odd"]


def test_a_key_of_another_encoding_is_nobodys_key(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(0, 1) + struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 3))
    assert dict(read_gguf(path).metadata) == {"\\xff": 3}


def test_a_sparse_file_of_a_terabyte_takes_neither_time_nor_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(header(values=50_000, tensors=3))
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="stands in it twice"):
        read_gguf(path)
    with path.open("wb") as file:
        file.write(header(tensors=1) + tensor("t", 4))
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="bytes follow its last tensor"):
        read_gguf(path)
