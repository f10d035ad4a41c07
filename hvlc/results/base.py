"""Base class of records, which are strict, and numbers with their confidence intervals."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: 97.5 % quantile of the normal distribution: standard errors of a 95 % interval.
Z = 1.959963984540054


class Record(BaseModel):
    """A frozen record without unknown keys and without NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,  # files have every field, and docs/schema says so
    )


class Interval(Record):
    """A measured number with its 95 % confidence interval.

    Attributes:
        value: as measured, unrounded.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of observations.
        method: how the interval was made; "exact" where nothing is uncertain, as with a size; "range" where there were
            too few observations for 95 %, and the ends are the lowest and the highest that there are.
    """

    value: float
    low: float
    high: float
    n: int = Field(ge=1)
    method: Literal["wilson", "bootstrap", "order statistics", "range", "exact"]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is outside its interval {self.low} to {self.high}")
        return self


class Score(Interval):
    """A share or mean of scores within 0 and 1, with its interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    method: Literal["wilson", "bootstrap"]


def exact(value: float) -> Interval:
    """A number that nothing makes uncertain."""
    return Interval(value=value, low=value, high=value, n=1, method="exact")


def wilson(share: float, n: float, z: float = Z) -> tuple[float, float]:
    """Ends of Wilson's interval of a share of `n`, 0 to 1.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

    Args:
        share: that was observed.
        n: number of observations.
        z: standard errors to either side; the default gives 95 %.
    """
    spread = z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # The ends are exactly 0 and 1 there; in floats they miss by an ulp.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
