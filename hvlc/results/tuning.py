"""Result of `hvlc tune`: what each choice of a package keeps and costs, and the one that was chosen."""

from typing import Annotated

from pydantic import Field

from hvlc.results.base import Interval, Record

Share = Annotated[float, Field(ge=0)]


class Asked(Record):
    """One question, by one candidate.

    Attributes:
        score: by the task's metric.
        tokens: visual tokens.
        seconds: of the processor until the first token.
    """

    score: float
    tokens: int
    seconds: float


class MeasuredCandidate(Record):
    """A candidate on all questions.

    Attributes:
        encoder: that answers.
        margin: factor on the compressor's scale. None: full size.
        bound: of visual tokens for one image. None: the package's.
        score: mean score of all questions.
        tokens: mean visual tokens.
        seconds: mean processor time until the first token.
        kept_choosing: share of the best full-size score, on the questions that choose.
        kept_confirming: the same on the questions that confirm.
        best: whether no other candidate keeps as much in less time and with fewer tokens.
    """

    encoder: str
    margin: float | None
    bound: int | None
    score: float
    tokens: float
    seconds: float
    kept_choosing: Share
    kept_confirming: Share
    best: bool


class TuningFront(Record):
    """Result of a tuning.

    Attributes:
        data: name of the questions.
        n: number of them; those at even places choose, the others confirm.
        floor: share of the score that was to be kept.
        full_score: mean score at full size by the encoder that scores best there.
        candidates: all that were tried.
        chosen: index of the choice in these.
        kept: share of the full-size score that the choice keeps on the confirming questions, with its interval.
        confirmed: whether that is at least the floor.
    """

    data: str
    n: int
    floor: float
    full_score: float
    candidates: tuple[MeasuredCandidate, ...]
    chosen: int
    kept: Interval
    confirmed: bool


class Answers(Record):
    """Answers to one question.

    Attributes:
        asked: by candidate, in their order.
    """

    asked: tuple[Asked, ...]
