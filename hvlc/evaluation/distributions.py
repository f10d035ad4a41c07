"""Distributions over the next token, given as logits."""

import numpy as np

_ROWS = 16  # compared in float64 at a time: a vocabulary may have 150,000 entries


def kl_divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence KL(reference || other), in nats.

    With `p` the reference's probabilities and `d` its logits less the other's, it is `log E_p[exp(E_p[d] - d)]`: no
    difference of large numbers, and exactly 0 between equals. It is of second order in `d`, so float32 would not do.

    Args:
        reference: float `[..., vocabulary]`, finite logits.
        other: of the same shape.

    Returns:
        float64 `[...]`, at least 0.
    """
    mine, others = (logits.reshape(-1, logits.shape[-1]) for logits in (reference, other))
    found = np.empty(len(mine))
    for start in range(0, len(mine), _ROWS):
        rows = mine[start : start + _ROWS].astype(np.float64)
        gap = rows - others[start : start + _ROWS]
        logs = rows - rows.max(-1, keepdims=True)
        weights = np.exp(logs)
        norm = weights.sum(-1)
        logs -= gap - ((weights * gap).sum(-1) / norm)[:, None]
        top = np.maximum(logs.max(-1), 0)  # above 0 only where the distributions have little in common
        found[start : start + _ROWS] = top + np.log(np.exp(logs - top[:, None]).sum(-1) / norm)
    return np.maximum(found, 0).reshape(reference.shape[:-1])
