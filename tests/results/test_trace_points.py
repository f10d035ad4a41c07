"""Names, order and layout of the stages that traces have in common."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.results import trace_points
from hvlc.results.trace_points import Layout

NAMES = [
    trace_points.TOKENIZATION,
    trace_points.RESOLUTION,
    trace_points.PREPROCESSING,
    trace_points.VISION_EMBEDDINGS,
    *(trace_points.vision_layer(i) for i in range(12)),
    trace_points.POST_NORM,
    trace_points.PROJECTOR,
    trace_points.STITCHING,
    trace_points.EMBEDDING,
    trace_points.MERGE,
    *(trace_points.decoder_layer(i) for i in range(12)),
    trace_points.HEAD,
    trace_points.SAMPLING,
    trace_points.ANSWER,
]


@given(st.permutations(NAMES))
def test_values_are_put_in_the_order_in_which_stages_run(names: list[str]) -> None:
    assert list(trace_points.in_order({name: np.zeros(1) for name in names})) == NAMES


def test_what_is_read_is_the_prompt_and_the_answer_but_its_last_token() -> None:
    values = {trace_points.TOKENIZATION: np.arange(5), trace_points.SAMPLING: np.array([7, 8, 9])}
    assert trace_points.read_ids(values).tolist() == [0, 1, 2, 3, 4, 7, 8]
    values[trace_points.SAMPLING] = np.zeros(0, np.int64)
    assert trace_points.read_ids(values).tolist() == [0, 1, 2, 3, 4]


def test_logits_of_the_end_of_a_long_prompt_are_kept() -> None:
    assert trace_points.head_start({trace_points.TOKENIZATION: np.arange(10)}) == 0
    assert trace_points.head_start({trace_points.TOKENIZATION: np.arange(1000)}) == 1000 - 64


@pytest.mark.parametrize(("answer", "kept"), [([1, 2, 3], 3), ([1, 9, 3], 1), ([9], 0), ([], 0)])
def test_an_answer_ends_before_the_placeholder_of_an_image(answer: list[int], kept: int) -> None:
    assert trace_points.before_placeholder(np.array(answer, np.int64), 9).tolist() == answer[:kept]


def test_layouts_say_in_words_how_they_differ() -> None:
    one = Layout({"base": (32, 2), "large": (48, 3)}, 2, 64, 264)
    assert list(one.differences(one)) == []
    other = Layout({"base": (32, 4)}, 2, 64, 300)
    assert list(one.differences(other)) == [
        "vocabulary: 264 and 300",
        "width and layers of vision encoder base: 32 x 2 and 32 x 4",
        "width and layers of vision encoder large: 48 x 3 and none",
    ]
