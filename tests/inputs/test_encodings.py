"""Texts in the encodings that editors write: read where a byte order mark says what they are, else refused by byte."""

import json
from pathlib import Path

import pytest

from hvlc.calibration.text_windows import read_texts
from hvlc.errors import UserError
from hvlc.evaluation.jsonl import JsonlTask
from hvlc.files.reading import read_text
from hvlc.recipes.loading import load_recipe, recipe_path

TEXT = "Größe 9,90 € 漢字 🙂"
MARKED = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
BIG_ENDIAN = {"utf-16-be": b"\xfe\xff", "utf-32-be": b"\0\0\xfe\xff"}


@pytest.mark.parametrize("encoding", [*MARKED, *BIG_ENDIAN])
def test_a_text_is_read_in_its_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(BIG_ENDIAN.get(encoding, b"") + TEXT.encode(encoding))
    assert read_text(path, "a.b", limit=1000) == TEXT
    assert read_texts([path]) == [TEXT]


@pytest.mark.parametrize("encoding", [*MARKED, *BIG_ENDIAN])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_are_read_in_their_encoding(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"question": f"{TEXT} {n}", "answers": ["a"]}, ensure_ascii=False) for n in range(3)]
    path.write_bytes(BIG_ENDIAN.get(encoding, b"") + "".join(line + end for line in lines).encode(encoding))
    task = JsonlTask(path)
    assert [task.example(index).question for index in range(3)] == [f"{TEXT} {n}" for n in range(3)]


@pytest.mark.parametrize("encoding", MARKED)
def test_a_recipe_is_read_in_its_encoding(tmp_path: Path, encoding: str) -> None:
    text = recipe_path("w4a16-rtn").read_text("utf-8").replace("\n", "\r\n")
    (tmp_path / "a.yaml").write_bytes(text.encode(encoding))
    assert load_recipe(str(tmp_path / "a.yaml")) == load_recipe("w4a16-rtn")


WRONG = {
    "latin-1": ("Größe".encode("latin-1"), "UTF-8: invalid start byte at byte 2"),
    "utf-16 without a mark, not ASCII": ("aé漢".encode("utf-16-le"), "UTF-8: "),
    "utf-16 cut short": ("ab".encode("utf-16")[:-1], "UTF-16: truncated data at byte 4"),
    "half a character": (b"a\xed\xa0\x80", "UTF-8: invalid continuation byte at byte 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_encoding_is_refused_with_the_byte(tmp_path: Path, case: str) -> None:
    content, complaint = WRONG[case]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_text(tmp_path / "a.txt", "a.b", limit=1000)
    assert error.value.code == "a.b"
    assert f"is not {complaint}" in error.value.cause
