"""The digest of calibration inputs changes with whatever a model is fed."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvlc.calibration.samples import CalibrationSet, DrawnPicture, ImagePrompt, ImageSample, Sample, TextSample
from tests.helpers.tiny import picture

IDS = st.lists(st.integers(0, 300), min_size=1, max_size=6)


def ids(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


TEXT = st.builds(lambda values: TextSample("text", ids(values)), IDS)
SHOWN = st.builds(
    lambda before, after, sha: ImageSample(
        "other", DrawnPicture("train", 0, 1, 1, sha), "q", None, ImagePrompt(ids(before), ids(after))
    ),
    IDS,
    IDS,
    st.sampled_from(["ab", "cd"]),
)


def fed(sample: Sample) -> object:
    """What a sample feeds, as something that can be compared."""
    if isinstance(sample, TextSample):
        return ("text", sample.ids.tolist())
    assert sample.prompt is not None
    return ("image", sample.picture.sha256, sample.prompt.before.tolist(), sample.prompt.after.tolist())


@given(st.lists(TEXT | SHOWN, max_size=4), st.lists(TEXT | SHOWN, max_size=4))
def test_digests_are_equal_where_inputs_are(first: list[Sample], second: list[Sample]) -> None:
    digests = [CalibrationSet(name, tuple(s)).digest for name, s in (("a", first), ("b", second))]
    assert (digests[0] == digests[1]) == ([fed(s) for s in first] == [fed(s) for s in second])


@given(TEXT, st.data())
def test_any_id_counts(sample: TextSample, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(sample.ids) - 1))
    changed = sample.ids.copy()
    changed[at] += data.draw(st.sampled_from([1, -1, 256, 2**40]))
    assert CalibrationSet("a", (sample,)).digest != CalibrationSet("a", (TextSample("text", changed),)).digest


@given(st.integers(0, 5), st.integers(0, 6), st.integers(0, 2), st.integers(1, 255))
def test_any_byte_of_an_image_counts(row: int, column: int, channel: int, change: int) -> None:
    before = picture(6, 7)
    pixels = np.array(before)
    pixels[row, column, channel] ^= change
    first, second = (DrawnPicture.of("train", 0, image) for image in (before, Image.fromarray(pixels)))
    assert first.sha256 != second.sha256


def test_the_shape_of_an_image_counts() -> None:
    image = picture(6, 4)
    turned = Image.fromarray(np.asarray(image).reshape(4, 6, 3))
    assert DrawnPicture.of("train", 0, image).sha256 != DrawnPicture.of("train", 0, turned).sha256


def test_prompts_around_an_image_count() -> None:
    prompt = ImagePrompt(ids([1]), ids([2]))
    sample = ImageSample("other", DrawnPicture("train", 0, 1, 1, "ab"), "q", None, prompt)
    variants = [sample, replace(sample, prompt=None)]
    variants += [
        replace(sample, prompt=ImagePrompt(ids(before), ids(after))) for before, after in (([7], [2]), ([1], [9]))
    ]
    assert len({CalibrationSet("a", (v,)).digest for v in variants}) == len(variants)


@given(IDS, IDS, IDS)
def test_a_sequence_is_what_stands_before_an_image_the_image_and_what_follows(
    before: list[int], image: list[int], after: list[int]
) -> None:
    prompt = ImagePrompt(ids(before), ids(after))
    assert prompt.ids(ids(image)).tolist() == before + image + after
    assert prompt.ids(ids(image)).dtype == np.int64
    assert prompt.length == len(before) + len(after)


def test_where_one_field_ends_counts() -> None:
    picture = DrawnPicture("train", 0, 1, 1, "ab")
    cuts = [ImagePrompt(ids([1, 2, 3][:at]), ids([1, 2, 3][at:])) for at in range(4)]
    sets = [CalibrationSet("a", (ImageSample("other", picture, "q", None, cut),)) for cut in cuts]
    assert len({s.digest for s in sets}) == 4
