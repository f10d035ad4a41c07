"""Every source of calibration inputs, and every way in which one can be wrong."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvlc.calibration.samples import CalibrationSet, ImageSample, TextSample
from hvlc.calibration.sources import QUESTION, Model, open_set
from hvlc.errors import UserError
from hvlc.zoo import documents
from tests.calibration.conftest import END
from tests.helpers.tiny import picture

WORDS = "the quick brown fox jumps over the lazy dog and runs away "


def failure(source: object, model: Model, **options: Any) -> UserError:
    with pytest.raises(UserError) as error:
        open_set(str(source), model, **options)
    return error.value


def texts(found: CalibrationSet) -> list[str]:
    """The samples as text, special tokens shown as "#"."""
    assert all(isinstance(s, TextSample) for s in found.samples)
    return [bytes(i if i < 256 else ord("#") for i in s.ids.tolist()).decode() for s in found.samples]  # type: ignore[union-attr]


def lines(folder: Path, *content: object) -> Path:
    path = folder / "inputs.jsonl"
    path.write_text("".join((c if isinstance(c, str) else json.dumps(c)) + "\n" for c in content), "utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        picture(20 + number, 30, number).save(folder / f"{number}.png")
    return folder


def test_a_text_file_is_cut_into_windows(tmp_path: Path, reading: Model) -> None:
    (tmp_path / "prose.txt").write_text(WORDS * 40)
    found = open_set(str(tmp_path / "prose.txt"), reading, samples=8, tokens=16)
    assert (found.name, len(found.samples), found.notes) == ("prose", 8, ())
    assert all(len(text) == 16 and text in WORDS * 2 for text in texts(found))


def test_the_texts_of_a_directory_follow_each_other(tmp_path: Path, reading: Model) -> None:
    folder = tmp_path / "prose"
    folder.mkdir()
    (folder / "b.TXT").write_text("second " * 4)
    (folder / "a.txt").write_text("first " * 4)
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "notes.md").write_text("other")
    found = open_set(str(folder), reading, samples=100, tokens=9)
    assert "".join(texts(found)) == ("first " * 4 + "\n\n" + "second " * 4)[: 9 * len(found.samples)]
    assert found.notes == ("100 samples were asked for, and the source has 6",)


def test_the_built_in_text_needs_no_file(reading: Model) -> None:
    found = open_set("text", reading)
    assert len(found.samples) == 128
    assert {len(s.ids) for s in found.samples if isinstance(s, TextSample)} == {512}


def test_documents_are_asked_and_answered(seeing: Model) -> None:
    found = open_set("documents", seeing, samples=6)
    assert len(found.images) == 6
    for sample in found.images:
        assert sample.answer is not None
        assert sample.prompt is not None
        assert sample.kind in documents.KINDS
        assert sample.prompt.after.tolist()[-1 - len(sample.answer) :] == [*sample.answer.encode(), END]
        pixels = sample.picture.pixels()
        assert pixels.shape == (sample.picture.height, sample.picture.width, 3)
        assert pixels.dtype == np.uint8


def test_documents_are_none_of_the_held_out_ones(seeing: Model) -> None:
    held_out = {np.asarray(d.image).tobytes() for d, _ in documents.examples("heldout", 64)}
    found = {sample.picture.pixels().tobytes() for sample in open_set("documents", seeing, samples=64).images}
    assert len(found) == 64
    assert not found & held_out
    assert all("heldout" not in repr(s.picture) for s in open_set("documents", seeing, samples=4).images)


def test_a_directory_of_images_has_a_question(images: Path, seeing: Model) -> None:
    found = open_set(str(images), seeing, samples=3)
    assert [s.picture.height for s in found.images] == [20, 22, 24]
    assert {(s.question, s.answer) for s in found.images} == {(QUESTION, None)}
    assert found.images[1].picture.pixels().tolist() == np.asarray(picture(22, 30, 2)).tolist()


def test_images_are_loaded_when_they_are_asked_for(images: Path, seeing: Model) -> None:
    found = open_set(str(images), seeing)
    (images / "1.png").unlink()
    assert found.images[0].picture.pixels().shape == (20, 30, 3)
    with pytest.raises(UserError) as error:
        found.images[1].picture.pixels()
    assert error.value.code == "image.missing"


def test_an_encoder_alone_takes_images_without_tokens(images: Path, looking: Model) -> None:
    assert [s.prompt for s in open_set(str(images), looking).images] == [None] * 5
    assert [s.prompt for s in open_set("documents", looking, samples=2).images] == [None] * 2


def test_lines_say_what_they_are(images: Path, seeing: Model) -> None:
    path = lines(
        images,
        {"text": "Plain."},
        {"prompt": "Why?", "answer": "So."},
        "",
        {"prompt": "Why?", "kind": "riddle"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
        {"image": "1.png", "question": "Total?", "answers": ["9.90", "9,90"], "kind": "receipt"},
        {"image": "1.png", "question": "Total?", "answer": "1"},
        {"image": "2.png", "question": "Total?"},
    )
    found = open_set(str(path), seeing, tokens=40)
    assert [s.kind for s in found.samples] == ["text", "prompt", "riddle", "messages", "receipt", "other", "other"]
    assert [s.answer for s in found.images] == ["9.90", "1", None]
    told = texts(CalibrationSet("", found.samples[:4]))
    assert told == ["Plain.", "#Why?##So.#", "#Why?##", "#Hi##Yes#"]


def test_long_lines_are_cut_and_counted(tmp_path: Path, reading: Model) -> None:
    path = lines(tmp_path, {"text": "a" * 9}, {"text": "b" * 8}, {"text": "c" * 20})
    found = open_set(str(path), reading, samples=3, tokens=8)
    assert texts(found) == ["a" * 8, "b" * 8, "c" * 8]
    assert found.notes == ("2 of 3 cut to 8 tokens",)


def test_lines_are_taken_at_even_distances(tmp_path: Path, reading: Model) -> None:
    path = lines(tmp_path, *[{"text": f"{number:02d}"} for number in range(100)])
    assert texts(open_set(str(path), reading, samples=4)) == ["12", "37", "62", "87"]


def test_the_same_source_has_the_same_digest(images: Path, seeing: Model, tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text(WORDS * 40)
    for source in ("documents", "text", images, tmp_path / "prose.txt"):
        first, second = (open_set(str(source), seeing, samples=4, tokens=64) for _ in range(2))
        assert first.digest == second.digest
        assert first.digest != open_set(str(source), seeing, samples=3, tokens=64).digest


def test_a_changed_image_changes_the_digest(images: Path, seeing: Model) -> None:
    before = open_set(str(images), seeing).digest
    os.utime(images / "1.png", (1, 1))
    assert open_set(str(images), seeing).digest == before
    with (images / "1.png").open("ab") as file:
        file.write(b"\0")
    assert open_set(str(images), seeing).digest != before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "is not an object"),
        ({"txt": "a"}, "none of image, messages, prompt, text is given"),
        ({"text": "a", "txt": "a"}, "txt: Extra inputs"),
        ({"text": " "}, "text: "),
        ({"text": 3}, "text: Input should be a valid string"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "messages.0.content: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"prompt": "a", "answer": "b", "answers": ["b"]}, "both given"),
        ({"prompt": "a", "answers": []}, "answers: "),
        ({"image": "1.png"}, "question: Field required"),
        ({"image": "none.png", "question": "q"}, "does not exist"),
        ({"image": "../outside.png", "question": "q"}, "is outside"),
        ({"image": "link.png", "question": "q"}, "is outside"),
        ({"image": "inputs.jsonl", "question": "q"}, "not an image of these formats"),
        ('{"text": "a", "text": "b"}', "'text' is given twice"),
        ("[" * 100_000, "64 levels"),
    ],
)
def test_a_wrong_line_is_named(images: Path, seeing: Model, line: object, reason: str) -> None:
    picture(9, 9).save(images.parent / "outside.png")
    (images / "link.png").symlink_to(images.parent / "outside.png")
    error = failure(lines(images, {"text": "good"}, line, {"text": "good"}), seeing)
    assert error.code == "calibration.invalid"
    assert "line 2: " in error.cause
    assert "line 1: " not in error.cause
    assert reason in error.cause


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path, reading: Model) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
    error = failure(tmp_path / "a.jsonl", reading)
    assert error.code == "calibration.invalid"
    assert "line 2: not UTF-8" in error.cause


def test_the_first_wrong_lines_are_named_and_the_rest_counted(tmp_path: Path, reading: Model) -> None:
    error = failure(lines(tmp_path, *["{"] * 13), reading)
    assert "line 10: " in error.cause
    assert "line 11: " not in error.cause
    assert error.cause.endswith("and 3 more")


def test_broken_images_are_found_at_once(images: Path, seeing: Model) -> None:
    for number in (1, 3):
        content = (images / f"{number}.png").read_bytes()
        (images / f"{number}.png").write_bytes(content[: len(content) // 2])
    asked = [{"image": f"{number}.png", "question": "q"} for number in range(5)]
    for source in (lines(images, *asked), images):
        problems = failure(source, seeing).problems
        assert [p.code for p in problems] == ["image.unreadable"] * 2
        assert ["1.png" in problems[0].cause, "3.png" in problems[1].cause] == [True, True]
    named = failure(lines(images, *asked), seeing).problems
    assert ["line 2: " in named[0].cause, "line 4: " in named[1].cause] == [True, True]


def test_lines_whose_template_fails_are_found_at_once(tmp_path: Path, seeing: Model) -> None:
    bad = {"image": "a.png", "question": "<|image_pad|>"}
    picture(9, 9).save(tmp_path / "a.png")
    error = failure(lines(tmp_path, bad, {"text": "good"}, bad), seeing)
    assert [p.code for p in error.problems] == ["calibration.placeholder"] * 2
    assert "line 3: " in error.problems[1].cause


def test_one_sample_is_refused(tmp_path: Path, seeing: Model, reading: Model) -> None:
    (tmp_path / "one.txt").write_text("a" * 63)
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    for found in (
        failure(tmp_path / "one.txt", reading, tokens=32),
        failure(lines(tmp_path, {"text": "a"}), reading),
        failure(folder, seeing),
        failure("documents", seeing, samples=1),
    ):
        assert found.code == "calibration.one_sample"
        assert "1 sample " in found.cause
        assert "16 at least" in found.fix


def test_nothing_is_refused(tmp_path: Path, reading: Model) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "empty").mkdir()
    for name in ("empty.txt", "empty.jsonl", "empty"):
        assert failure(tmp_path / name, reading).code == "calibration.empty"


def test_a_text_below_one_window_is_refused(tmp_path: Path, reading: Model) -> None:
    (tmp_path / "short.txt").write_text("a" * 31)
    assert failure(tmp_path / "short.txt", reading, tokens=32).code == "calibration.too_short"


@pytest.mark.parametrize("tokens", [0, -3, 1025])
def test_windows_of_an_impossible_length_are_refused(reading: Model, tokens: int) -> None:
    assert failure("text", reading, tokens=tokens).code == "calibration.tokens"


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl"])
def test_a_missing_file_is_refused(tmp_path: Path, reading: Model, name: str) -> None:
    assert failure(tmp_path / name, reading).code == "calibration.unreadable"


def test_a_directory_of_both_is_refused(images: Path, seeing: Model) -> None:
    (images / "a.txt").write_text("a")
    assert failure(images, seeing).code == "calibration.mixed"


def test_an_unknown_source_has_a_nearest_one(reading: Model) -> None:
    error = failure("document", reading)
    assert error.code == "calibration.unknown"
    assert "did you mean 'documents'?" in error.fix
    assert ".jsonl" in error.fix
    assert failure("", reading).code == "calibration.unknown"


def test_images_are_refused_where_none_are_seen(images: Path, reading: Model) -> None:
    for source in ("documents", images, lines(images, {"text": "a"}, {"image": "1.png", "question": "q"})):
        assert failure(source, reading).code == "calibration.modality"


def test_text_is_refused_where_encoders_are_calibrated(tmp_path: Path, seeing: Model) -> None:
    (tmp_path / "prose.txt").write_text(WORDS * 40)
    whole = dataclasses.replace(seeing, calibrates_encoders=True)
    for source in ("text", tmp_path / "prose.txt", lines(tmp_path, {"text": "a"}, {"text": "b"})):
        assert len(open_set(str(source), seeing, samples=2, tokens=16).samples) == 2
        assert failure(source, whole).code == "calibration.modality"
    assert len(open_set("documents", whole, samples=2).images) == 2


def test_text_is_refused_where_only_images_are_read(tmp_path: Path, looking: Model) -> None:
    (tmp_path / "prose.txt").write_text(WORDS * 40)
    for source in ("text", tmp_path / "prose.txt", lines(tmp_path, {"text": "a"}, {"text": "b"})):
        assert failure(source, looking).code == "calibration.modality"


def test_samples_of_one_file_share_its_digest(images: Path, seeing: Model) -> None:
    path = lines(images, *[{"image": "1.png", "question": q} for q in "ab"])
    first, second = open_set(str(path), seeing).images
    assert isinstance(first, ImageSample)
    assert first.picture is second.picture
