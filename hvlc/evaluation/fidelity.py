"""How close a model's distribution over the next token is to a reference's, both given the same tokens."""

from collections.abc import Sequence

import numpy as np

from hvlc.errors import UserError
from hvlc.evaluation.metrics import ratio, share
from hvlc.results import Divergence, Fidelity

_ROWS = 64  # that are in float64 at a time


def divergence(reference: np.ndarray, ours: np.ndarray) -> Divergence:
    """KL(reference || ours) and top-1 agreement at every position of a sequence.

    In float64 from the logits on; rounding may leave a mean of equal distributions some ulps below 0, which is 0.

    Args:
        reference: float `[n, vocabulary]`, logits.
        ours: the same for the model that is measured.

    Raises:
        UserError: the vocabularies differ, or a logit is not finite.
    """
    if reference.shape != ours.shape:
        cause = f"the reference says logits {list(reference.shape)}, the model {list(ours.shape)}"
        raise UserError("eval.reference", cause, "compare models that share a tokenizer and a vocabulary")
    total, agreeing = 0.0, 0
    for start in range(0, len(reference), _ROWS):
        rows = slice(start, start + _ROWS)
        expected, found = _log_softmax(reference[rows]), _log_softmax(ours[rows])
        total += max(0.0, float(np.sum(np.exp(expected) * (expected - found))))
        agreeing += int(np.sum(reference[rows].argmax(-1) == ours[rows].argmax(-1)))
    return Divergence(tokens=len(reference), kl=total / len(reference), agreeing=agreeing)


def fidelity(reference: str, reference_digest: str, sequences: Sequence[Divergence]) -> Fidelity:
    """The sequences together; see `Fidelity`.

    Args:
        reference: label of the reference.
        reference_digest: hex SHA-256 of the reference.
        sequences: at least one.
    """
    tokens = [sequence.tokens for sequence in sequences]
    return Fidelity(
        reference=reference,
        reference_digest=reference_digest,
        tokens=sum(tokens),
        kl=ratio([sequence.kl * sequence.tokens for sequence in sequences], tokens),
        top1=share([sequence.agreeing for sequence in sequences], tokens),
        sequences=tuple(sequences),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 `[n, vocabulary]`.

    Raises:
        UserError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise UserError("eval.numbers", "the logits are not finite", "check the model: it overflows")
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True).astype(np.float64)
    normalized: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalized
