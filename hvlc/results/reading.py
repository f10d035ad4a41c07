"""Records of an evaluation on a text: negative log-likelihoods and perplexity."""

import math
from statistics import stdev
from typing import Literal, Self

from pydantic import Field, model_validator

from hvlc.results.base import Interval, Record
from hvlc.results.evaluation import Evaluation
from hvlc.results.measurement import Measurement


class ScoredWindow(Record):
    """Score of one window of a text.

    Attributes:
        nll: mean negative log-likelihood of a token in nats.
        tokens: that were predicted.
    """

    nll: float
    tokens: int = Field(ge=1)


class Perplexity(Record):
    """Perplexity of a text.

    Attributes:
        windows: one after another.
    """

    windows: tuple[ScoredWindow, ...] = Field(min_length=1)

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
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


class ReadingAgreement(Record):
    """A text evaluation against a reference's, window by window.

    Attributes:
        reference: label of the reference.
        ratio: this perplexity over the reference's on the same windows; `n` counts windows.
    """

    reference: str
    ratio: Interval


class TextEvaluation(Measurement):
    """One model on one text.

    Attributes:
        kind: tells this record from an `Evaluation` in a file.
        text_digest: hex SHA-256 of the windows' token ids.
        window: tokens that were read at once, the opening ones included.
        tokens: that were predicted.
        perplexity: `exp` of the mean negative log-likelihood of a token; `n` counts windows.
        windows: one after another.
        agreement: comparison of the perplexity with a reference's, if there was one.
    """

    kind: Literal["text"] = "text"
    text_digest: str
    window: int = Field(ge=2)
    tokens: int = Field(ge=1)
    perplexity: Interval
    windows: tuple[ScoredWindow, ...] = Field(min_length=1)
    agreement: ReadingAgreement | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        reading = self.reading
        if self.tokens != reading.tokens:
            raise ValueError(f"{reading.tokens} tokens are listed, the sum says {self.tokens}")
        if not math.isclose(self.perplexity.value, reading.value, rel_tol=1e-9):
            raise ValueError(f"the windows' perplexity is {reading.value}, the sum says {self.perplexity.value}")
        return self

    @property
    def reading(self) -> Perplexity:
        """The windows as what their perplexity and its ratio to another's are computed from."""
        return Perplexity(windows=self.windows)

    @property
    def label(self) -> str:
        """The name: a text is read in one setting."""
        return self.name


#: Results of an evaluation.
Measured = Evaluation | TextEvaluation
