"""Record in a package that `hvlc tune` chose its encoder, the compressor's margin, and the bound of visual tokens."""

from typing import Annotated

from pydantic import Field

from hvlc.inputs.records import StrictModel
from hvlc.manifest.policy import EncoderPolicy

Tokens = Annotated[int, Field(ge=1, lt=2**31)]


class Tuning(StrictModel):
    """Choices, and what was there before, so that a rebuild can make both packages.

    Attributes:
        encoder: that answers where a request names none; rules of the policy are gone, they were not measured.
        scale_margin: factor on the compressor's scale. None: the package has no compressor.
        max_visual_tokens: bound for one image.
        data: name of the questions that decided.
        floor: share of the score that was to be kept.
        origin: hex SHA-256 of the manifest of the package that was tuned.
        policy_before: of that package.
        max_visual_tokens_before: of that package.
    """

    encoder: str
    scale_margin: Annotated[float, Field(gt=0, le=100)] | None
    max_visual_tokens: Tokens
    data: str = Field(max_length=200)
    floor: float = Field(ge=0, le=1)
    origin: str = Field(pattern="^[0-9a-f]{64}$")
    policy_before: EncoderPolicy
    max_visual_tokens_before: Tokens
