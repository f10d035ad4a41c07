from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hvlc.calibration.balance import aspect, balance_of
from hvlc.calibration.samples import CalibrationSet, ImagePrompt, ImageSample, StoredPicture, TextSample
from hvlc.results.calibration_set import Spread, VisualSize
from tests.helpers.tiny import picture

PROMPT = ImagePrompt(np.zeros(3, np.int64), np.zeros(4, np.int64))


def text(length: int, kind: str = "text") -> TextSample:
    return TextSample(kind, np.zeros(length, np.int64))


@pytest.fixture
def images(tmp_path: Path) -> list[ImageSample]:
    found = []
    for number, (height, width) in enumerate([(20, 20), (20, 50), (50, 20), (20, 30)]):
        picture(height, width).save(tmp_path / f"{number}.png")
        opened = StoredPicture.open(tmp_path / f"{number}.png")
        found.append(ImageSample("photo", opened, "q", None, PROMPT))
    return found


def measure(height: int, width: int) -> VisualSize:
    """Tiles of 32 pixels, visual tokens of 10, rows of them ended by a token."""
    tiles, rows, columns = -(-height // 32) * -(-width // 32), -(-height // 10), -(-width // 10)
    return VisualSize(tiles, rows * columns, rows * (columns + 1), tiles * 32**2)


def warnings(samples: Sequence[TextSample | ImageSample]) -> tuple[str, ...]:
    return balance_of(CalibrationSet("a", tuple(samples))).warnings


@pytest.mark.parametrize(
    ("width", "height", "band"),
    [
        (49, 100, "below 1:2"),
        (50, 100, "1:2 to 4:5"),
        (79, 100, "1:2 to 4:5"),
        (80, 100, "4:5 to 5:4"),
        (124, 100, "4:5 to 5:4"),
        (125, 100, "5:4 to 2:1"),
        (199, 100, "5:4 to 2:1"),
        (200, 100, "from 2:1"),
        (5000, 1, "from 2:1"),
    ],
)
def test_bands_of_width_to_height(width: int, height: int, band: str) -> None:
    assert aspect(width, height) == band


def test_everything_is_counted(images: list[ImageSample]) -> None:
    inputs = CalibrationSet("mixed", (text(10), *images, text(3)))
    seen: list[int] = []
    found = balance_of(inputs, measure, seen.append)
    assert (found.name, found.samples, found.digest) == ("mixed", 6, inputs.digest)
    assert list(found.kinds.items()) == [("photo", 4), ("text", 2)]
    assert list(found.aspects.items()) == [("below 1:2", 1), ("4:5 to 5:4", 1), ("5:4 to 2:1", 1), ("from 2:1", 1)]
    assert found.tiles == Spread(1, 1.5, 2, 6)
    assert found.visual_tokens == Spread(4, 8.0, 10, 30)
    # 2 x (2 + 1), 2 x (5 + 1), 5 x (2 + 1), 2 x (3 + 1), each with 3 before and 4 after
    assert found.tokens == Spread(3, 14.0, 22, 10 + 3 + 13 + 19 + 22 + 15)
    assert seen == [1, 2, 3, 4]


def test_what_is_not_known_is_absent(images: list[ImageSample]) -> None:
    found = balance_of(CalibrationSet("mixed", (text(10), *images)))
    assert (found.tokens, found.tiles, found.visual_tokens) == (None, None, None)
    only = balance_of(CalibrationSet("text", (text(10), text(20))), measure)
    assert (only.tokens, only.tiles, only.visual_tokens) == (Spread(10, 15.0, 20, 30), None, None)
    assert only.aspects == {}


def test_few_samples_are_warned_of() -> None:
    assert warnings([text(9)] * 16) == ()
    assert warnings([text(9)] * 15) == ("15 samples are few: 16 at least are advised",)


def test_notes_of_the_set_are_passed_on() -> None:
    assert balance_of(CalibrationSet("a", (text(9),) * 16, ("3 of 16 cut",))).warnings == ("3 of 16 cut",)


def test_lopsided_kinds_are_warned_of() -> None:
    assert warnings([*[text(9, "a")] * 18, *[text(9, "b")] * 2]) == ()
    assert warnings([*[text(9, "a")] * 19, text(9, "b")]) == ("95 % are of one kind: a",)


def test_lopsided_images_are_warned_of(images: list[ImageSample]) -> None:
    square, wide = images[:2]
    assert warnings([*[square] * 18, *[wide] * 2]) == ()
    assert warnings([*[square] * 19, wide]) == ("95 % are of one aspect: 4:5 to 5:4",)
    found = balance_of(CalibrationSet("a", (*[square] * 19, images[2])), measure)
    assert "95 % are of one number of tiles: 1 tiles" in found.warnings
