"""Divergences and output errors from their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.calibration.sensitivity import Spoken, divergence, output_error
from hvlc.solvers.statistics import Accumulator
from hvlc.weights.lazy import Constant
from tests.helpers.tolerances import SOLVER_ERROR


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
    assert divergence(mine, other) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_equal_answers_diverge_by_nothing_at_all() -> None:
    logits = np.random.default_rng(0).normal(0, 8, (2, 150, 33)).astype(np.float32)
    assert np.array_equal(divergence(logits, logits.copy()), np.zeros((2, 150)))


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    random = np.random.default_rng(1)
    mine = random.normal(0, 3, (200, 1000)).astype(np.float32)
    other = mine + random.normal(0, 3e-3, mine.shape).astype(np.float32)
    expected = np.mean([plain_divergence(a, b) for a, b in zip(mine, other, strict=True)])
    assert 1e-6 < expected < 1e-5
    assert divergence(mine, other).mean() == pytest.approx(expected, rel=1e-6)


def test_a_loss_counts_scored_positions_and_all_tokens() -> None:
    random = np.random.default_rng(2)
    mine = [random.normal(size=(2, 5, 7)).astype(np.float32), random.normal(size=(1, 9, 7)).astype(np.float32)]
    other = [logits + random.normal(size=logits.shape).astype(np.float32) for logits in mine]
    spoken = Spoken(mine, [slice(None), slice(3, 7)], 20)
    expected = divergence(mine[0], other[0]).sum() + divergence(mine[1][:, 3:7], other[1][:, 3:7]).sum()
    assert spoken.loss(other) == pytest.approx(expected / 20)
    assert spoken.of([1]).loss(other[1:]) == pytest.approx(divergence(mine[1][:, 3:7], other[1][:, 3:7]).sum() / 20)
    with pytest.raises(ValueError, match="shorter"):
        spoken.loss(other[:1])


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 30), st.integers(0, 99))
def test_an_output_error_is_that_of_the_outputs(rows: int, columns: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, columns)).astype(np.float32)
    weight = random.normal(size=(rows, columns)).astype(np.float32)
    quantized = np.round(weight * 4).astype(np.float32) / 4
    accumulator = Accumulator(columns)
    accumulator.add(x)
    error, whole = output_error(Constant(weight), quantized, accumulator.finish().gram)
    outputs, others = x.astype(np.float64) @ weight.T, x.astype(np.float64) @ quantized.T
    assert whole == pytest.approx(np.square(outputs).sum() / count, rel=SOLVER_ERROR)
    assert error == pytest.approx(np.square(outputs - others).sum() / count, rel=SOLVER_ERROR, abs=1e-6)


def test_a_matrix_of_many_rows_is_summed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(3).normal(size=(11, 5)).astype(np.float32)
    gram = np.eye(5, dtype=np.float32)
    expected = output_error(Constant(weight), np.zeros_like(weight), gram)
    monkeypatch.setattr("hvlc.calibration.sensitivity._ROWS", 4)
    assert output_error(Constant(weight), np.zeros_like(weight), gram) == pytest.approx(expected)
    assert expected[0] == pytest.approx(expected[1]) == pytest.approx(np.square(weight).sum())
