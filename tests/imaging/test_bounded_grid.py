"""A bounded grid is that of Pixtral's image processor, pixel for pixel."""

import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.bounded_grid import BoundedGrid
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.sessions import session
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front

CELL, IMAGE, BREAK, END = 8, 7, 8, 9
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def rule(height: int, width: int, row_tokens: tuple[int, int] | None = None) -> BoundedGrid:
    return BoundedGrid(CELL, height, width, Resampling("bicubic"), Normalization(MEAN, STD), IMAGE, row_tokens)


def processor(height: int, width: int) -> PixtralImageProcessorPil:
    size = {"longest_edge": height} if height == width else {"height": height, "width": width}
    return PixtralImageProcessorPil(size=size, patch_size=CELL, image_mean=MEAN, image_std=STD)


#: Rectangles: whole cells, sides that are none, one that is not square.
BOUNDS = [(96, 96), (77, 77), (64, 120)]
FRONTS = {bounds: Front(rule(*bounds)) for bounds in BOUNDS}
sides = st.one_of(st.integers(1, 20), st.integers(1, 400))


@given(sides, sides, st.sampled_from(BOUNDS))
@example(8, 8, (96, 96))
@example(96, 97, (96, 96))
@example(97, 1, (96, 96))
@example(291, 97, (77, 77))  # 77 / (291 / 77) is not 77 in floats
@example(96, 3, (64, 120))
@settings(max_examples=120)
def test_images_are_those_of_the_processor(h: int, w: int, bounds: tuple[int, int]) -> None:
    ratio = max(h / bounds[0], w / bounds[1])
    assume(ratio <= 1 or min(h, w) / ratio >= 1)  # the processor fails where a side is shrunk to nothing
    image = picture(h, w)
    seen, expected = FRONTS[bounds].run(image), processor(*bounds)([image], return_tensors="np")
    assert [CELL * side for side in seen.grid] == expected["image_sizes"][0].tolist()
    np.testing.assert_array_equal(seen.pixel_values, expected["pixel_values"])
    assert seen.image_ids == [IMAGE] * (seen.grid[0] * seen.grid[1])
    assert seen.used_scale == 1


def fitted(bounds: tuple[int, int]) -> ort.InferenceSession:
    """The part of a front graph that fits an image's sides into the rectangle."""
    b = GraphBuilder("sides")
    image = b.input("image", ir.DataType.UINT8, ["height", "width", 3])
    b.output(rule(*bounds)._fitting(b, image), "sides", ir.DataType.FLOAT, [2])
    return session(b.model(), "as written")


LARGE = {bounds: fitted(bounds) for bounds in [(1540, 1540), (1024, 1024), (77, 77)]}


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(list(LARGE)))
@settings(max_examples=300)
def test_sizes_are_those_of_the_processor(h: int, w: int, bounds: tuple[int, int]) -> None:
    ratio = max(h / bounds[0], w / bounds[1])
    assume(ratio <= 1 or min(h, w) / ratio >= 1)
    image = np.broadcast_to(np.uint8(0), (h, w, 3))
    expected = get_resize_output_image_size(image, bounds, CELL, "channels_last")
    (found,) = LARGE[bounds].run(None, {"image": np.empty(image.shape, np.uint8)})
    assert [-(-int(side) // CELL) * CELL for side in found] == list(expected)
    assert math.prod(expected) <= rule(*bounds).most_visual_tokens * CELL**2


@given(sides, sides, st.sampled_from(BOUNDS), st.integers(1, 200), st.floats(0.0625, 1, width=32))
@example(400, 1, (96, 96), 3, 1.0)  # a side of one cell cannot shrink
@example(1, 400, (96, 96), 3, 1.0)
@example(300, 300, (77, 77), 1, 1.0)
@settings(max_examples=150)
def test_every_bound_is_kept_and_the_scale_followed(h: int, w: int, bounds: tuple[int, int], bound: int, scale: float):
    seen = FRONTS[bounds].run(picture(h, w), scale, bound)
    rows, columns = seen.grid
    assert seen.image_ids == [IMAGE] * (rows * columns)
    assert 1 <= rows * columns <= bound
    assert seen.pixel_values.shape == (1, 3, rows * CELL, columns * CELL)
    assert seen.used_scale <= np.float32(scale)
    ratio = max(h / bounds[0], w / bounds[1], 1.0)
    fitting = [max(1, math.floor(side / ratio)) for side in (h, w)]
    asked = [max(1, math.floor(np.float32(side) * np.float32(scale))) for side in fitting]
    cells = [-(-side // CELL) for side in asked]
    if math.prod(cells) <= bound:
        assert seen.grid == cells
        assert seen.used_scale == np.float32(scale)
    assert rows <= cells[0]
    assert columns <= cells[1]


def test_rows_of_tokens_end_as_asked() -> None:
    seen = Front(rule(96, 96, (BREAK, END)), "as written").run(picture(24, 16))
    assert seen.grid == [3, 2]
    assert seen.image_ids == [IMAGE, IMAGE, BREAK, IMAGE, IMAGE, BREAK, IMAGE, IMAGE, END]
    assert Front(rule(96, 96, (BREAK, END))).run(picture(1, 1)).image_ids == [IMAGE, END]


@pytest.mark.parametrize(("bounds", "tokens"), [((96, 96), 144), ((77, 77), 100), ((64, 120), 120)])
def test_a_full_rectangle_is_the_default_bound(bounds: tuple[int, int], tokens: int) -> None:
    found = rule(*bounds)
    assert found.most_visual_tokens == tokens
    assert math.prod(FRONTS[bounds].run(picture(*bounds)).grid) == tokens


def test_a_rule_says_that_pieces_follow_the_image() -> None:
    grid = rule(96, 96)
    assert (grid.piece_shape, grid.tokens_per_piece, grid.pixels_per_token) == (None, None, CELL**2)
    assert grid.pieces(3, 5) == 1
    assert grid.ignores == ()
