"""Candidates of a tuning, what each costs and keeps, the front of the best, and the choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hvlc.evaluation.metrics import ratio
from hvlc.results.tuning import Asked, MeasuredCandidate, TuningFront

#: Factors on the compressor's scale that are tried.
MARGINS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)

#: Quantiles of the visual tokens at full size that are tried as bounds.
BOUNDS = (0.35, 0.6, 0.85)


@dataclass(frozen=True)
class Candidate:
    """Choices for a package.

    Attributes:
        encoder: that answers.
        margin: factor on the compressor's scale. None: full size.
        bound: of visual tokens for one image. None: the package's.
    """

    encoder: str
    margin: float | None
    bound: int | None


def front_of(
    data: str, floor: float, candidates: Sequence[Candidate], asked: Mapping[Candidate, Sequence[Asked]]
) -> TuningFront:
    """Sum up, mark the front, and choose.

    The choice is the fastest candidate that keeps the floor on the questions that choose; of equally fast ones, that of
    fewer visual tokens. Full size by the best encoder always keeps it.

    Args:
        data: name of the questions.
        floor: share of the score to keep.
        candidates: with those at full size.
        asked: of each candidate, in the order of the questions; at least two.

    Raises:
        ValueError: no candidate at full size scores.
    """
    scores = {one: np.array([answer.score for answer in asked[one]]) for one in candidates}
    whole = [one for one in candidates if one.margin is None and one.bound is None]
    best = max(whole, key=lambda one: scores[one].mean())
    halves = [slice(0, None, 2), slice(1, None, 2)]
    full = [scores[best][half].mean() for half in halves]
    if min(full) <= 0:
        raise ValueError("no answer at full size scores")
    kept = {one: [float(scores[one][half].mean() / of) for half, of in zip(halves, full, strict=True)] for one in asked}
    tokens = {one: float(np.mean([answer.tokens for answer in asked[one]])) for one in candidates}
    seconds = {one: float(np.mean([answer.seconds for answer in asked[one]])) for one in candidates}
    costs = {one: (-float(scores[one].mean()), tokens[one], seconds[one]) for one in candidates}
    enough = [one for one in candidates if kept[one][0] >= floor]
    chosen = min(enough, key=lambda one: (seconds[one], tokens[one])) if enough else best
    confirming = scores[chosen][halves[1]]
    interval = ratio(confirming.tolist(), [float(full[1])] * len(confirming))
    measured = tuple(
        MeasuredCandidate(
            encoder=one.encoder,
            margin=one.margin,
            bound=one.bound,
            score=float(scores[one].mean()),
            tokens=tokens[one],
            seconds=seconds[one],
            kept_choosing=kept[one][0],
            kept_confirming=kept[one][1],
            best=not any(_beats(costs[other], costs[one]) for other in candidates),
        )
        for one in candidates
    )
    return TuningFront(
        data=data,
        n=len(scores[best]),
        floor=floor,
        full_score=float(scores[best].mean()),
        candidates=measured,
        chosen=list(candidates).index(chosen),
        kept=interval,
        confirmed=kept[chosen][1] >= floor,
    )


def _beats(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether one is nowhere worse and somewhere better."""
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))
