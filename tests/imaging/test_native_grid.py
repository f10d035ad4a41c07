"""A native grid is that of Qwen2-VL's image processor, pixel for pixel."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from hvlc.imaging.native_grid import NativeGrid
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front

PATCH, MERGE, IMAGE, START, END = 4, 2, 7, 8, 9
CELL = PATCH * MERGE
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def rule(least: int, most: int) -> NativeGrid:
    resampling, normalization = Resampling("bicubic"), Normalization(MEAN, STD)
    return NativeGrid(CELL, least * CELL**2, most * CELL**2, resampling, normalization, IMAGE)


def processor(least: int, most: int) -> Qwen2VLImageProcessorPil:
    sizes = {"shortest_edge": least, "longest_edge": most}
    return Qwen2VLImageProcessorPil(
        size=sizes, patch_size=PATCH, merge_size=MERGE, image_mean=MEAN, image_std=STD, temporal_patch_size=2
    )


def assert_processors(pixels: np.ndarray, grid: list[int], image: Image.Image, least: int, most: int) -> None:
    """Compare with a processor of these bounds in pixels, which cuts patches in its own order."""
    asked = processor(least, most)
    expected = asked([image], return_tensors="np")
    assert [1, *(MERGE * side for side in grid)] == expected["image_grid_thw"][0].tolist()
    patches, *_ = asked.patchify(pixels[0], PATCH, MERGE, 2)
    np.testing.assert_array_equal(patches, expected["pixel_values"])


#: Fewest and most visual tokens: usual, few of which narrow images make more, and nearly equal.
RANGES = [(4, 400), (2, 16), (30, 32)]
FRONTS = {bounds: Front(rule(*bounds)) for bounds in RANGES}
sides = st.one_of(st.integers(1, 20), st.integers(1, 300))
ranges = st.sampled_from(RANGES)


@given(sides, sides, ranges)
@example(1, 1, (4, 400))
@example(4, 4, (4, 400))  # half a cell, rounded to even: nothing
@example(12, 20, (2, 16))  # 1.5 and 2.5 cells: two each
@example(160, 160, (4, 400))  # exact
@example(165, 160, (4, 400))
@example(1, 200, (2, 16))
@example(600, 3, (2, 16))
@example(2, 399, (30, 32))
@settings(max_examples=120)
def test_images_are_those_of_the_processor(h: int, w: int, bounds: tuple[int, int]) -> None:
    assume(max(h, w) <= 200 * min(h, w))
    image = picture(h, w)
    seen = FRONTS[bounds].run(image)
    least, most = (tokens * CELL**2 for tokens in bounds)
    assert_processors(seen.pixel_values, seen.grid, image, least, most)
    assert seen.image_ids == [IMAGE] * (seen.grid[0] * seen.grid[1])
    assert seen.used_scale == 1


@given(sides, sides, ranges, st.integers(1, 450), st.floats(0.0625, 1, width=32))
@example(300, 1, (2, 16), 3, 1.0)  # a side of one cell cannot shrink: the other is cut
@example(1, 300, (2, 16), 3, 1.0)
@example(9, 9, (30, 32), 5, 1.0)
@example(300, 300, (4, 400), 450, 0.5)
@example(300, 300, (4, 400), 1, 1.0)
@settings(max_examples=150)
def test_every_bound_is_kept_and_the_scale_followed(h: int, w: int, bounds: tuple[int, int], bound: int, scale: float):
    assume(max(h, w) <= 200 * min(h, w))
    image = picture(h, w)
    seen = FRONTS[bounds].run(image, scale, bound)
    rows, columns = seen.grid
    assert seen.image_ids == [IMAGE] * (rows * columns)
    assert rows * columns <= bound
    assert seen.pixel_values.shape == (1, 3, rows * CELL, columns * CELL)
    whole = round(h / CELL) * round(w / CELL) * CELL**2
    least, most = (tokens * CELL**2 for tokens in bounds)
    asked = max(least, int(min(whole, most) * scale * scale))
    lowered = min(least, bound * CELL**2), min(asked, bound * CELL**2)
    expected = smart_resize(h, w, CELL, *lowered)
    if expected[0] * expected[1] <= bound * CELL**2:
        assert_processors(seen.pixel_values, seen.grid, image, *lowered)
    else:
        # rounding up breaks the bound: sqrt(bound * ratio), rounded down, and cut where a side is one cell already
        down = min(bound, max(1, math.isqrt(bound * h // w)))
        across = max(1, math.isqrt(bound * w // h))
        assert seen.grid == [down, min(across, bound // down)]
    assert seen.used_scale <= np.float32(scale)


@given(st.integers(1, 3000), st.integers(1, 3000), ranges)
@example(1, 200, (2, 16))
@example(1, 199, (30, 32))
@settings(max_examples=300)
def test_the_default_bound_restricts_no_image(h: int, w: int, bounds: tuple[int, int]) -> None:
    assume(max(h, w) <= 200 * min(h, w))
    height, width = smart_resize(h, w, CELL, *(tokens * CELL**2 for tokens in bounds))
    assert height * width <= rule(*bounds).most_visual_tokens * CELL**2


def test_the_default_bound_is_the_processors_where_it_has_many_tokens() -> None:
    assert rule(4, 400).most_visual_tokens == 400


def test_a_narrower_image_than_processors_take_is_seen() -> None:
    seen = FRONTS[2, 16].run(picture(1, 1000))
    assert seen.grid[0] == 1
    assert seen.grid[1] <= rule(2, 16).most_visual_tokens


@pytest.mark.parametrize(("before", "after"), [((), ()), ((START,), (END,)), ((START, START), ()), ((), (END,))])
def test_ids_around_the_image(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    around = NativeGrid(CELL, 64, 6400, Resampling("bicubic"), Normalization(MEAN, STD), IMAGE, before, after)
    seen = Front(around, "as written").run(picture(16, 24))
    assert seen.image_ids == [*before, *[IMAGE] * 6, *after]


def test_a_rule_says_that_pieces_follow_the_image() -> None:
    grid = rule(4, 400)
    assert (grid.piece_shape, grid.tokens_per_piece, grid.pixels_per_token) == (None, None, CELL**2)
    assert grid.pieces(3, 5) == 1
    assert grid.ignores == ()
