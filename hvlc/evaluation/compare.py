"""Two evaluations of the same examples, pair by pair."""

from collections import Counter

from hvlc.errors import UserError
from hvlc.evaluation.metrics import mcnemar, normalized, proportion, recovery
from hvlc.results import Agreement, Evaluation


def compare(evaluation: Evaluation, reference: Evaluation) -> Agreement:
    """Agreement of an evaluation with a reference.

    Raises:
        UserError: the two did not answer the same examples.
    """
    if evaluation.examples_digest != reference.examples_digest:
        cause = (
            f"{evaluation.label} ({evaluation.task}, n = {evaluation.summary.n}) and {reference.label} "
            f"({reference.task}, n = {reference.summary.n}) answered different examples"
        )
        raise UserError("compare.unpaired", cause, "evaluate both on the same task and count")
    pairs = list(zip(evaluation.examples, reference.examples, strict=True))
    n, counts = len(pairs), Counter((ours.exact, theirs.exact) for ours, theirs in pairs)
    lost, won = counts[False, True], counts[True, False]
    return Agreement(
        reference=reference.label,
        n=n,
        both_right=counts[True, True],
        both_wrong=counts[False, False],
        lost=lost,
        won=won,
        same_text=proportion(sum(normalized(a.prediction) == normalized(b.prediction) for a, b in pairs), n),
        same_tokens=proportion(sum(a.tokens == b.tokens for a, b in pairs), n),
        recovery=_recovery(evaluation.summary.exact_match.value, reference.summary.exact_match.value),
        anls_recovery=_recovery(evaluation.summary.anls.value, reference.summary.anls.value),
        p_value=mcnemar(lost, won),
    )


def with_agreement(evaluation: Evaluation, reference: Evaluation) -> Evaluation:
    """The evaluation with its agreement with `reference` filled in.

    Raises:
        UserError: the two did not answer the same examples.
    """
    return evaluation.model_copy(update={"agreement": compare(evaluation, reference)})


def _recovery(score: float, reference: float) -> float | None:
    return recovery(score, reference) if reference > 0 else None
