"""Losses and output errors from their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.calibration.sensitivity import FloatLogits, output_error
from hvlc.evaluation.distributions import kl_divergence
from hvlc.solvers.statistics import Accumulator
from hvlc.weights.lazy import Constant
from tests.helpers.tolerances import SOLVER_ERROR


def test_a_loss_counts_scored_positions_and_all_tokens() -> None:
    random = np.random.default_rng(2)
    mine = [random.normal(size=(2, 5, 7)).astype(np.float32), random.normal(size=(1, 9, 7)).astype(np.float32)]
    other = [logits + random.normal(size=logits.shape).astype(np.float32) for logits in mine]
    float_logits = FloatLogits(mine, [slice(None), slice(3, 7)], 20)
    expected = kl_divergence(mine[0], other[0]).sum() + kl_divergence(mine[1][:, 3:7], other[1][:, 3:7]).sum()
    assert float_logits.loss(other) == pytest.approx(expected / 20)
    assert float_logits.of([1]).loss(other[1:]) == pytest.approx(
        kl_divergence(mine[1][:, 3:7], other[1][:, 3:7]).sum() / 20
    )
    with pytest.raises(ValueError, match="shorter"):
        float_logits.loss(other[:1])


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
