"""The documents: the same everywhere, answerable, and what the splits promise."""

from __future__ import annotations

import pytest

from hvlc.zoo.documents import KINDS, LONGEST_SIDE, SPLITS, TEXT_SIZES, examples, render, render_sheet, split_digest

#: Regenerate (and retrain hypervl-nano) when the generator changes on purpose.
DIGESTS = {
    "train": "0285fa16d59fbfc89529994b3fdaa94e7ad07d71b14a319334d326b643573319",
    "calibration": "47cef39bdccf269819f186c280cc61ae33767d7af08e0d053927510ad8a9afd2",
    "heldout": "4e45d9fe202ec54259395f510d5b381515a8c78df78d4cadcefed4a05eb76ca5",
}


@pytest.fixture(scope="module")
def some():
    return [render("train", index) for index in range(120)]


@pytest.mark.parametrize("split", SPLITS)
def test_digest_is_the_one_the_checkpoint_was_trained_on(split):
    assert split_digest(split, 64) == DIGESTS[split]


def test_same_arguments_draw_the_same_pixels():
    first, second = render("heldout", 17), render("heldout", 17)
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.lines, first.questions, first.glyphs) == (second.lines, second.questions, second.glyphs)


def test_splits_and_sheets_share_nothing():
    seen = [render(split, index).image.tobytes() for split in SPLITS for index in range(40)]
    seen += [render_sheet("train", index).image.tobytes() for index in range(10)]
    assert len(set(seen)) == len(seen)


def test_access_is_random():
    documents = [document for document, _ in examples("calibration", 3, start=5)]
    assert documents[2].image.tobytes() == render("calibration", 7).image.tobytes()


def test_pixels_count_in_the_digest_only_when_asked():
    assert split_digest("train", 2) != split_digest("train", 2, pixels=True)


def test_answers_stand_in_the_lines(some):
    for document in some:
        assert len(document.questions) >= 2
        for question in document.questions:
            assert any(question.answer in line for line in document.lines)


def test_no_question_has_two_answers(some):
    for document in some:
        answers = {}
        for question in document.questions:
            assert answers.setdefault(question.text.lower(), question.answer) == question.answer


def test_glyphs_lie_in_the_image_and_spell_the_lines(some):
    for document in some:
        width, height = document.image.size
        assert max(width, height) <= LONGEST_SIDE
        assert TEXT_SIZES[0] <= document.text_size <= TEXT_SIZES[1]
        for glyph in document.glyphs:
            assert 0 <= glyph.x0 < glyph.x1 <= width
            assert 0 <= glyph.y0 < glyph.y1 <= height
        spelled = "".join(glyph.char for glyph in document.glyphs)
        assert spelled == "".join(document.lines).replace(" ", "")


def test_every_kind_is_drawn(some):
    assert {document.kind for document in some} == set(KINDS)


def test_text_is_ascii(some):
    for document in some:
        for line in document.lines:
            assert line.isascii()
            assert line.isprintable()


def test_unknown_split_and_negative_index_are_refused():
    with pytest.raises(ValueError, match="train, calibration, heldout"):
        render("test", 0)
    with pytest.raises(ValueError, match="negative"):
        render("train", -1)
