import json
from pathlib import Path

import pytest
from PIL import Image

from hvlc.errors import UserError
from hvlc.evaluation.jsonl import JsonlTask
from hvlc.evaluation.tasks import open_task

GOOD = {"image": "a.png", "question": "Total?", "answers": ["9.90", "9,90"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "task"
    inside.mkdir()
    Image.new("L", (5, 4), 80).save(inside / "a.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "outside.png")
    return inside


def write(folder: Path, *lines: object) -> Path:
    path = folder / "receipts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def failure(path: Path) -> UserError:
    with pytest.raises(UserError) as error:
        JsonlTask(path)
    return error.value


def test_lines_become_examples(folder: Path) -> None:
    task = open_task(str(write(folder, GOOD, "", {**GOOD, "question": " Größe? ", "kind": "form"})))
    assert (task.name, len(task)) == ("receipts", 2)
    first, second = task.example(0), task.example(1)
    assert (first.id, first.kind, first.answers) == ("line-1", "other", ("9.90", "9,90"))
    assert (second.id, second.kind, second.question) == ("line-3", "form", "Größe?")
    assert (first.images[0].mode, first.images[0].size) == ("RGB", (5, 4))


def test_a_line_may_show_several_images_or_none(folder: Path) -> None:
    Image.new("RGB", (7, 8)).save(folder / "b.png")
    text = {"question": "q", "answers": ["a"]}
    task = JsonlTask(write(folder, {**text, "images": ["b.png", "a.png"]}, text))
    assert [[image.size for image in task.example(index).images] for index in (0, 1)] == [[(7, 8), (5, 4)], []]
    assert task.shows_images
    assert not JsonlTask(write(folder, text, text)).shows_images


def test_a_photo_is_turned_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (5, 4)).save(folder / "photo.jpg", exif=exif)
    assert JsonlTask(write(folder, {**GOOD, "image": "photo.jpg"})).example(0).images[0].size == (4, 5)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "the line: "),
        ({**GOOD, "answer": "x"}, "answer: Extra inputs"),
        ({"image": "a.png", "question": "q"}, "answers: Field required"),
        ({**GOOD, "answers": "9.90"}, "answers: Input should be a valid list"),
        ({**GOOD, "answers": []}, "answers: List should have at least 1"),
        ({**GOOD, "answers": [" "]}, "answers.0: "),
        ({**GOOD, "answers": [9.9]}, "answers.0: Input should be a valid string"),
        ({**GOOD, "question": ""}, "question: "),
        ('{"image": "a.png", "image": "a.png", "question": "q", "answers": ["a"]}', "'image' is given twice"),
        ({**GOOD, "image": "missing.png"}, "does not exist"),
        ({**GOOD, "image": "."}, "does not exist"),
        ({**GOOD, "image": "../outside.png"}, "is outside"),
        ({**GOOD, "image": "link.png"}, "is outside"),
        ({**GOOD, "image": "/etc/passwd"}, "is outside"),
        ({**GOOD, "images": ["a.png"]}, "give image or images"),
        ({"images": [], "question": "q", "answers": ["a"]}, "images: List should have at least 1"),
        ({"images": ["a.png", "missing.png"], "question": "q", "answers": ["a"]}, "'missing.png' does not exist"),
        ({**GOOD, "image": "nul\0.png"}, "null"),
        ({**GOOD, "image": "receipts.jsonl"}, "not an image of these formats"),
    ],
)
def test_a_bad_line_is_named(folder: Path, line: object, reason: str) -> None:
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    error = failure(write(folder, GOOD, line))
    assert error.code == "task.invalid"
    assert "line 2: " in error.cause
    assert "line 1: " not in error.cause
    assert reason in error.cause


def test_all_bad_lines_are_found_before_the_work(folder: Path) -> None:
    error = failure(write(folder, *["{"] * 12, GOOD))
    assert "line 1: " in error.cause
    assert "line 10: " in error.cause
    assert "line 11: " not in error.cause
    assert error.cause.endswith("and 2 more")


@pytest.mark.parametrize("lines", [(), ("", "  ")])
def test_an_empty_file_is_an_error(folder: Path, lines: tuple[str, ...]) -> None:
    assert failure(write(folder, *lines)).code == "task.empty"


def test_a_missing_file_is_an_error(folder: Path) -> None:
    assert failure(folder / "none.jsonl").code == "task.unreadable"


def test_an_image_that_is_cut_short_is_named_when_it_is_read(folder: Path) -> None:
    Image.effect_noise((64, 64), 90).save(folder / "cut.png")
    data = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    task = JsonlTask(write(folder, {**GOOD, "image": "cut.png"}))
    with pytest.raises(UserError, match=r"line 1: .*truncated"):
        task.example(0)
