"""The wide edition: the same everywhere, answerable, of many sizes, and what the splits promise."""

import numpy as np
import pytest

from hvlc.zoo import documents
from hvlc.zoo.documents import KINDS, SPLITS, Document
from hvlc.zoo.editions import EDITIONS
from hvlc.zoo.pages import LONGEST_SIDE, SIZES, examples, render, render_sheet


@pytest.fixture(scope="module")
def some() -> list[Document]:
    return [render("train", index) for index in range(200)]


def test_same_arguments_draw_the_same_pixels() -> None:
    first, second = render("heldout", 17), render("heldout", 17)
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.lines, first.questions, first.glyphs) == (second.lines, second.questions, second.glyphs)


def test_splits_sheets_and_editions_share_nothing() -> None:
    seen = [draw(split, index) for draw in (render, documents.render) for split in SPLITS for index in range(25)]
    seen += [render_sheet("train", index) for index in range(10)]
    assert len({document.image.tobytes() for document in seen}) == len(seen)


@pytest.mark.parametrize(("split", "index"), [("test", 0), ("train", -1)])
def test_unknown_pages_are_refused(split: str, index: int) -> None:
    with pytest.raises(ValueError, match=r"unknown split|negative"):
        render(split, index)


def test_access_is_random() -> None:
    later = [page for page, _ in examples("calibration", 3, start=5)]
    assert later[2].image.tobytes() == render("calibration", 7).image.tobytes()


def test_answers_stand_in_lines_of_their_size(some: list[Document]) -> None:
    for page in some:
        assert len(page.questions) >= 2
        assert len(page.lines) == len(page.line_sizes)
        for question in page.questions:
            sizes = {size for line, size in zip(page.lines, page.line_sizes, strict=True) if question.answer in line}
            assert question.text_size in sizes


def test_no_question_has_two_answers(some: list[Document]) -> None:
    for page in some:
        answers: dict[str, str] = {}
        for question in page.questions:
            assert answers.setdefault(question.text.lower(), question.answer) == question.answer


def test_glyphs_lie_in_the_image_and_spell_the_lines(some: list[Document]) -> None:
    for page in some:
        width, height = page.image.size
        assert max(width, height) <= LONGEST_SIDE
        assert all(0 <= glyph.x0 < glyph.x1 <= width for glyph in page.glyphs)
        assert all(0 <= glyph.y0 < glyph.y1 <= height for glyph in page.glyphs)
        assert "".join(glyph.char for glyph in page.glyphs) == "".join(page.lines).replace(" ", "")


def test_pages_have_what_the_narrow_edition_lacks(some: list[Document]) -> None:
    sizes = {size for page in some for size in page.line_sizes}
    assert min(sizes) == SIZES["small"][0] == 8
    assert 36 <= max(sizes) <= SIZES["heading"][1] == 40
    mixed = [max(page.line_sizes) >= 2 * min(page.line_sizes) for page in some]
    assert np.mean(mixed) > 0.5
    assert max(max(page.image.size) for page in some) > 450
    assert {page.kind for page in some} == set(KINDS)


def test_sheets_have_one_size_each() -> None:
    sheets = [render_sheet("train", index) for index in range(60)]
    assert all(len(set(sheet.line_sizes)) == 1 and not sheet.questions for sheet in sheets)
    assert len({sheet.text_size for sheet in sheets}) > 15


def test_editions_have_names() -> None:
    assert list(EDITIONS) == ["narrow", "wide"]
    assert EDITIONS["wide"].render("heldout", 3).lines == render("heldout", 3).lines
