"""Distances between what a stage makes and what it should make."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hvlc.evaluation.deviation import centered_logits, deviation, mismatches

FLOATS = npst.arrays(np.float32, (5, 4), elements=st.floats(-100, 100, width=32))


@given(FLOATS)
def test_equal_values_have_no_distance(values: np.ndarray) -> None:
    found = deviation(values, values.copy())
    assert (found.relative, found.max_abs) == (0, 0)
    assert not found.exceeds(0)


@given(st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_an_error_is_relative_to_what_is_expected_at_each_position(factor: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    expected = random.normal(size=(6, 8)) * random.uniform(0.5, 2, (6, 1))
    assert deviation(expected * (1 + factor), expected).relative == pytest.approx(factor)
    cosine = deviation(expected * (1 + factor), expected).cosine
    assert cosine == pytest.approx(1)


def test_the_error_of_a_layer_is_relative_to_what_it_adds() -> None:
    before, added = np.full((3, 4), 100.0), np.ones((3, 4))
    found = deviation(before + 1.5 * added, before + added, before)
    assert found.relative == pytest.approx(0.5)
    assert deviation(before + 1.5 * added, before + added).relative == pytest.approx(0.5 / 101)


def test_one_huge_position_does_not_hide_the_others() -> None:
    expected = np.ones((10, 4))
    expected[0] *= 1e5
    found = expected.copy()
    found[1:] *= 1.5
    assert deviation(found, expected).relative == pytest.approx(0.5 * math.sqrt(0.9))


def test_a_position_of_almost_nothing_does_not_count_more_than_all() -> None:
    expected = np.ones((10, 4))
    expected[0] = 1e-9
    found = expected.copy()
    found[0] = 0.01
    relative = deviation(found, expected).relative
    assert relative is not None
    assert relative < 0.1


def test_the_largest_difference_has_its_place_and_both_values() -> None:
    expected = np.zeros((2, 3, 4), np.float32)
    found = expected.copy()
    found[1, 2, 3], found[0, 0, 0] = -5, 1
    result = deviation(found, expected)
    assert (result.place, result.found, result.expected, result.max_abs) == ((1, 2, 3), -5, 0, 5)
    assert result.cosine is None  # of nothing


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_exceeds_every_tolerance(value: float) -> None:
    expected = np.ones((2, 3))
    found = expected.copy()
    found[1, 2] = value
    result = deviation(found, expected)
    assert (result.relative, result.place, result.found, result.expected) == (None, (1, 2), None, 1)
    assert result.exceeds(1e9)


def test_another_shape_exceeds_every_tolerance() -> None:
    result = deviation(np.ones((2, 3)), np.ones((3, 3)))
    assert (result.relative, result.shape, result.expected_shape) == (None, (2, 3), (3, 3))
    assert result.exceeds(1e9)


def test_whole_values_are_one_position() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 0.0]])
    found = expected + np.array([[0, 0], [5, 0]])
    assert deviation(found, expected, whole=True).relative == pytest.approx(1)


@pytest.mark.parametrize(
    ("found", "expected", "share", "place"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 0, None),
        ([1, 9, 3, 8], [1, 2, 3, 4], 0.5, (1,)),
        ([1, 2, 9], [1, 2, 3, 4], None, (2,)),
        ([1, 2, 3], [1, 2, 3, 4], None, None),
    ],
)
def test_ids_are_equal_or_not(
    found: list[int], expected: list[int], share: float | None, place: tuple[int] | None
) -> None:
    result = mismatches(np.array(found), np.array(expected))
    assert (result.relative, result.place) == (share, place)
    assert result.exceeds(0) == (found != expected)


def test_a_shift_of_all_logits_is_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 7))
    np.testing.assert_allclose(centered_logits(logits + 40), centered_logits(logits), atol=1e-12)
