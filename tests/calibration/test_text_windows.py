import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.calibration import text_windows as module
from hvlc.calibration.text_windows import builtin_text, evenly_spaced, read_texts, tokenized, windows
from hvlc.errors import UserError

MANY = st.integers(1, 400)


@given(MANY, MANY)
def test_positions_are_spread_evenly(available: int, wanted: int) -> None:
    found = evenly_spaced(available, wanted)
    assert len(found) == min(available, wanted)
    assert found == sorted(set(found))
    assert 0 <= found[0] <= found[-1] < available
    gaps = np.diff([-1 - found[0], *found, 2 * available - 1 - found[-1]])  # as if mirrored at both ends
    assert gaps.max() - gaps.min() <= 2


def places(text: str) -> list[int]:
    """An encoder whose tokens cannot be mistaken: each character of `numbered` text is its own place."""
    return [ord(c) - 1000 for c in text if c != " "]


def numbered(length: int, spaces: list[int]) -> str:
    characters = [chr(1000 + place) for place in range(length)]
    for at in sorted(spaces, reverse=True):
        characters.insert(at % (length + 1), " ")
    return "".join(characters)


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 30), st.lists(st.integers(0, 5000), max_size=200))
def test_windows_are_disjoint_stretches_of_the_text(
    characters: int, length: int, count: int, spaces: list[int]
) -> None:
    text = numbered(characters, spaces)
    found = windows(text, places, length, count)
    seen: list[int] = []
    for window in found:
        assert window.dtype == np.int64
        assert window.tolist() == list(range(window[0], window[0] + length))
        seen += window.tolist()
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen)
    assert all(0 <= place < characters for place in seen)
    assert len(found) == min(count, characters // length)


def test_windows_lie_over_the_whole_text() -> None:
    text = numbered(20000, list(range(0, 20000, 7)))
    for length, count in ((10, 8), (200, 8), (2000, 8)):  # a stretch for each, then the text as a whole
        starts = [window[0] for window in windows(text, places, length, count)]
        assert starts[0] < 20000 / 8
        assert starts[-1] > 20000 * 6 / 8


def test_a_long_text_is_not_tokenized_as_a_whole() -> None:
    asked: list[int] = []

    def encode(text: str) -> list[int]:
        asked.append(len(text))
        return places(text)

    windows(numbered(50_000, list(range(0, 50_000, 7))), encode, 10, 4)
    assert sum(asked) <= 4 * 10 * 10


@given(st.integers(1, 300), st.lists(st.integers(0, 400), max_size=60))
def test_pieces_lose_nothing_and_end_before_white_space(length: int, spaces: list[int]) -> None:
    text = numbered(length, spaces)
    pieces: list[str] = []

    def encode(piece: str) -> list[int]:
        pieces.append(piece)
        return places(piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", 16)
        assert tokenized(text, encode).tolist() == list(range(length))
    assert "".join(pieces) == text
    assert all(len(piece) <= 16 for piece in pieces)
    for piece, following in pairwise(pieces):
        assert following.startswith(" ") or " " not in piece[1:]


def test_every_wrong_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_text("good")
    with pytest.raises(UserError) as error:
        read_texts([tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "d.txt")])
    assert [p.code for p in error.value.problems] == [
        "calibration.encoding",
        "calibration.empty",
        "calibration.unreadable",
    ]
    assert "byte 3" in error.value.problems[0].cause


def test_a_text_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("word " * 30)
    monkeypatch.setattr(module, "_MOST_TEXT", 100)
    with pytest.raises(UserError) as error:
        read_texts([tmp_path / "a.txt"])
    assert error.value.code == "calibration.too_large"


def test_the_built_in_text_is_english_prose() -> None:
    text = builtin_text()
    assert len(text) > 300_000
    assert all(text.lower().count(f" {word} ") > 500 for word in ("the", "of", "is"))
    assert text.isprintable() or all(c.isprintable() or c == "\n" for c in text)


def test_a_python_without_help_topics_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError) as error:
        builtin_text()
    assert error.value.code == "calibration.no_text"
