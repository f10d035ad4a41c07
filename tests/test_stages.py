"""Names, order and layout of the stages that traces have in common."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc import stages
from hvlc.stages import Layout

NAMES = [
    stages.TOKENIZATION,
    stages.RESOLUTION,
    stages.PREPROCESSING,
    stages.GRIDS,
    stages.VISION_EMBEDDINGS,
    *(stages.vision_layer(i) for i in range(12)),
    stages.POST_NORM,
    stages.PROJECTOR,
    stages.STITCHING,
    stages.EMBEDDING,
    stages.MERGE,
    *(stages.decoder_layer(i) for i in range(12)),
    stages.HEAD,
    stages.SAMPLING,
    stages.ANSWER,
]


@given(st.permutations(NAMES))
def test_values_are_put_in_the_order_in_which_stages_run(names: list[str]) -> None:
    assert list(stages.in_order({name: np.zeros(1) for name in names})) == NAMES


def test_what_is_read_is_the_prompt_and_the_answer_but_its_last_token() -> None:
    values = {stages.TOKENIZATION: np.arange(5), stages.SAMPLING: np.array([7, 8, 9])}
    assert stages.read_ids(values).tolist() == [0, 1, 2, 3, 4, 7, 8]
    values[stages.SAMPLING] = np.zeros(0, np.int64)
    assert stages.read_ids(values).tolist() == [0, 1, 2, 3, 4]


def test_logits_of_the_end_of_a_long_prompt_are_kept() -> None:
    assert stages.head_start({stages.TOKENIZATION: np.arange(10)}) == 0
    assert stages.head_start({stages.TOKENIZATION: np.arange(1000)}) == 1000 - 64


@pytest.mark.parametrize(("answer", "kept"), [([1, 2, 3], 3), ([1, 9, 3], 1), ([9], 0), ([], 0)])
def test_an_answer_ends_before_the_placeholder_of_an_image(answer: list[int], kept: int) -> None:
    assert stages.before_placeholder(np.array(answer, np.int64), 9).tolist() == answer[:kept]


def test_layouts_say_in_words_how_they_differ() -> None:
    one = Layout({"base": (32, 2), "large": (48, 3)}, 2, 64, 264)
    assert list(one.differences(one)) == []
    other = Layout({"base": (32, 4)}, 2, 64, 300)
    assert list(one.differences(other)) == [
        "vocabulary: 264 and 300",
        "width and layers of vision encoder base: 32 x 2 and 32 x 4",
        "width and layers of vision encoder large: 48 x 3 and none",
    ]
