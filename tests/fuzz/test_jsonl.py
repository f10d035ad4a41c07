"""Damaged JSON Lines of evaluation and calibration: lines or the user's error, in linear time."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from hvlc.calibration.jsonl import JsonlSamples
from hvlc.errors import UserError
from hvlc.evaluation.jsonl import JsonlTask
from tests.fuzz.mutation import attempt, check, commands, mutated
from tests.fuzz.processes import recorded_processes
from tests.helpers.tiny import picture

SMALL, LARGE = 300, 5000
TASK: list[dict[str, Any]] = [
    {"image": "a.png", "question": "Total?", "answers": ["9.90", "9,90"]},
    {"images": ["a.png", "a.png"], "question": "Größe?", "answers": ["1"], "kind": "form"},
    {"question": "why 🙂", "answers": ["a"]},
]
CALIBRATION: list[dict[str, Any]] = [
    {"image": "a.png", "question": "Total?", "answers": ["9.90"]},
    {"text": "one two"},
    {"prompt": "p", "answer": "a"},
    {"messages": [{"role": "user", "content": "c"}]},
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    10**40,
    1e308,
    "",
    " ",
    "\0",
    "\ud800",
    "x" * 5000,
    "../a.png",
    "/etc/passwd",
    [],
    {},
]
VALUES += ["image.png/../a.png", ".", "a.png\0", "\u202e", [[]], {"a": {}}, ["a.png"] * 300, "a" * 300, "~", "-"]


def case(number: int) -> tuple[bytes, bool]:
    """A file, and whether it is of evaluation."""
    source = random.Random(number)
    of_task = source.random() < 0.5
    lines = [dict(line) for line in (TASK if of_task else CALIBRATION)]
    if source.random() < 0.5:
        line = source.choice(lines)
        line[source.choice([*line, "kind", "other"])] = source.choice(VALUES)
        return "\n".join(map(json.dumps, lines)).encode(source.choice(("utf-8", "utf-16", "utf-8-sig"))), of_task
    content = source.choice(("\n", "\r\n", "\n\n")).join(json.dumps(line, ensure_ascii=False) for line in lines)
    return mutated(
        content.encode(source.choice(("utf-8", "utf-8", "utf-16", "utf-32", "latin-1")), "replace"), source
    ), of_task


def lines_are_read_or_refused(tmp_path: Path, count: int) -> None:
    picture(40, 30).save(tmp_path / "a.png")
    path, ends = tmp_path / "lines.jsonl", set()
    with recorded_processes() as started:
        for number in range(count):
            content, of_task = case(number)
            path.write_bytes(content)
            try:
                ends.add(attempt(lambda: read(path) if of_task else JsonlSamples(path), UserError))  # noqa: B023
            except BaseException as error:
                error.add_note(f"case {number}")
                raise
    assert started == []
    assert ends == {"read", "refused"}


def read(path: Path) -> None:
    task = JsonlTask(path)
    for index in range(len(task)):
        task.example(index)


def test_damaged_lines_are_read_or_refused(tmp_path: Path) -> None:
    lines_are_read_or_refused(tmp_path, SMALL)


@pytest.mark.slow
def test_many_damaged_lines_are_read_or_refused(tmp_path: Path) -> None:
    lines_are_read_or_refused(tmp_path, LARGE)


KEYS = "{" + ",".join(f'"k{index}": 1' for index in range(60_000)) + "}"
COSTLY: dict[str, bytes] = {
    "60,000 keys": KEYS.encode(),
    "60,000 keys in an answer": f'{{"question": "q", "answers": [{KEYS}]}}'.encode(),
    "the same key 60,000 times": ("{" + ",".join(['"question": "q"'] * 60_000) + "}").encode(),
    "60,000 answers of the wrong type": f'{{"question": "q", "answers": {json.dumps([1] * 60_000)}}}'.encode(),
    "60,000 bad lines": b"{\n" * 60_000,
    "brackets": b"[" * 100_000 + b"]" * 100_000,
    "a long integer": b'{"question": ' + b"9" * 1_000_000 + b"}",
    "a line without end": b'{"question": "' + b"x" * 20_000_000,
    "a key of a megabyte": b'{"' + b"k" * 1_000_000 + b'": 1}',
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_lines_are_refused_in_seconds_and_few_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(COSTLY[name])
    for opened in (JsonlTask, JsonlSamples):
        began = time.process_time()
        with pytest.raises(UserError) as error:
            opened(path)
        assert time.process_time() - began < 5
        assert len(error.value.cause) < 5000


def test_a_sparse_file_a_directory_and_a_device_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "directory.jsonl").mkdir()
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    for name in ("sparse", "directory", "device"):
        with pytest.raises(UserError) as error:
            JsonlTask(tmp_path / f"{name}.jsonl")
        assert error.value.code == "task.unreadable"


def commands_end_well(package: Path, scratch: Path, numbers: range) -> None:
    picture(40, 30).save(scratch / "a.png")
    with commands(scratch) as child:
        for number in numbers:
            content, _ = case(number)
            (scratch / "lines.jsonl").write_bytes(content)
            check(child.run("eval", package, "--task", "lines.jsonl", "--max-new-tokens", "1"))
    assert {path.name for path in scratch.iterdir()} == {"a.png", "lines.jsonl"}


def test_commands_with_damaged_lines_end_well(tmp_path: Path, tiny_w4a16: Path) -> None:
    commands_end_well(tiny_w4a16, tmp_path, range(15))


@pytest.mark.slow
def test_many_commands_with_damaged_lines_end_well(tmp_path: Path, tiny_w4a16: Path) -> None:
    commands_end_well(tiny_w4a16, tmp_path, range(100_000, 100_100))
