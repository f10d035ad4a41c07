"""The image's own grid is that of the Qwen2-VL image processor, and no bound is exceeded."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hvlc.errors import UserError
from hvlc.imaging.native_grid import NativeGrid
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front

PATCH, MERGE, IMAGE = 4, 2, 9
CELL = PATCH * MERGE
MEAN, STD = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)


def rule(fewest: int, most: int) -> NativeGrid:
    return NativeGrid(CELL, fewest, most, Resampling("bicubic"), Normalization(MEAN, STD), IMAGE)


#: Fewest and most pixels: small and wide ranges.
RANGES = [(16 * CELL**2, 40 * CELL**2), (CELL**2, 400 * CELL**2), (4 * CELL**2, 9 * CELL**2 + 1)]
FRONTS = {bounds: Front(rule(*bounds)) for bounds in RANGES}
sides = st.one_of(st.integers(1, 20), st.integers(1, 200))


def processed(image: Image.Image, fewest: int, most: int) -> np.ndarray:
    """The processor's pixels float32 `[3, H, W]`, put together again from its patches."""
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": fewest, "longest_edge": most},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=1,
        image_mean=MEAN,
        image_std=STD,
    )
    found = processor([image], return_tensors="np")
    _, rows, columns = found["image_grid_thw"][0].tolist()
    blocks = found["pixel_values"].reshape(rows // MERGE, columns // MERGE, MERGE, MERGE, 3, PATCH, PATCH)
    return blocks.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * PATCH, columns * PATCH)


@given(sides, sides, st.sampled_from(RANGES))
@example(1, 1, RANGES[0])
@example(12, 12, RANGES[1])  # halves: 1.5 cells round to 2
@example(20, 20, RANGES[1])  # 2.5 cells round to 2
@example(1, 200, RANGES[2])
@example(200, 1, RANGES[2])
@settings(max_examples=60)
def test_pixels_and_tokens_are_the_processor_s(height: int, width: int, bounds: tuple[int, int]) -> None:
    image = picture(height, width)
    seen = FRONTS[bounds].run(image)
    expected = processed(image, *bounds)
    np.testing.assert_array_equal(seen.pixel_values[0], expected)
    rows, columns = seen.grid
    assert expected.shape[1:] == (rows * CELL, columns * CELL)
    assert seen.image_ids == [IMAGE] * (rows * columns)
    assert float(seen.used_scale) == 1.0


@given(sides, sides, st.sampled_from(RANGES), st.integers(1, 60), st.floats(0.0625, 1, width=32))
@example(1, 200, RANGES[2], 3, 1.0)
@settings(max_examples=100)
def test_bounds_and_scales_are_kept(height: int, width: int, bounds: tuple[int, int], limit: int, scale: float) -> None:
    front, image = FRONTS[bounds], picture(height, width)
    whole, seen = front.run(image), front.run(image, scale, limit)
    most = max(1, int(len(whole.image_ids) * float(np.float32(scale)) ** 2))
    assert 1 <= len(seen.image_ids) <= max(1, min(limit, most if scale < 1 else len(whole.image_ids)))
    assert len(seen.image_ids) == seen.grid[0] * seen.grid[1]
    assert seen.pixel_values.shape == (1, 3, seen.grid[0] * CELL, seen.grid[1] * CELL)
    assert 0 < float(seen.used_scale) <= scale + 1e-6


def test_a_bound_that_restricts_nothing_changes_nothing() -> None:
    for bounds, front in FRONTS.items():
        for size in ((1, 200), (200, 1), (100, 120)):
            seen = front.run(picture(*size))
            assert len(seen.image_ids) <= front.rule.most_visual_tokens, bounds


@pytest.mark.parametrize(("fewest", "most"), [(1, CELL**2 - 1), (500, 400)])
def test_pixels_that_contradict_each_other_are_refused(fewest: int, most: int) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.processor"):
        rule(fewest, most)
