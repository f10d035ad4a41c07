"""Dual Consistency Learning: both branches answer through one language model and shall agree.

The loss is the answer cross-entropy of each branch plus the divergence of the small branch's
answer distribution from the large branch's, both softened by a temperature (arXiv 2512.14052).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def divergence(large: torch.Tensor, base: torch.Tensor, temperature: float) -> torch.Tensor:
    """`T^2 * KL(softmax(large / T) || softmax(base / T))`, mean over positions.

    The large branch is the teacher: no gradient flows into it. `T^2` keeps the size of the
    gradient independent of the temperature.

    Args:
        large: Logits float `[positions, vocabulary]`.
        base: Logits of the same positions.
        temperature: Positive.
    """
    teacher = F.log_softmax(large.detach() / temperature, -1)
    student = F.log_softmax(base / temperature, -1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def dual_consistency_loss(
    large: torch.Tensor,
    base: torch.Tensor,
    targets: torch.Tensor,
    *,
    weight: float = 1.0,
    temperature: float = 2.0,
) -> torch.Tensor:
    """Cross-entropy on both branches plus `weight` times their `divergence`.

    Args:
        large: Logits float `[positions, vocabulary]` of the answer tokens, large branch.
        base: The same of the base branch.
        targets: int64 `[positions]`.
        weight: Of the divergence.
        temperature: Of the divergence.
    """
    answered = F.cross_entropy(large, targets) + F.cross_entropy(base, targets)
    return answered + weight * divergence(large, base, temperature)
