"""What was measured: the records that evaluation makes, reports show and JSON files keep.

Evaluation and report never import each other; these records are what passes between them. Each is frozen,
refuses unknown keys and any number that is not finite: what was not measured is absent (`None`), never 0 or NaN.
"""

import contextlib
import math
import secrets
from collections.abc import Iterable
from pathlib import Path
from statistics import stdev
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hvlc.errors import UserError

#: Raised whenever a change makes older files unreadable.
SCHEMA_VERSION: Final = 1

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


class Record(BaseModel):
    """A frozen record without unknown keys and without NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Answered(Record):
    """One answer and what it cost.

    Attributes:
        text: the answer, without special tokens.
        tokens: ids of the generated tokens; the end token is the last one, if it was generated.
        encoder: the vision encoder that ran ("base", "large"), also when the request said "auto"; "" without images.
        scales: the resolution scale of each image, 1.0 without the compressor.
        tiles: number of tiles of all images.
        visual_tokens: number of visual tokens of all images.
        prompt_tokens: number of prompt tokens, the visual ones included.
        time_to_first_token: seconds from the request, images decoded, to the first token.
        decode_seconds: seconds from the first token to the last.
    """

    text: str
    tokens: tuple[int, ...]
    encoder: str
    scales: tuple[float, ...]
    tiles: int = Field(ge=0)
    visual_tokens: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    time_to_first_token: float = Field(ge=0)
    decode_seconds: float = Field(ge=0)


class Score(Record):
    """A score with its 95 % confidence interval.

    Attributes:
        value: the mean over the examples, 0 to 1, unrounded.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of examples.
        method: how the interval was made.
    """

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    method: Literal["wilson", "bootstrap"]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the score {self.value} is outside its interval {self.low} to {self.high}")
        return self


class ExampleResult(Record):
    """One example: what was asked, what was expected, what came out.

    Attributes:
        id: name of the example within its task, unique.
        index: position within its task, from 0.
        kind: group of the example, e.g. "receipt"; scores are also given per kind.
        question: the prompt.
        answers: every accepted answer.
        prediction: the model's answer.
        tokens: ids of the generated tokens.
        exact: whether the prediction equals one of the answers (see `hvlc.evaluation.metrics.exact_match`).
        anls: see `hvlc.evaluation.metrics.anls`.
        encoder: the vision encoder that ran.
        scales: the resolution scale of each image.
        tiles: number of tiles.
        visual_tokens: number of visual tokens.
        prompt_tokens: number of prompt tokens.
        time_to_first_token: seconds.
        decode_seconds: seconds from the first token to the last.
    """

    id: str
    index: int = Field(ge=0)
    kind: str
    question: str
    answers: tuple[str, ...] = Field(min_length=1)
    prediction: str
    tokens: tuple[int, ...]
    exact: bool
    anls: float = Field(ge=0, le=1)
    encoder: str
    scales: tuple[float, ...]
    tiles: int
    visual_tokens: int
    prompt_tokens: int
    time_to_first_token: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first per second; absent when there were none."""
        return token_rate([self])


class Summary(Record):
    """The means over all examples.

    Attributes:
        n: number of examples.
        exact_match: share of exact answers.
        anls: average normalised Levenshtein similarity.
        exact_match_by_kind: share of exact answers of each kind.
        mean_visual_tokens: visual tokens per example.
        mean_scale: resolution scale per image; absent without images.
        median_time_to_first_token: seconds.
        tokens_per_second: tokens after the first, over all examples, by the time they took.
    """

    n: int = Field(ge=1)
    exact_match: Score
    anls: Score
    exact_match_by_kind: dict[str, Score]
    mean_visual_tokens: float
    mean_scale: float | None
    median_time_to_first_token: float
    tokens_per_second: float | None


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


class Evaluation(Record):
    """One model on one task.

    Attributes:
        schema_version: version of this file format.
        name: name of the model or package.
        runs_on: what it ran on, e.g. "onnxruntime CPU".
        task: name of the task.
        examples_digest: hex SHA-256 of the examples' questions, answers and pixels.
        encoder: the vision encoder that was asked for.
        vrc: whether the resolution compressor was on.
        max_new_tokens: bound of generated tokens per example.
        summary: the scores.
        examples: one result per example, in the task's order.
        peak_memory_bytes: peak resident memory of the process while answering; absent where the system cannot tell.
        size_bytes: size of the package on disk.
        agreement: comparison with a reference, if there was one.
        provenance: digests and versions, as given by the caller.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    runs_on: str
    task: str
    examples_digest: str
    encoder: str
    vrc: bool
    max_new_tokens: int
    summary: Summary
    examples: tuple[ExampleResult, ...] = Field(min_length=1)
    peak_memory_bytes: int | None = None
    size_bytes: int | None = None
    agreement: Agreement | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

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
        return " · ".join([self.name, self.encoder, *(["VRC"] if self.vrc else [])])


class ScoredWindow(Record):
    """How a model read one window of a text.

    Attributes:
        nll: mean negative log-likelihood of a token in nats.
        tokens: that were predicted.
    """

    nll: float
    tokens: int = Field(ge=1)


class Perplexity(Record):
    """How a model read a text.

    Attributes:
        windows: one after another.
    """

    windows: tuple[ScoredWindow, ...] = Field(min_length=1)

    @property
    def tokens(self) -> int:
        """That were predicted."""
        return sum(w.tokens for w in self.windows)

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of a token in nats."""
        return sum(w.nll * w.tokens for w in self.windows) / self.tokens

    @property
    def value(self) -> float:
        """`exp` of the mean negative log-likelihood."""
        return math.exp(self.nll)

    def ratio(self, reference: "Perplexity") -> tuple[float, float | None]:
        """This perplexity over another's on the same windows, and the standard error of the quotient.

        The error follows from how the windows' log-likelihoods differ; one window has none.

        Raises:
            ValueError: the windows are not the same.
        """
        if [w.tokens for w in self.windows] != [w.tokens for w in reference.windows]:
            raise ValueError("the windows differ")
        quotient = math.exp(self.nll - reference.nll)
        gaps = [mine.nll - other.nll for mine, other in zip(self.windows, reference.windows, strict=True)]
        return quotient, quotient * stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None


def wilson(share: float, n: int) -> tuple[float, float]:
    """Ends of Wilson's 95 % interval of a share of `n`, 0 to 1.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    spread = _Z * _Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # The ends are exactly 0 and 1 there; in floats they miss by an ulp.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def token_rate(examples: Iterable[ExampleResult]) -> float | None:
    """Tokens after each first one by the seconds they took; absent when there were none."""
    tokens, seconds = 0, 0.0
    for example in examples:
        tokens += max(0, len(example.tokens) - 1)
        seconds += example.decode_seconds
    return tokens / seconds if tokens and seconds > 0 else None


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Writes a UTF-8 text file whole or not at all: to a temporary sibling that is then renamed.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
        temporary.replace(path)
    except OSError as error:
        fix = "choose another place or make room"
        raise UserError("results.unwritable", f"cannot write {path}: {error.strerror or error}", fix) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # also after Ctrl-C


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Writes an evaluation as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    write_whole(path, [evaluation.model_dump_json(indent=1), "\n"])


def read_evaluation(path: Path) -> Evaluation:
    """Reads what `write_evaluation` wrote.

    Raises:
        UserError: the file is missing, cut short, of another version, or has unknown keys.
    """
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except OSError as error:
        fix = "check the path"
        raise UserError("results.unreadable", f"cannot read {path}: {error.strerror or error}", fix) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        cause = f"{path} is not an evaluation that this version reads: {where}: {first['msg']}"
        raise UserError("results.invalid", cause, "run `hvlc eval` again to write a new file") from error
