"""The divergence from its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.evaluation.distributions import kl_divergence


def plain_divergence(mine: np.ndarray, other: np.ndarray) -> float:
    """`sum p log(p / q)`."""
    p, q = np.exp(mine.astype(np.float64)), np.exp(other.astype(np.float64))
    p, q = p / p.sum(), q / q.sum()
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


@given(st.integers(0, 1000), st.floats(1e-3, 5), st.floats(-50, 50, width=32))
def test_a_divergence_is_that_of_its_definition(seed: int, gap: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    mine = random.normal(0, 4, (3, 17)).astype(np.float32)
    other = (mine + random.normal(0, gap, mine.shape) + shift).astype(np.float32)
    expected = [plain_divergence(a, b) for a, b in zip(mine, other, strict=True)]
    assert kl_divergence(mine, other) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_equal_answers_diverge_by_nothing_at_all() -> None:
    logits = np.random.default_rng(0).normal(0, 8, (2, 150, 33)).astype(np.float32)
    assert np.array_equal(kl_divergence(logits, logits.copy()), np.zeros((2, 150)))


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    random = np.random.default_rng(1)
    mine = random.normal(0, 3, (200, 1000)).astype(np.float32)
    other = mine + random.normal(0, 3e-3, mine.shape).astype(np.float32)
    expected = np.mean([plain_divergence(a, b) for a, b in zip(mine, other, strict=True)])
    assert 1e-6 < expected < 1e-5
    assert kl_divergence(mine, other).mean() == pytest.approx(expected, rel=1e-6)
