"""A journal gives back exactly what an earlier run of the same work left, and nothing else."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.evaluation.journal import Journal
from hvlc.results import ScoredWindow

WORK = {"task": "text", "package": "0" * 64}


def opened(path: Path | None, work: dict[str, str] = WORK) -> Journal[ScoredWindow]:
    return Journal(path, work, ScoredWindow)


def window(index: int) -> ScoredWindow:
    return ScoredWindow(nll=1.5 + index, tokens=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with three results."""
    path = tmp_path / "w.journal.jsonl"
    journal = opened(path)
    assert journal.found == 0
    for index, peak in enumerate((100, 300, 200)):
        journal.add(index, f"digest {index}", window(index), peak)
    journal.close()
    return path


def found(path: Path, work: dict[str, str] = WORK) -> list[ScoredWindow | None]:
    journal = opened(path, work)
    results = [journal.find(index, f"digest {index}") for index in range(4)]
    journal.close()
    return results


def test_what_was_added_is_found(path: Path) -> None:
    assert found(path) == [window(0), window(1), window(2), None]
    journal = opened(path)
    assert (journal.found, journal.peak_memory_bytes) == (3, 300)
    journal.discard()
    assert not path.exists()


def test_each_result_is_on_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    journal = opened(tmp_path / "w")
    for index in range(3):
        journal.add(index, f"digest {index}", window(index))
        assert len((tmp_path / "w").read_bytes().splitlines()) == index + 2
    journal.close()


def test_other_work_begins_anew(path: Path) -> None:
    assert found(path, WORK | {"package": "1" * 64}) == [None] * 4
    assert found(path) == [None] * 4  # and the old results are gone: a journal is never mixed


def test_a_result_answers_its_own_digest_alone(path: Path) -> None:
    journal = opened(path)
    assert journal.find(1, "another example") is None
    journal.add(1, "another example", window(7))
    journal.close()
    journal = opened(path)
    assert journal.find(1, "another example") == window(7)
    assert journal.find(1, "digest 1") is None
    assert journal.find(2, "digest 2") == window(2)
    journal.close()


@given(st.integers(0, 10_000))
def test_a_file_that_was_cut_anywhere_gives_back_its_whole_lines(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w"
        journal = opened(path)
        for index in range(3):
            journal.add(index, f"digest {index}", window(index))
        journal.close()
        content = path.read_bytes()
        path.write_bytes(content[: cut % (len(content) + 1)])
        whole = max(0, path.read_bytes().count(b"\n") - 1)
        assert found(path) == [window(i) if i < whole else None for i in range(4)]
        journal = opened(path)
        journal.add(whole, f"digest {whole}", window(whole))
        journal.close()
        assert found(path)[: whole + 1] == [window(i) for i in range(whole + 1)]
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


@pytest.mark.parametrize("line", ["{", "[]", '{"index": 2}', '{"index": 2, "digest": "d", "peak": null, "result": {}}'])
def test_a_line_that_is_no_result_is_passed_over(path: Path, line: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    assert found(path) == [window(0), window(1), window(2), None]
    journal = opened(path)
    journal.add(3, "digest 3", window(3))
    journal.close()
    assert found(path) == [window(index) for index in range(4)]


def test_a_journal_without_a_file_keeps_nothing() -> None:
    journal = opened(None)
    journal.add(0, "digest 0", window(0), 50)
    assert journal.find(0, "digest 0") is None
    assert journal.peak_memory_bytes == 50
    journal.discard()


def test_an_unwritable_place_has_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"results\.unwritable"):
        opened(tmp_path / "file" / "w")


HOSTILE = {
    "brackets": b"[" * 100_000,
    "a long integer": b'{"index": ' + b"9" * 5000 + b"}",
    "a list": b"[1, 2]",
    "a number": b"1",
    "a number beyond a float": b'{"index": 1, "digest": "", "peak": null, "result": {"nll": 1e999, "tokens": 3}}',
    "no line end for megabytes": b"x" * 9_000_000,
    "not UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_line_that_no_run_wrote_is_passed_over(path: Path, case: str) -> None:
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + rest[0] + HOSTILE[case] + b"\n" + rest[1])
    assert found(path) == [window(0), window(1), None, None]


def test_a_damaged_line_loses_its_own_result_alone(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * len(lines[2][:-1]) + b"\n", *lines[3:]]))
    assert found(path) == [window(0), None, window(2), None]
    journal = opened(path)
    journal.add(1, "digest 1", window(1))
    journal.close()
    assert found(path) == [window(0), window(1), window(2), None]


def test_a_journal_that_is_not_a_file_is_refused(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError) as error:
        opened(path)
    assert error.value.code.startswith("results.")
