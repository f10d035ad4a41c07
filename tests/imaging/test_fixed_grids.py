"""Fixed grids: the nearest by shape, then by area, and the image resized to exactly that."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hvlc.errors import UserError
from hvlc.imaging.fixed import FixedImage
from hvlc.imaging.fixed_grids import fixed_grids
from hvlc.imaging.native_grid import NativeGrid
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front

CELL, IMAGE = 8, 7
MIDDLE = Normalization((0.5,) * 3, (0.5,) * 3)
NATIVE = NativeGrid(CELL, 4 * CELL**2, 100 * CELL**2, Resampling("bicubic"), MIDDLE, IMAGE)
#: Grids of one shape in several areas, wide and tall ones, and one alone.
CHOICES = [
    ((32, 32), (64, 64), (16, 16), (32, 64), (64, 32), (16, 80)),
    ((24, 48), (48, 96), (40, 40)),
    ((56, 40),),
]
FRONTS = {grids: Front(fixed_grids(NATIVE, grids)) for grids in CHOICES}
OWN = Front(NATIVE)


def nearest(h: int, w: int, area: int, grids: tuple[tuple[int, int], ...], limit: int) -> tuple[int, int]:
    """The grid in rows and columns, by a plain search."""
    cells = [(height // CELL, width // CELL) for height, width in grids]
    least = min(rows * columns for rows, columns in cells)
    fitting = [(r, c) for r, c in cells if r * c <= limit or r * c == least]
    shape = min(abs(math.log(h / w) - math.log(r / c)) for r, c in fitting)
    alike = [(r, c) for r, c in fitting if abs(math.log(h / w) - math.log(r / c)) <= shape + 1e-12]
    return min(alike, key=lambda grid: round(abs(math.log(area) - math.log(grid[0] * grid[1])), 5))


sides, scales = st.integers(1, 300), st.floats(0.125, 1, width=32)


@given(sides, sides, st.sampled_from(CHOICES), st.integers(1, 120), scales)
@example(200, 200, CHOICES[0], 120, 1.0)
@example(200, 200, CHOICES[0], 20, 1.0)  # a bound takes the largest square out
@example(200, 200, CHOICES[0], 1, 1.0)  # and at most all but the smallest
@example(200, 200, CHOICES[0], 120, 0.25)
@example(48, 24, CHOICES[1], 120, 1.0)
@settings(max_examples=150)
def test_the_grid_is_the_nearest(h: int, w: int, grids: tuple[tuple[int, int], ...], limit: int, scale: float) -> None:
    image = picture(h, w)
    seen, own = FRONTS[grids].run(image, scale, limit), OWN.run(image, scale, limit)
    rows, columns = nearest(h, w, own.grid[0] * own.grid[1], grids, limit)
    assert seen.grid == [rows, columns]
    assert seen.image_ids == [IMAGE] * (rows * columns)
    assert 0 < seen.used_scale <= own.used_scale
    resized = image.resize((columns * CELL, rows * CELL), Image.Resampling.BICUBIC)
    expected = (np.asarray(resized, np.float64) / 255).astype(np.float32)
    expected = ((expected - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(seen.pixel_values, expected, atol=1e-6, rtol=0)


def test_the_bound_is_that_of_the_largest_grid() -> None:
    assert fixed_grids(NATIVE, CHOICES[0]).most_visual_tokens == 64


@pytest.mark.parametrize(
    ("grids", "expected"),
    [
        ((), "0 grids"),
        (((32, 32),) * 2, "twice"),
        (((32, 36), (0, 32)), "32x36, 0x32: .* multiples of 8"),
        (tuple((8, 8 * n) for n in range(1, 18)), "17 grids"),
    ],
)
def test_what_is_not_a_choice_of_grids_is_refused(grids: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        fixed_grids(NATIVE, grids)
    assert error.value.code == "build.grids"


def test_only_rules_of_native_grids_take_fixed_ones() -> None:
    assert fixed_grids(fixed_grids(NATIVE, ((64, 64),)), ((32, 32),)).grids == ((32, 32),)
    squashed = FixedImage(8, 8, 1, Resampling("bicubic"), MIDDLE, (), IMAGE, ())
    with pytest.raises(UserError, match="fixed") as error:
        fixed_grids(squashed, ((64, 64),))
    assert error.value.code == "build.grids"
    assert NATIVE.grids == squashed.grids == ()
