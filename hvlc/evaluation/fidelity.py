"""Distance of a model's distribution over the next token from a reference's, both given the same tokens."""

from collections.abc import Sequence

import numpy as np

from hvlc.errors import UserError
from hvlc.evaluation.distributions import kl_divergence
from hvlc.evaluation.metrics import ratio, share
from hvlc.results import Divergence, Fidelity


def divergence(reference: np.ndarray, ours: np.ndarray) -> Divergence:
    """KL(reference || ours) and top-1 agreement at every position of a sequence.

    Args:
        reference: float `[n, vocabulary]`, logits.
        ours: the same for the model that is measured.

    Raises:
        UserError: the vocabularies differ, or a logit is not finite.
    """
    if reference.shape != ours.shape:
        cause = f"the reference says logits {list(reference.shape)}, the model {list(ours.shape)}"
        raise UserError("eval.reference", cause, "compare models that share a tokenizer and a vocabulary")
    if not (np.isfinite(reference).all() and np.isfinite(ours).all()):
        raise UserError("eval.numbers", "the logits are not finite", "check the model: it overflows")
    agreeing = int(np.sum(reference.argmax(-1) == ours.argmax(-1)))
    kl = float(kl_divergence(reference, ours).mean())
    return Divergence(tokens=len(reference), kl=kl, agreeing=agreeing)


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
