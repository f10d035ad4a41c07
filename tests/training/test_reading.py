"""Dense targets: the character under each point of a patch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hvlc.training import reading  # noqa: E402
from hvlc.training.nano import nano_config, nano_processor  # noqa: E402
from hvlc.zoo.documents import Glyph, render, render_sheet  # noqa: E402


def test_points_between_the_sides_take_the_character():
    glyphs = [Glyph("A", 0, 0, 8, 8), Glyph("b", 8, 0, 13, 16)]
    targets = reading.patch_targets(glyphs, (1.0, 1.0), (0, 0), (2, 2), 8)
    a, b = ord("A") - 32, ord("b") - 32
    assert targets.tolist() == [[[a, a], [b, 0]], [[0, 0], [b, 0]]]


def test_scale_and_offset_move_the_boxes():
    glyph = [Glyph("A", 32, 32, 48, 48)]
    targets = reading.patch_targets(glyph, (0.5, 0.5), (8.0, 16.0), (1, 2), 8)
    assert (targets > 0).tolist() == [[[False, False], [True, True]]]


def test_a_sliver_of_a_character_does_not_count():
    targets = reading.patch_targets([Glyph("A", 0, 6, 8, 16)], (1.0, 1.0), (0, 0), (2, 1), 8)
    assert (targets > 0).any(-1).ravel().tolist() == [False, True]


def test_tiles_are_row_major():
    raster = np.arange(16).reshape(4, 4)
    assert reading.to_tiles(raster, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_page_targets_lie_on_ink():
    processor = nano_processor(nano_config()).image_processor
    document = render("train", 4)
    seen = reading.page(document, 1.0, processor, 8)
    assert seen.targets.shape == (seen.tiles.shape[0], 256, 2)
    patches = torch.nn.functional.unfold(seen.tiles, 8, stride=8).std(1)
    marked = (seen.targets > 0).any(-1)
    assert patches[marked].mean() > 2 * patches[~marked].mean()
    shown = {chr(c + 32) for c in seen.targets.unique().tolist() if c}
    assert len(shown) > 5
    assert shown <= {glyph.char for glyph in document.glyphs}


def test_windows_are_drawn_from_the_seed():
    processor = nano_processor(nano_config()).image_processor
    first, second = (next(reading.windows("seed", processor, 8, 4)) for _ in range(2))
    assert first[0].shape == (4, 3, 128, 128)
    torch.testing.assert_close(first, second)


def test_text_stays_legible():
    import random

    rng = random.Random(0)
    for index in range(50):
        sheet = render_sheet("train", index)
        assert reading.random_scale(sheet, rng) * sheet.text_size >= reading.SMALLEST_TEXT - 1e-6
