"""Statistics of inputs against their formulas, however the inputs come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hvlc.solvers.statistics import Accumulator, InputStatistics
from tests.helpers.solvers import normal

inputs = arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 12)), elements=st.floats(-8, 8, width=32))


def statistics_of(*parts: np.ndarray) -> InputStatistics:
    accumulator = Accumulator(parts[0].shape[-1])
    for part in parts:
        accumulator.add(part)
    return accumulator.finish()


@given(rows=inputs)
@settings(max_examples=60)
def test_they_are_what_their_formulas_say(rows: np.ndarray) -> None:
    found, exact = statistics_of(rows), rows.astype(np.float64)
    gram = sum(np.outer(x, x) for x in exact) / len(exact)
    np.testing.assert_allclose(found.gram, gram, rtol=1e-5, atol=1e-4)  # sums of 20 products up to 64, in float32
    np.testing.assert_allclose(found.mean_abs, np.abs(exact).mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.mean_square, np.square(exact).mean(0), rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(found.peak, np.abs(rows).max(0))
    assert found.count == len(rows)
    assert {found.gram.dtype, found.mean_abs.dtype, found.peak.dtype} == {np.dtype(np.float32)}


@given(rows=inputs, cut=st.integers(0, 20))
@settings(max_examples=60)
def test_parts_add_up_to_the_whole(rows: np.ndarray, cut: int) -> None:
    whole, parts = statistics_of(rows), statistics_of(rows[:cut], rows[cut:])
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(parts.mean_abs, whole.mean_abs, rtol=1e-6)
    np.testing.assert_array_equal(parts.peak, whole.peak)
    assert parts.count == whole.count


@given(rows=inputs)
@settings(max_examples=30)
def test_the_gram_matrix_is_symmetric_and_has_no_negative_direction(rows: np.ndarray) -> None:
    gram = statistics_of(rows).gram
    np.testing.assert_array_equal(gram, gram.T)
    assert np.linalg.eigvalsh(gram.astype(np.float64)).min() >= -1e-5 * max(1, np.trace(gram))


def test_leading_axes_are_vectors_one_after_another() -> None:
    values = normal(24, 5)
    np.testing.assert_array_equal(statistics_of(values.reshape(2, 3, 4, 5)).gram, statistics_of(values).gram)


def test_views_and_other_dtypes_are_taken() -> None:
    values = normal(6, 10)
    np.testing.assert_array_equal(statistics_of(values[:, ::2]).gram, statistics_of(values[:, ::2].copy()).gram)
    half = values.astype(np.float16)
    np.testing.assert_array_equal(statistics_of(half).gram, statistics_of(half.astype(np.float32)).gram)


def test_what_was_added_is_not_changed() -> None:
    values = normal(6, 10)
    before = values.copy()
    statistics_of(values, values)
    np.testing.assert_array_equal(values, before)


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="no vector"):
        statistics_of(np.empty((0, 3), np.float32))


@pytest.mark.filterwarnings("error")
def test_squares_that_overflow_are_infinite_and_no_more() -> None:
    assert np.isinf(statistics_of(np.full((2, 3), 1e30, np.float32)).gram).all()
