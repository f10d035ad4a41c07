"""A fixed image is that of Gemma 3's processor, pixel for pixel and token for token."""

import numpy as np
import pytest
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from hvlc.imaging.fixed import FixedImage
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front
from tests.imaging.tokens import byte_tokenizer

HEIGHT, WIDTH, TOKENS = 24, 32, 5
START, SOFT, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


@pytest.fixture(scope="module")
def processor() -> Gemma3Processor:
    words = byte_tokenizer([START, SOFT, END])
    for name, text in (("boi_token", START), ("image_token", SOFT), ("eoi_token", END)):
        setattr(words, name, text)
        setattr(words, f"{name}_id", words.convert_tokens_to_ids(text))
    images = Gemma3ImageProcessorPil(size={"height": HEIGHT, "width": WIDTH}, image_mean=MEAN, image_std=STD)
    return Gemma3Processor(images, words, image_seq_length=TOKENS)


@pytest.fixture(scope="module")
def front(processor: Gemma3Processor) -> Front:
    start, soft, end = processor.tokenizer.convert_tokens_to_ids([START, SOFT, END])
    resampling, normalization = Resampling("bilinear"), Normalization(MEAN, STD)
    return Front(FixedImage(HEIGHT, WIDTH, TOKENS, resampling, normalization, (start,), soft, (end,)))


@pytest.mark.parametrize("size", [(1, 1), (24, 32), (25, 32), (300, 7), (7, 300), (90, 80), (10, 10)])
def test_images_and_ids_are_those_of_gemma3(processor: Gemma3Processor, front: Front, size: tuple[int, int]) -> None:
    """The newlines around are text, which its neighbours may merge with: the host's."""
    image = picture(*size)
    seen = front.run(image)
    expected = processor(images=[image], text=f"a{START}b", return_tensors="np")
    before, after = (processor.tokenizer.encode(text) for text in ("a\n\n", "\n\nb"))
    assert [*before, *seen.image_ids, *after] == expected["input_ids"][0].tolist()
    np.testing.assert_array_equal(seen.pixel_values, expected["pixel_values"])
    assert seen.grid == [1, 1]


def test_scale_and_bound_are_ignored_and_the_rule_says_so(front: Front) -> None:
    image = picture(50, 60)
    seen, whole = front.run(image, 0.3, 1), front.run(image)
    np.testing.assert_array_equal(seen.pixel_values, whole.pixel_values)
    assert seen.image_ids == whole.image_ids
    assert seen.used_scale == 1
    assert {name for name, _ in front.rule.ignores} == {"scale", "max_visual_tokens"}
    assert all("32 x 24" in reason for _, reason in front.rule.ignores)


def test_a_rule_says_what_a_piece_is(front: Front) -> None:
    assert front.rule.piece_shape == (HEIGHT, WIDTH)
    assert front.rule.tokens_per_piece == front.rule.most_visual_tokens == TOKENS
    assert front.rule.pieces(1, 1) == 1
