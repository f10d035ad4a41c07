"""Tests of significance for differences between two evaluations of the same examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hvlc.errors import UserError
from hvlc.evaluation.compare import compare
from hvlc.evaluation.metrics import mcnemar, normalized, ratio
from hvlc.results import Evaluation, Interval, Measured, TextEvaluation
from hvlc.results.comparison import SIGNIFICANCE, Flip, PairedTest
from hvlc.results.measures import MEASURES

_FLIPS = 10_000
_AT_ONCE = 4_000_000  # signs


@dataclass(frozen=True)
class _Untold:
    """A test before its p-value is corrected for the others."""

    measure: str
    run: Measured
    reference: Measured
    difference: Interval
    method: Literal["McNemar", "sign flips"]
    p_value: float


def paired_tests(pairs: Sequence[tuple[Measured, Measured]]) -> list[PairedTest]:
    """Every score of runs against their references'; p-values are corrected for all of them together.

    Args:
        pairs: a run and its reference each.

    Raises:
        UserError: a pair did not answer the same examples or read the same windows.
    """
    found = [test for run, reference in pairs for test in _tests(run, reference)]
    adjusted = holm([test.p_value for test in found])
    return [_told(test, p) for test, p in zip(found, adjusted, strict=True)]


def _told(test: _Untold, adjusted: float) -> PairedTest:
    good = (test.difference.value > 0) == MEASURES[test.measure].higher_is_better
    return PairedTest(
        measure=test.measure,
        run=test.run.label,
        reference=test.reference.label,
        difference=test.difference,
        method=test.method,
        p_value=test.p_value,
        adjusted=adjusted,
        verdict="noise" if adjusted >= SIGNIFICANCE else "better" if good else "worse",
    )


def _tests(run: Measured, reference: Measured) -> Iterator[_Untold]:
    """The tests that there are for a kind of task."""
    if isinstance(run, Evaluation) and isinstance(reference, Evaluation):
        agreement = compare(run, reference)
        pairs = list(zip(run.examples, reference.examples, strict=True))
        exact = [float(ours.exact) - float(theirs.exact) for ours, theirs in pairs]
        yield _Untold("exact_match", run, reference, ratio(exact), "McNemar", mcnemar(agreement.lost, agreement.won))
        gaps = [ours.anls - theirs.anls for ours, theirs in pairs]
        yield _Untold("anls", run, reference, ratio(gaps), "sign flips", sign_flip_p_value(gaps))
        scored = [(ours.score, theirs.score) for ours, theirs in pairs]
        gaps = [ours - theirs for ours, theirs in scored if ours is not None and theirs is not None]
        tested = {"exact_match", "anls"}  # a second test of one number would only make all of them weaker
        if len(gaps) == len(pairs) and not tested >= {ours.metric for ours, _ in pairs}:
            yield _Untold("score", run, reference, ratio(gaps), "sign flips", sign_flip_p_value(gaps))
    elif isinstance(run, TextEvaluation) and isinstance(reference, TextEvaluation):
        if run.text_digest != reference.text_digest:
            cause = f"{run.label} and {reference.label} read different windows"
            raise UserError("compare.unpaired", cause, "evaluate both on the same text, --tokens and --window")
        windows = list(zip(run.windows, reference.windows, strict=True))
        tokens = [ours.tokens for ours, _ in windows]
        gaps = [(ours.nll - theirs.nll) * ours.tokens for ours, theirs in windows]
        p_value = sign_flip_p_value(gaps)
        yield _Untold("perplexity", run, reference, ratio(gaps, tokens), "sign flips", p_value)
    else:
        cause = f"{run.label} read a text and {reference.label} answered questions, or the other way around"
        raise UserError("compare.unpaired", cause, "compare evaluations of one task")


def sign_flip_p_value(gaps: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of a paired difference: if the two were equally good, each pair's sign could be the other one.

    Valid for any number of pairs, while a bootstrap claims too much of few: Noreen, "Computer-Intensive Methods for
    Testing Hypotheses", 1989; Riezler and Maxwell, "On Some Pitfalls in Automatic Evaluation and Significance Testing
    for MT", 2005. One is added to both counts, which keeps it above 0: Davison and Hinkley, "Bootstrap Methods and
    Their Application", 1997, section 4.2.

    Args:
        gaps: of the pairs, weighted by size where pairs have one.
        seed: of the signs that are tried.

    Raises:
        ValueError: there is no pair, or a number is not finite.
    """
    values = np.asarray(gaps, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("no difference of no pairs, or of numbers that are not finite")
    values = values[values != 0]  # whose sign makes no difference
    if values.size == 0:
        return 1.0
    observed, size = abs(float(values.sum())), float(np.abs(values).sum())
    generator, extreme = np.random.default_rng(seed), 0
    step = max(1, _AT_ONCE // values.size)
    for start in range(0, _FLIPS, step):
        signs = generator.integers(0, 2, (min(step, _FLIPS - start), values.size), np.int8) * 2 - 1
        extreme += int((np.abs(signs @ values) >= observed - 1e-12 * size).sum())  # sums in another order miss by ulps
    return (1 + extreme) / (1 + _FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are, so that all of them together err as seldom as one.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def flips(run: Evaluation, reference: Evaluation) -> list[Flip]:
    """The examples that are right in one of two evaluations of the same examples."""
    return [
        Flip(
            run=run.label,
            id=ours.id,
            index=ours.index,
            kind=ours.kind,
            question=ours.question,
            answers=ours.answers,
            before=normalized(theirs.prediction),
            after=normalized(ours.prediction),
            direction="won" if ours.exact else "lost",
        )
        for ours, theirs in zip(run.examples, reference.examples, strict=True)
        if ours.exact != theirs.exact
    ]
