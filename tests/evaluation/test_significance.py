"""What is called noise, and what is not."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.evaluation.metrics import mcnemar
from hvlc.evaluation.significance import flips, holm, paired_tests, sign_flip_p_value
from tests.helpers.measurements import measured


def test_a_run_against_itself_is_noise_with_p_1() -> None:
    run = measured([True] * 20 + [False] * 5, name="a")
    tests = paired_tests([(run.model_copy(update={"name": "b"}), run)])
    assert [(t.measure, t.p_value, t.adjusted, t.verdict) for t in tests] == [
        ("exact_match", 1, 1, "noise"),
        ("anls", 1, 1, "noise"),
    ]
    assert all(t.difference.low == t.difference.value == t.difference.high == 0 for t in tests)
    assert not flips(run, run)


@pytest.mark.parametrize(("better", "verdict"), [(False, "worse"), (True, "better")])
def test_many_lost_examples_are_no_noise(better: bool, verdict: str) -> None:
    good, bad = measured([True] * 40, name="good"), measured([True] * 25 + [False] * 15, name="bad")
    run, reference = (good, bad) if better else (bad, good)
    tests = paired_tests([(run, reference)])
    assert {t.verdict for t in tests} == {verdict}
    assert all((t.difference.value > 0) == better for t in tests)
    assert tests[0].p_value == pytest.approx(2 * 0.5**15)
    found = flips(run, reference)
    assert {f.direction for f in found} == {"won" if better else "lost"}
    assert [f.index for f in found] == list(range(25, 40))


def test_more_tests_make_a_difference_noise() -> None:
    """What is hardly significant alone is not among many."""
    reference, run = measured([True] * 30, name="a"), measured([False] * 6 + [True] * 24, name="b")
    (alone, _), many = paired_tests([(run, reference)]), paired_tests([(run, reference)] + [(reference, reference)] * 3)
    assert alone.p_value == many[0].p_value == pytest.approx(mcnemar(6, 0))
    assert alone.adjusted < 0.07 < many[0].adjusted
    assert many[0].verdict == "noise"


def test_other_examples_are_refused() -> None:
    run = measured([True] * 3)
    with pytest.raises(UserError, match=r"compare\.unpaired"):
        paired_tests([(run, run.model_copy(update={"examples_digest": "1" * 64}))])


@pytest.mark.parametrize("gaps", [[], [1.0, float("nan")], [float("inf")]])
def test_no_test_of_nothing_or_nan(gaps: list[float]) -> None:
    with pytest.raises(ValueError, match="no difference"):
        sign_flip_p_value(gaps)


def exact_p_value(gaps: list[float]) -> float:
    """The same by trying every sign."""
    sums = [abs(np.dot(signs, gaps)) for signs in product((-1, 1), repeat=len(gaps))]
    return float(np.mean([one >= abs(sum(gaps)) - 1e-12 for one in sums]))


@pytest.mark.parametrize(
    "gaps", [[1, 0, 0, 0, 0.5], [0.3, 0.2, 0.4, 0.1, 0.35, 0.2, 0.2], [1, -1, 0.5, -0.4, 0.1], [0.1] * 3 + [-0.1], [2]]
)
def test_drawn_signs_are_near_all_signs(gaps: list[float]) -> None:
    assert sign_flip_p_value(gaps) == pytest.approx(exact_p_value(gaps), abs=0.015)


def test_on_right_and_wrong_it_is_mcnemars_test() -> None:
    assert sign_flip_p_value([1.0] * 11 + [-1.0] * 3 + [0.0] * 50) == pytest.approx(mcnemar(3, 11), abs=0.01)


def test_few_pairs_cannot_be_significant() -> None:
    assert sign_flip_p_value([0.1, 0.2, 0.3, 0.4, 0.5]) > 0.05


def test_the_test_errs_as_seldom_as_it_says() -> None:
    """Of differences without a cause, about one in twenty has p below 0.05, also of few pairs."""
    random = np.random.default_rng(1)
    values = [sign_flip_p_value(random.normal(size=9).tolist()) for _ in range(150)]
    assert np.mean([v < 0.05 for v in values]) < 0.11
    assert np.mean([v < 0.5 for v in values]) == pytest.approx(0.5, abs=0.15)


def test_holm_is_the_textbook_one() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_never_lowers(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_a_metric_of_the_tasks_own_is_tested_once() -> None:
    """As `score`, unless it is one of the two that are tested anyway."""
    reference, run = measured([True] * 20, name="a"), measured([True] * 14 + [False] * 6, name="b")
    assert [t.measure for t in paired_tests([(run, reference)])] == ["exact_match", "anls"]
    own = [
        e.model_copy(update={"examples": tuple(x.model_copy(update={"metric": "choice"}) for x in e.examples)})
        for e in (run, reference)
    ]
    tests = paired_tests([(own[0], own[1])])
    assert [t.measure for t in tests] == ["exact_match", "anls", "score"]
    assert tests[2].p_value == tests[1].p_value
