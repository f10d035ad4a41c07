"""Any image becomes tiles and a grid within the bound."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from hvlc.models.hypervl import HyperVLImageProcessor
from hvlc.models.hypervl.processing import cap_scale, scaled_size
from tests.helpers.tiny import CELL, PROXY, TILE, picture

sides = st.integers(1, 20_000)


def cells(height: int, width: int, scale: float, cell: int) -> int:
    h, w = scaled_size(height, width, scale)
    return -(-h // cell) * -(-w // cell)


@given(sides, sides, st.floats(0.125, 1, width=32), st.integers(4, 64), st.integers(1, 8192))
@example(10_000, 50, 1.0, 16, 1)
@example(1, 1, 0.1, 16, 1)
@example(20_000, 20_000, 1.0, 4, 1)
def test_no_image_exceeds_its_bound_and_no_scale_grows(h: int, w: int, scale: float, cell: int, bound: int) -> None:
    capped = cap_scale(h, w, scale, cell, bound)
    assert 0 <= capped <= np.float32(scale)
    assert cells(h, w, capped, cell) <= bound
    if cells(h, w, scale, cell) <= bound:
        assert capped == np.float32(scale)


@given(st.integers(50, 5000), st.integers(50, 5000), st.integers(100, 4096))
def test_the_bound_is_used_and_not_merely_kept(h: int, w: int, bound: int) -> None:
    """At worst one row and one column of cells are given away."""
    if cells(h, w, 1.0, 16) <= bound:
        return
    capped = float(cap_scale(h, w, 1.0, 16, bound))
    assert (h * capped / 16 + 1) * (w * capped / 16 + 1) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (10_000, 50), (50, 10_000), (33, 32), (32, 32), (200, 300)])
@pytest.mark.parametrize("bound", [1, 8, 200])
def test_tiles_cover_the_grid(size: tuple[int, int], bound: int) -> None:
    images = HyperVLImageProcessor(TILE, CELL, PROXY)
    tiles, (rows, columns) = images.tiles(picture(*size), 1.0, bound)
    per_side = TILE // CELL
    assert rows * columns <= bound
    assert tiles.shape == (-(-rows // per_side) * -(-columns // per_side), 3, TILE, TILE)
    assert torch.isfinite(tiles).all()


def test_padding_is_right_and_below_and_zero_after_normalization() -> None:
    white = Image.new("RGB", (40, 20), "white")
    tiles, grid = HyperVLImageProcessor(TILE, CELL, PROXY).tiles(white)
    assert grid == (2, 3)
    assert len(tiles) == 2
    assert (tiles[0, :, :20] == 1).all()
    assert (tiles[0, :, 20:] == 0).all()
    assert (tiles[1, :, :20, :8] == 1).all()
    assert (tiles[1, :, :, 8:] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (10_000, 50), (64, 64), (20, 31)])
def test_the_proxy_is_a_letterbox_of_fixed_size(size: tuple[int, int]) -> None:
    values, original = HyperVLImageProcessor(TILE, CELL, PROXY).proxy(Image.new("RGB", size[::-1], "white"))
    assert values.shape == (1, 3, PROXY, PROXY)
    assert original == size
    longest = max(int((values[0, 0] > 0.5).any(axis).sum()) for axis in (0, 1))
    assert PROXY - 1 <= longest <= PROXY


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4))],
)
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a non-empty uint8"):
        HyperVLImageProcessor(TILE, CELL, PROXY).tiles(image)


def test_several_images_follow_each_other() -> None:
    images = HyperVLImageProcessor(TILE, CELL, PROXY)
    pictures = [picture(40, 70, 1), picture(20, 20, 2)]
    both = images(pictures, scales=[0.5, 1.0])
    alone = [images.tiles(p, s) for p, s in zip(pictures, [0.5, 1.0], strict=True)]
    assert torch.equal(both["pixel_values"], torch.cat([tiles for tiles, _ in alone]))
    assert both["image_grids"].tolist() == [list(grid) for _, grid in alone]


@pytest.mark.parametrize("size", [(2, 1), (7, 1), (1, 4), (1, 1), (3, 2)])
def test_resizing_is_pillows_also_where_torch_is_wrong(size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 9)).astype(np.float32)
    expected = Image.fromarray(grey).resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(grey).expand(1, 3, 20, 9)
    found = HyperVLImageProcessor(TILE, CELL, PROXY).resize(pixels, *size)[0, 0]
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)
