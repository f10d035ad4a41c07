"""Dual Consistency Learning against numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hvlc.training.alignment import divergence, dual_consistency_loss  # noqa: E402


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_loss_equals_the_textbook(temperature):
    rng = np.random.default_rng(0)
    large, base = rng.normal(size=(2, 7, 11)) * 3
    targets = rng.integers(0, 11, 7)
    rows = np.arange(7)
    answered = -_log_softmax(large)[rows, targets].mean() - _log_softmax(base)[rows, targets].mean()
    teacher, student = _log_softmax(large / temperature), _log_softmax(base / temperature)
    apart = (np.exp(teacher) * (teacher - student)).sum(-1).mean() * temperature**2
    loss = dual_consistency_loss(
        torch.tensor(large), torch.tensor(base), torch.tensor(targets), weight=0.7, temperature=temperature
    )
    assert loss.item() == pytest.approx(answered + 0.7 * apart, rel=1e-9)


def test_equal_branches_do_not_diverge():
    logits = torch.randn(3, 5)
    assert divergence(logits, logits.clone(), 2.0).item() == pytest.approx(0.0, abs=1e-7)


def test_the_large_branch_is_the_teacher_only():
    large = torch.randn(3, 5, requires_grad=True)
    base = torch.randn(3, 5, requires_grad=True)
    divergence(large, base, 2.0).backward()
    assert large.grad is None
    assert base.grad is not None
