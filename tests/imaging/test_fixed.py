"""The one size is that of the Gemma 3 image processor."""

import numpy as np
import pytest
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from hvlc.imaging.fixed import FixedSize
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front

RULE = FixedSize(24, 32, 5, Resampling("bilinear"), Normalization((0.5,) * 3, (0.25,) * 3), (1, 2), 7, (3,))
FRONT = Front(RULE)
PROCESSOR = Gemma3ImageProcessorPil(size={"height": 24, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


@pytest.mark.parametrize("size", [(24, 32), (1, 1), (5, 200), (300, 20), (25, 31), (480, 640)])
def test_pixels_are_the_processor_s(size: tuple[int, int]) -> None:
    image = picture(*size)
    seen = FRONT.run(image)
    np.testing.assert_array_equal(seen.pixel_values, PROCESSOR([image], return_tensors="np")["pixel_values"])
    assert seen.image_ids == [1, 2, 7, 7, 7, 7, 7, 3]
    assert (seen.grid, float(seen.used_scale)) == ([1, 1], 1.0)


def test_scale_and_bound_change_nothing_and_it_says_so() -> None:
    image = picture(50, 60)
    whole, asked = FRONT.run(image), FRONT.run(image, scale=0.3, bound=2)
    np.testing.assert_array_equal(whole.pixel_values, asked.pixel_values)
    assert whole.image_ids == asked.image_ids
    assert {name for name, _ in RULE.ignores} == {"scale", "max_visual_tokens"}
    assert RULE.most_visual_tokens == RULE.tokens_per_piece == 5
    assert RULE.pieces(*asked.grid) == 1
