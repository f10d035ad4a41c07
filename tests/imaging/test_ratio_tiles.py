"""Tiles by ratio are those of the GotOcr2 image processor and of InternVL's and Qianfan-OCR's prompts."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qianfan_ocr.processing_qianfan_ocr import QianfanOCRProcessor

from hvlc.imaging.ratio_tiles import RatioTiles
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front
from tests.imaging.tokens import byte_tokenizer

TILE, TOKENS = 16, 3
START, CONTEXT, END = "<img>", "<IMG_CONTEXT>", "</img>"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORDS = byte_tokenizer([START, CONTEXT, END])


def rule(most: int, least: int = 1) -> RatioTiles:
    start, context, end = WORDS.convert_tokens_to_ids([START, CONTEXT, END])
    resampling, normalization = Resampling("bicubic"), Normalization(MEAN, STD)
    return RatioTiles(TILE, least, most, TOKENS, resampling, normalization, (start,), context, (end,))


def processor(most: int, least: int = 1) -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE},
        min_patches=least,
        max_patches=most,
        crop_to_patches=True,
        image_mean=MEAN,
        image_std=STD,
    )


def pieces(image: Image.Image, most: int, least: int = 1) -> np.ndarray:
    return np.asarray(processor(most, min(least, most))([image], return_tensors="np")["pixel_values"])


#: Most and fewest tiles: InternVL's, one alone, the least that makes two, and a range.
RANGES = [(12, 1), (1, 1), (2, 1), (6, 4), (40, 1)]
FRONTS = {bounds: Front(rule(*bounds)) for bounds in RANGES}
sides = st.one_of(st.integers(1, 20), st.integers(1, 200))
ranges = st.sampled_from(RANGES)


@given(sides, sides, ranges)
@example(1, 1, (12, 1))
@example(32, 32, (12, 1))  # ties among squares: by area
@example(46, 46, (12, 1))
@example(16, 32, (12, 1))
@example(33, 67, (12, 1))
@example(1, 600, (12, 1))
@example(600, 1, (12, 1))
@example(30, 50, (6, 4))
@example(4, 3, (12, 1))
@settings(max_examples=100)
def test_pixels_are_those_of_the_processor(h: int, w: int, bounds: tuple[int, int]) -> None:
    image = picture(h, w)
    seen = FRONTS[bounds].run(image)
    expected = pieces(image, *bounds)
    np.testing.assert_array_equal(seen.pixel_values, expected)
    assert seen.grid[0] * seen.grid[1] + (len(expected) > 1) == len(expected)
    assert seen.used_scale == 1


@pytest.mark.parametrize("size", [(1, 1), (60, 60), (20, 90), (300, 7)])
def test_ids_are_those_of_the_prompts(size: tuple[int, int]) -> None:
    """InternVL's processor itself wants a package for videos, so its expansion alone is asked."""
    image = picture(*size)
    words = byte_tokenizer([START, CONTEXT, END, "<image>"])
    for name, text in (("start_image_token", START), ("end_image_token", END), ("context_image_token", CONTEXT)):
        setattr(words, name, text)
        setattr(words, f"{name}_id", words.convert_tokens_to_ids(text))
    qianfan = QianfanOCRProcessor(processor(12), words, image_seq_length=TOKENS)
    expected = qianfan(images=[image], text=["a<image>b"], return_tensors="np")
    seen = Front(rule(12), "as written").run(image)
    before, after = words.convert_tokens_to_ids(["a", "b"])
    assert [before, *seen.image_ids, after] == expected["input_ids"][0].tolist()
    names = SimpleNamespace(start_image_token=START, image_token=CONTEXT, end_image_token=END, image_seq_length=TOKENS)
    counts = {"num_patches": [len(seen.pixel_values)]}
    assert seen.image_ids == words.encode(InternVLProcessor.replace_image_token(names, counts, 0))


@given(sides, sides, ranges, st.integers(1, 20 * TOKENS), st.floats(0.0625, 1, width=32))
@example(46, 46, (12, 1), 1, 1.0)
@example(46, 46, (12, 1), 2 * TOKENS, 1.0)
@example(46, 46, (12, 1), 3 * TOKENS, 1.0)
@example(46, 46, (12, 1), 10 * TOKENS - 1, 1.0)
@example(46, 46, (12, 1), 100 * TOKENS, 0.5)
@settings(max_examples=150)
def test_bound_and_scale_lower_the_most_tiles(h: int, w: int, bounds: tuple[int, int], bound: int, scale: float):
    front, image = FRONTS[bounds], picture(h, w)
    seen = front.run(image, scale, bound)
    count = len(seen.pixel_values)
    assert seen.image_ids.count(front.rule.image_token) == count * TOKENS
    assert count * TOKENS <= max(bound, TOKENS)  # below a tile nothing can be kept: one tile is the smallest form
    whole = front.run(image).grid
    most = max(1, int(whole[0] * whole[1] * scale * scale))
    assert count <= most + (most > 1)
    allowed = max(1, bound // TOKENS - 1)
    np.testing.assert_array_equal(seen.pixel_values, pieces(image, min(most, allowed, bounds[0]), bounds[1]))
    assert seen.used_scale <= np.float32(scale)
    assert seen.used_scale == np.float32(scale) or allowed < most


@pytest.mark.parametrize(("most", "tiles"), [(1, 1), (2, 3), (12, 13)])
def test_the_default_bound_restricts_no_image(most: int, tiles: int) -> None:
    assert rule(most).most_visual_tokens == tiles * TOKENS
    assert rule(most).piece_shape == (TILE, TILE)
    assert rule(most).tokens_per_piece == TOKENS
    assert rule(most).ignores == ()
