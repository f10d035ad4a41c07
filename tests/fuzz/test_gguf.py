"""Damaged GGUF files: built into a package that can be opened, or the user's error, in bounded time and memory."""

import json
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from hvlc.errors import UserError
from hvlc.weights.gguf.file import read_gguf
from tests.fuzz.building import check_build
from tests.fuzz.mutation import Commands, attempt, commands, files, mutated
from tests.weights.prequantized.tiny_quantized import save_gguf

SMALL, LARGE = 24, 600
STRING, ARRAY = 8, 9
#: Value types to struct's codes.
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"))
TEXTS = (
    b"",
    b"\xff\xfe",
    b"\0",
    b"llama",
    b"qwen2",
    b"gpt-2",
    b"llama-bpe",
    b"<|im_end|>",
    b"x" * 3000,
    b"{{ 1 / 0 }}",
)


@dataclass
class Header:
    """The header of a GGUF file in parts that can be changed one by one.

    Attributes:
        values: metadata as key, type and the bytes of the value.
        tensors: name, dimensions (columns first), type and offset of each.
        data: what follows, aligned.
        counts: announced numbers of tensors and values; None: as many as there are.
    """

    values: list[tuple[bytes, int, bytes]]
    tensors: list[tuple[bytes, list[int], int, int]]
    data: bytes
    version: int = 3
    counts: list[int | None] = field(default_factory=lambda: [None, None])

    def encoded(self) -> bytes:
        tensors = len(self.tensors) if self.counts[0] is None else self.counts[0]
        values = len(self.values) if self.counts[1] is None else self.counts[1]
        start = b"GGUF" + struct.pack("<IQQ", self.version, tensors % 2**64, values % 2**64)
        parts = [text(key) + struct.pack("<I", kind) + value for key, kind, value in self.values]
        for name, dims, kind, offset in self.tensors:
            sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *(d % 2**64 for d in dims))
            parts.append(text(name) + sizes + struct.pack("<IQ", kind % 2**32, offset % 2**64))
        header = b"".join([start, *parts])
        return header + bytes(-len(header) % 32) + self.data


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def parsed(path: Path) -> Header:
    """The parts of an undamaged file, by the gguf package."""
    reader = gguf.GGUFReader(path)
    values = [
        (key.encode(), int(field.types[0]), b"".join(bytes(part) for part in field.parts[3:]))
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    ]
    content, start = path.read_bytes(), reader.data_offset
    tensors = [
        (t.name.encode(), [int(d) for d in t.shape], int(t.tensor_type), int(t.data_offset) - start)
        for t in reader.tensors
    ]
    return Header(values, tensors, content[start:])


def drawn_value(source: random.Random, depth: int = 0) -> tuple[int, bytes]:
    """A value of any type."""
    kind = source.choice([*CODES, STRING, STRING, ARRAY])
    if kind == STRING:
        return kind, text(source.choice(TEXTS))
    if kind == ARRAY:
        inner, count = source.choice([*CODES, STRING, ARRAY]), source.choice((0, 1, 2, 300, 2**32, 2**60))
        nested = {STRING: text(source.choice(TEXTS)), ARRAY: struct.pack("<IQ", 0, 0)}
        element = nested.get(inner) or bytes(struct.calcsize(f"<{CODES.get(inner, 'B')}"))
        return kind, struct.pack("<IQ", inner, count) + element * min(count, 300)
    code = CODES[kind]
    if code in "fd":
        return kind, struct.pack(f"<{code}", source.choice(FLOATS if code == "d" else (0.0, -1.0, float("nan"))))
    size = struct.calcsize(f"<{code}")
    return kind, (source.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")


def damaged(whole: Header, source: random.Random) -> bytes:
    """One to three changes of parts, or of bytes of the header."""
    header = Header([*whole.values], [(n, [*d], k, o) for n, d, k, o in whole.tensors], whole.data)
    if source.random() < 0.2:
        content = header.encoded()
        size = len(content) - len(header.data)
        return mutated(content[:size], source) + content[size:]
    for _ in range(source.randint(1, 3)):
        at, which = source.randrange(len(header.values)), source.randrange(len(header.tensors))
        name, dims, kind, offset = header.tensors[which]
        match source.randrange(12):
            case 0 | 1 | 2 | 3:
                header.values[at] = header.values[at][0], *drawn_value(source)
            case 4:
                del header.values[at]
            case 5:
                more = source.choice(MORE_KEYS)
                header.values.insert(at, (more, *drawn_value(source)))
            case 6:
                dims[source.randrange(len(dims))] = source.choice(NUMBERS)
            case 7:
                header.tensors[which] = name, dims, source.choice((0, 1, 2, 8, 12, 30, 99, 2**31)), offset
            case 8:
                header.tensors[which] = name, dims, kind, source.choice(NUMBERS)
            case 9:
                header.tensors[which] = source.choice((header.tensors[0][0], b"\xff", b"", b"x")), dims, kind, offset
            case 10:
                header.counts[source.randrange(2)] = source.choice(NUMBERS)
            case _:
                header.data = header.data[: source.randrange(len(header.data))]
    return header.encoded()


MORE_KEYS = (
    b"general.alignment",
    b"general.odd",
    b"split.count",
    b"llama.rope.scaling.type",
    b"llama.rope.scaling.factor",
    b"llama.attention.key_length",
    b"llama.vocab_size",
    b"tokenizer.ggml.add_bos_token",
    b"tokenizer.ggml.add_eos_token",
    b"tokenizer.ggml.eot_token_id",
    b"tokenizer.ggml.scores",
    b"tokenizer.chat_template",
    b"\xff",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Header:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(path, "Q4_0")
    return parsed(path)


def test_the_parts_of_a_file_make_the_file(whole: Header, tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    assert whole.encoded() == (tmp_path / "model.gguf").read_bytes()


def runs(whole: Header, scratch: Path, count: int, seed: int) -> dict[int, int]:
    """Plan damaged files, build those that can be planned; how often each exit code was."""
    codes: dict[int, int] = {}
    path, package = scratch / "model.gguf", scratch / "package"
    with commands(scratch) as hvlc:
        for case in range(count):
            source = random.Random(f"{seed} {case}")
            path.write_bytes(damaged(whole, source))
            ended = hvlc.run("plan", path, "--recipe", "float32")
            check_build(ended)
            codes[ended.code] = codes.get(ended.code, 0) + 1
            assert set(files(scratch)) == {str(path)}
            if ended.code == 0:
                build_and_open(hvlc, path, package)
    return codes


def build_and_open(hvlc: Commands, path: Path, package: Path) -> None:
    """Build what could be planned: its tokens have rows, and its ends are tokens."""
    ended = hvlc.run("build", path, "--recipe", "float32", "-o", package)
    check_build(ended)
    if ended.code != 0:
        assert not package.exists()
        return
    config: dict[str, Any] = json.loads((package / "genai_config.json").read_text("utf-8"))["model"]
    ends = config["eos_token_id"]
    assert all(0 <= token < config["vocab_size"] for token in (ends if isinstance(ends, list) else [ends]))
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    assert all(token < config["vocab_size"] for token in tokenizer.get_vocab().values())
    for file in package.iterdir():
        file.unlink()
    package.rmdir()


def test_damaged_files_are_built_or_refused(whole: Header, tmp_path: Path) -> None:
    assert sum(runs(whole, tmp_path, SMALL, 1).values()) == SMALL


@pytest.mark.slow
def test_many_damaged_files_are_built_or_refused(whole: Header, tmp_path: Path) -> None:
    codes = runs(whole, tmp_path, LARGE, 2)
    assert sum(codes.values()) == LARGE
    assert set(codes) >= {0, 2}


def test_damaged_headers_are_read_or_refused(whole: Header, tmp_path: Path) -> None:
    path, ends = tmp_path / "model.gguf", set()
    for case in range(300):
        path.write_bytes(damaged(whole, random.Random(f"header {case}")))
        ends.add(attempt(lambda: dict(read_gguf(path).metadata), UserError))
    assert ends == {"read", "refused"}


@pytest.mark.parametrize("size", [1 << 40, (1 << 40) + 1])
def test_a_terabyte_without_content_is_refused(whole: Header, tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(whole.encoded())
    with path.open("r+b") as file:
        file.truncate(size)
    with commands(tmp_path) as hvlc:
        ended = hvlc.run("plan", path, "--recipe", "float32")
    check_build(ended, codes=(2,))


def test_ten_million_tokens_are_refused(whole: Header, tmp_path: Path) -> None:
    tokens = struct.pack("<IQ", STRING, 10_000_000) + bytes(80_000_000)
    kept = [value for value in whole.values if value[0] != b"tokenizer.ggml.tokens"]
    header = Header([(b"tokenizer.ggml.tokens", ARRAY, tokens), *kept], whole.tensors, whole.data)
    (tmp_path / "model.gguf").write_bytes(header.encoded())
    with commands(tmp_path) as hvlc:
        ended = hvlc.run("plan", tmp_path / "model.gguf", "--recipe", "float32")
    check_build(ended, codes=(2,))
    assert "more than 2000000 texts" in ended.said
