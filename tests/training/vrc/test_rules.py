"""Rules of labels: the smallest scale that passes with every larger one, tokens counted as whole tiles."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.training.vrc import rules
from hvlc.training.vrc.labels import Label

SCALES = (0.25, 0.5, 0.75, 1.0)


def made(
    equivalent: list[bool] | None = None,
    losses: list[float] | None = None,
    tokens: list[int] | None = None,
    scores: list[float] | None = None,
    **fields: Any,
) -> Label:
    equivalent = [*(equivalent or [True] * 3), True]
    return Label(
        id="a",
        height=100,
        width=80,
        question=(1, 2),
        scales=SCALES,
        tokens=tuple(tokens or (4, 16, 36, 64)),
        losses=(*(losses or [0.0] * 3), 0.0),
        answers=("",) * 4,
        equivalent=tuple(equivalent),
        scores=(*(scores or [float(e) for e in equivalent[:3]]), 1.0),
        **fields,
    )


@pytest.mark.parametrize(
    ("passing", "index"),
    [
        ([True, True, True], 0),
        ([False, True, True], 1),
        ([True, False, True], 2),  # what passes below one that fails is luck
        ([True, True, False], 3),
        ([False, False, False], 3),
    ],
)
def test_the_smallest_scale_with_every_larger_one(passing: list[bool], index: int) -> None:
    assert rules.by_equivalence(made(passing)) == index
    assert rules.by_loss(made(losses=[0.0 if p else 9.0 for p in passing]), rules.Tolerance()) == index


def test_among_scales_of_equally_many_tokens_the_largest_is_the_label() -> None:
    assert rules.by_equivalence(made([True, True, True], tokens=[16, 16, 36, 64])) == 1
    assert rules.by_equivalence(made([False, True, True], tokens=[4, 64, 64, 64])) == 3


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 2))
def test_one_more_failure_never_lowers_the_label(passing: list[bool], at: int) -> None:
    before = rules.by_equivalence(made(passing))
    assert rules.by_equivalence(made([p and k != at for k, p in enumerate(passing)])) >= before


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6), st.data())
def test_nothing_that_keeps_every_answer_saves_more_than_the_oracle(passing, data) -> None:
    """Of choices whose larger scales pass too; a lucky one below a failure does not count."""
    labels = [made(one) for one in passing]
    best = [rules.by_equivalence(label) for label in labels]
    other = [data.draw(st.integers(at, 3)) for at in best]
    assert rules.outcome(labels, other).saved <= rules.outcome(labels, best).saved
    assert rules.outcome(labels, best).kept == 1


def test_an_outcome_counts_scores_and_tokens() -> None:
    labels = [made([False, True, True]), made([True, True, True])]
    found = rules.outcome(labels, [0, 1])
    assert (found.full_score, found.score, found.kept) == (1, 0.5, 0.5)
    assert found.saved == pytest.approx(1 - (4 + 16) / 128)


def test_a_scale_between_two_counts_as_the_smaller() -> None:
    assert [rules.below(made(), scale) for scale in (0.1, 0.25, 0.49, 0.5, 0.99, 1.0)] == [0, 0, 0, 1, 2, 3]


def test_a_scale_between_two_costs_as_the_larger() -> None:
    assert [rules.above(made(), scale) for scale in (0.1, 0.25, 0.26, 0.5, 0.9, 1.0, 1.1)] == [0, 0, 1, 1, 3, 3, 3]
    found = rules.outcome([made()], [rules.below(made(), 0.6)], [rules.above(made(), 0.6)])
    assert found.saved == pytest.approx(1 - 36 / 64)


def test_whole_tiles_cost_what_the_area_does_not() -> None:
    assert rules.rounding([made()], [1]) == 0
    assert rules.rounding([made(tokens=[16, 32, 64, 64])], [1]) == pytest.approx(0.5)


def test_the_interval_of_what_is_kept_is_about_it() -> None:
    labels = [made([False, True, True])] * 10 + [made()] * 90
    found = rules.outcome(labels, [0] * 100)
    low, high = rules.kept_interval(found)
    assert found.kept == pytest.approx(0.9)
    assert low < 0.9 < high
    assert low > 0.82
    assert high < 0.97
    assert np.isclose(rules.kept_interval(found), (low, high)).all()
