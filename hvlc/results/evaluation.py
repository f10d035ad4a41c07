"""Record of one model on one question-answering task, and its agreement with a reference."""

from typing import Literal, Self

from pydantic import Field, model_validator

from hvlc.results.answering import ExampleResult
from hvlc.results.base import Interval, Record, Score
from hvlc.results.measurement import Measurement


class Summary(Record):
    """All examples together.

    Attributes:
        n: number of examples.
        exact_match: share of exact answers.
        anls: average normalised Levenshtein similarity.
        exact_match_by_kind: share of exact answers of each kind.
        score: mean by the task's own metric; absent where it has none.
        score_by_kind: the same of each kind.
        visual_tokens: mean number per example.
        prompt_tokens: mean number per example, the visual ones included.
        generated_tokens: mean number per example.
        equal_tiles: share of tiles that equal another of their question; absent where they were not compared, or there
            are none.
        saved_tiles: share of tiles that no encoder ran over: they equal another, or their image came before; absent
            where that was not counted, or there are none.
        mean_scale: resolution scale per image; absent without images.
        median_time_to_first_token: seconds.
        p95_time_to_first_token: seconds that 95 % of the examples keep within.
        tokens_per_second: tokens after each first one, over all examples, by the time they took; absent where no answer
            has a second token.
    """

    n: int = Field(ge=1)
    exact_match: Score
    anls: Score
    exact_match_by_kind: dict[str, Score]
    score: Score | None = None
    score_by_kind: dict[str, Score] = Field(default_factory=dict)
    visual_tokens: Interval
    prompt_tokens: Interval
    generated_tokens: Interval
    equal_tiles: Interval | None = None
    saved_tiles: Interval | None = None
    mean_scale: float | None
    median_time_to_first_token: Interval
    p95_time_to_first_token: Interval
    tokens_per_second: Interval | None


class Agreement(Record):
    """An evaluation against a reference, example by example.

    Attributes:
        reference: label of the reference.
        n: number of examples.
        both_right: exact in both.
        both_wrong: exact in neither.
        lost: exact in the reference alone.
        won: exact here alone.
        same_text: share of equal answers.
        same_tokens: share of equal token sequences.
        recovery: exact match by the reference's, unrounded; absent when the reference's is 0.
        anls_recovery: the same for ANLS.
        p_value: McNemar's exact test on lost and won: the chance of a split at least this uneven if the two
            were equally good. Large: call the difference noise.
    """

    reference: str
    n: int = Field(ge=1)
    both_right: int = Field(ge=0)
    both_wrong: int = Field(ge=0)
    lost: int = Field(ge=0)
    won: int = Field(ge=0)
    same_text: Score
    same_tokens: Score
    recovery: float | None
    anls_recovery: float | None
    p_value: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        counted = self.both_right + self.both_wrong + self.lost + self.won
        if counted != self.n:
            raise ValueError(f"{counted} examples are counted, but there are {self.n}")
        return self


class Evaluation(Measurement):
    """One model on one task of questions.

    Attributes:
        kind: tells this record from a `TextEvaluation` in a file.
        examples_digest: hex SHA-256 of the examples' questions, answers and pixels.
        encoder: the vision encoder that was asked for; "" where the model has none.
        vrc: whether the resolution compressor was on.
        max_new_tokens: bound of generated tokens per example.
        summary: the scores.
        examples: one result per example, in the task's order.
        agreement: comparison of the answers with a reference's, if there was one.
    """

    kind: Literal["questions"] = "questions"
    examples_digest: str
    encoder: str
    vrc: bool
    max_new_tokens: int
    summary: Summary
    examples: tuple[ExampleResult, ...] = Field(min_length=1)
    agreement: Agreement | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        n, ids = self.summary.n, {example.id for example in self.examples}
        if len(self.examples) != n or len(ids) != n:
            raise ValueError(f"the summary counts {n} examples, the file holds {len(self.examples)} ({len(ids)} ids)")
        exact = sum(example.exact for example in self.examples)
        if exact != round(self.summary.exact_match.value * n):
            raise ValueError(f"{exact} of {n} examples are exact, the summary says {self.summary.exact_match.value}")
        return self

    @property
    def label(self) -> str:
        """Name, encoder and compressor, e.g. "w4a16 · base · VRC"."""
        return label_of(self.name, self.encoder, self.vrc)


def label_of(name: str, encoder: str, vrc: bool) -> str:
    """Label of a model in a setting; an encoder of "" is left out."""
    return " · ".join([name, *([encoder] if encoder else []), *(["VRC"] if vrc else [])])
