"""Fidelity records: divergence of a model's next-token distributions from a reference's."""

import math
from typing import Self

from pydantic import Field, model_validator

from hvlc.results.base import Interval, Record, Score


class Divergence(Record):
    """One sequence of tokens, given to both models.

    Attributes:
        tokens: positions that were compared.
        kl: mean KL(reference || this) of a position in nats.
        agreeing: positions where both find the same token likeliest.
    """

    tokens: int = Field(ge=1)
    kl: float = Field(ge=0)
    agreeing: int = Field(ge=0)

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.agreeing > self.tokens:
            raise ValueError(f"{self.agreeing} of {self.tokens} tokens agree")
        return self


class Fidelity(Record):
    """A model against a reference, position by position, both given the same tokens (teacher forcing).

    Positions of one sequence depend on each other, so both intervals come from resampling whole sequences.

    Attributes:
        reference: label of the reference.
        reference_digest: hex SHA-256 of the reference package or checkpoint.
        tokens: positions that were compared.
        kl: mean KL(reference || this) of a position in nats; `n` counts sequences.
        top1: share of positions where both find the same token likeliest; `n` counts sequences.
        sequences: one of each example's answer, or of each window of a text, in order.
    """

    reference: str
    reference_digest: str
    tokens: int = Field(ge=1)
    kl: Interval
    top1: Score
    sequences: tuple[Divergence, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        tokens = sum(sequence.tokens for sequence in self.sequences)
        kl = math.fsum(sequence.kl * sequence.tokens for sequence in self.sequences) / tokens
        top1 = sum(sequence.agreeing for sequence in self.sequences) / tokens
        if self.tokens != tokens:
            raise ValueError(f"{tokens} tokens are listed, the sum says {self.tokens}")
        if self.kl.low < 0 or not math.isclose(self.kl.value, kl, rel_tol=1e-9, abs_tol=1e-15):
            raise ValueError(f"the sequences have a mean divergence of {kl}, the sum says {self.kl.value}")
        if not math.isclose(self.top1.value, top1, rel_tol=1e-9, abs_tol=1e-15):
            raise ValueError(f"the sequences agree in {top1} of the tokens, the sum says {self.top1.value}")
        return self
