"""How a model read a text."""

import math
from statistics import stdev

from pydantic import Field

from hvlc.results.base import Record


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
