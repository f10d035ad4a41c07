"""KL divergence and top-1 agreement against hand-computed values and scipy-free oracles."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hvlc.errors import UserError
from hvlc.evaluation.fidelity import divergence, fidelity
from hvlc.results import Divergence, Fidelity


def logits(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_kl_by_hand() -> None:
    """(3/4, 1/4) against (1/2, 1/2), and equal distributions whatever constant their logits have."""
    reference = logits([math.log(3.0), 0.0], [5.0, 1.0])
    ours = logits([7.0, 7.0], [105.0, 101.0])
    found = divergence(reference, ours)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.kl == pytest.approx(first / 2, rel=1e-6)
    assert found.tokens == 2
    assert found.agreeing == 2  # of the equal logits the first counts


def test_kl_is_from_the_reference_and_not_symmetric() -> None:
    sure, unsure = logits([4.0, 0.0, 0.0]), logits([0.0, 0.0, 0.0])
    p = np.exp([4.0, 0.0, 0.0]) / (math.exp(4.0) + 2)
    assert divergence(sure, unsure).kl == pytest.approx(float(np.sum(p * np.log(p * 3))), rel=1e-6)
    assert divergence(unsure, sure).kl == pytest.approx(float(np.mean(-np.log(p * 3))), rel=1e-6)


def test_top1_counts_positions() -> None:
    reference = logits([0, 1, 2], [2, 1, 0], [0, 3, 1])
    ours = logits([0, 2, 1], [9, 1, 0], [1, 2, 0])
    assert divergence(reference, ours).agreeing == 2


@given(st.integers(0, 10_000), st.integers(1, 130), st.integers(2, 9))
def test_kl_is_never_negative_and_0_against_itself(seed: int, rows: int, vocabulary: int) -> None:
    random = np.random.default_rng(seed)
    ours, reference = random.normal(0, 20, (2, rows, vocabulary)).astype(np.float32)
    assert divergence(reference, ours).kl >= 0
    same = divergence(ours, ours)
    assert (same.kl, same.agreeing) == (0.0, rows)


def test_huge_logits_do_not_overflow() -> None:
    assert divergence(logits([1e38, 0]), logits([0, 1e38])).kl == pytest.approx(1e38, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_told(value: float) -> None:
    for pair in ((logits([0, value]), logits([0, 1])), (logits([0, 1]), logits([0, value]))):
        with pytest.raises(UserError, match=r"eval\.numbers"):
            divergence(*pair)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match=r"eval\.reference"):
        divergence(logits([0, 1]), logits([0, 1, 2]))


def test_sequences_are_weighed_by_their_tokens() -> None:
    parts = [Divergence(tokens=1, kl=1.0, agreeing=0), Divergence(tokens=9, kl=0.0, agreeing=9)]
    found = fidelity("float32", "0" * 64, parts)
    assert found.kl.value == pytest.approx(0.1)
    assert found.top1.value == pytest.approx(0.9)
    assert (found.tokens, found.kl.n, found.top1.n) == (10, 2, 2)  # sequences are what was drawn, not tokens


def test_sums_that_do_not_follow_from_the_sequences_are_refused() -> None:
    data = fidelity("float32", "0" * 64, [Divergence(tokens=4, kl=0.5, agreeing=3)] * 8).model_dump()
    assert Fidelity.model_validate(data)
    wrong = [
        {"tokens": 31},
        {"kl": data["kl"] | {"value": 0.4, "low": 0.4}},
        {"top1": data["top1"] | {"value": 0.7}},
        {"kl": data["kl"] | {"value": math.nan}},
        {"sequences": ()},
    ]
    for change in wrong:
        with pytest.raises(ValidationError):
            Fidelity.model_validate(data | change)
    with pytest.raises(ValidationError, match="5 of 4 tokens agree"):
        Divergence(tokens=4, kl=0, agreeing=5)
