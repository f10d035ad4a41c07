"""A resolution compressor that was trained for a checkpoint: what its directory says, and its part of the bundle.

`hvlc train vrc` writes the directory, config.json and safetensors, as checkpoints are. It joins the checkpoint that it
was trained for (`Checkpoint.joined`), so every build reads both, and locks and digests cover both.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from hvlc.errors import UserError
from hvlc.export.mobilenet import QuestionShape, resolution_compressor
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Component, Role
from hvlc.graphs.facts import CompressorFacts
from hvlc.inputs.records import StrictModel
from hvlc.weights.checkpoint import RESOLUTION_COMPRESSOR as JOINED
from hvlc.weights.checkpoint import Checkpoint

#: `model_type` of config.json.
MODEL_TYPE = "hvlc_resolution_compressor"

_Share = Field(ge=0, le=1)


class QuestionSettings(StrictModel):
    """Part of a question that a compressor reads.

    Attributes:
        vocabulary: rows of its table.
        width: of the table.
        channels: of its convolutions.
        window: tokens that each of them spans.
        max_tokens: first tokens of a question that are read.
    """

    vocabulary: int = Field(ge=1, lt=2**24)
    width: int = Field(ge=1, le=1024)
    channels: int = Field(ge=1, le=1024)
    window: Literal[1, 3, 5, 7, 9]
    max_tokens: int = Field(ge=1, le=4096)


class HeldOut(StrictModel):
    """Figures of a compressor on questions that neither training nor any choice has seen.

    Attributes:
        n: number of questions.
        full_score: mean score at full size.
        score: mean score at the chosen scales.
        kept: `score` by `full_score`.
        kept_low: lower end of the 95 % interval of `kept`.
        kept_high: upper end.
        saved: share of visual tokens saved.
        oracle_saved: share that the smallest scale with an equivalent answer saves, question by question.
        recovered: `saved` by `oracle_saved`; None where the oracle saves nothing.
        rounding: share of visual tokens that whole tiles or cells cost beyond the area that is asked for.
    """

    n: int = Field(ge=1)
    full_score: float = _Share
    score: float = _Share
    kept: float = Field(ge=0)
    kept_low: float = Field(ge=0)
    kept_high: float = Field(ge=0)
    saved: float = Field(le=1)
    oracle_saved: float = Field(le=1)
    recovered: float | None
    rounding: float


#: Mean and deviation of a channel on the 0..1 scale; pixels divided by a deviation near 0 are not finite.
_Mean = Annotated[float, Field(ge=-10, le=10)]
_Deviation = Annotated[float, Field(ge=1e-3, le=100)]


class CompressorSettings(StrictModel):
    """Settings of a compressor, as its config.json has them.

    Attributes:
        model_type: `MODEL_TYPE`.
        version: of this form.
        proxy_size: side in pixels of its square view of an image.
        min_scale: smallest scale per side.
        scale_step: grid of the scales.
        mean: of each channel, on the 0..1 scale.
        std: of each channel, on the 0..1 scale.
        depth_multiplier: of the MobileNetV2.
        hidden_size: of the head.
        layer_norm_eps: of the batch norms.
        price: megapixels that a right answer is worth (docs/vrc.md).
        question: None: it sees the image alone.
        made_for: digest of the configuration of the checkpoint (`configuration_digest`).
        labels: rule of the labels, "loss" or "equivalence".
        data: name of the questions.
        floor: share of the score that it was accepted by.
        accepted: whether it kept that share on held-out questions.
        held_out: figures of that.
    """

    model_type: Literal["hvlc_resolution_compressor"]
    version: Literal[2] = 2
    proxy_size: int = Field(ge=32, le=1024)
    min_scale: float = Field(gt=0, le=1)
    scale_step: float = Field(ge=1e-3, le=0.5)  # the front graph weighs every scale of this grid
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]
    depth_multiplier: float = Field(gt=0, le=4)
    hidden_size: int = Field(ge=1, le=4096)
    layer_norm_eps: float = Field(gt=0, lt=1)
    price: float = Field(gt=0, le=1e6)
    question: QuestionSettings | None = None
    made_for: str
    labels: Literal["loss", "equivalence"]
    data: str = Field(max_length=200)
    floor: float = Field(ge=0, le=1)
    accepted: bool
    held_out: HeldOut | None = None


def configuration_digest(checkpoint: Checkpoint) -> str:
    """Hex SHA-256 of a checkpoint's configuration, without a compressor that joined it."""
    own = {key: value for key, value in checkpoint.config.items() if key != JOINED}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()


def joined_settings(checkpoint: Checkpoint) -> CompressorSettings | None:
    """Settings of the compressor that joined a checkpoint. None: none has.

    Raises:
        UserError: they are wrong, or the compressor was made for another checkpoint or not accepted.
    """
    found = checkpoint.config.get(JOINED)
    if found is None:
        return None
    if not isinstance(found, Mapping) or found.get("model_type") != MODEL_TYPE:
        cause = "what --vrc names is not a resolution compressor"
        raise UserError("vrc.kind", cause, "name a directory that hvlc train vrc wrote")
    settings = CompressorSettings.parse(dict(found), "the resolution compressor's config.json")
    if settings.made_for != configuration_digest(checkpoint):
        cause = "the resolution compressor was trained for a checkpoint with another configuration"
        raise UserError("vrc.checkpoint", cause, "train one for this checkpoint: hvlc train vrc CHECKPOINT ...")
    if not settings.accepted:
        raise UserError("vrc.floor", _why_refused(settings), "train it with more data, or with a lower --floor")
    return settings


def _why_refused(settings: CompressorSettings) -> str:
    if settings.held_out is None:
        return "the resolution compressor was not measured on held-out questions"
    kept = f"{settings.held_out.kept:.1%} of the score on {settings.held_out.n} held-out questions"
    return f"the resolution compressor keeps {kept}, its floor is {settings.floor:.1%}"


def joined_compressor(
    checkpoint: Checkpoint, settings: CompressorSettings, vocabulary: int
) -> tuple[Component, CompressorFacts]:
    """Component "resolution" of a compressor that joined a checkpoint, and what the front graph must know of it.

    Raises:
        UserError: it reads questions of another vocabulary.
    """
    asked = settings.question
    if asked is not None and asked.vocabulary != vocabulary:
        cause = f"the resolution compressor reads {asked.vocabulary} tokens, the vocabulary has {vocabulary}"
        raise UserError("vrc.checkpoint", cause, "train one for this checkpoint")
    b = GraphBuilder("resolution", checkpoint)
    shape = QuestionShape(asked.vocabulary, asked.width, asked.channels, asked.window) if asked else None
    model = resolution_compressor(b, JOINED, settings.proxy_size, settings.layer_norm_eps, shape, graded=True)
    facts = CompressorFacts(
        settings.proxy_size,
        settings.min_scale,
        settings.scale_step,
        settings.mean,
        settings.std,
        price=settings.price,
        question_tokens=asked.max_tokens if asked else None,
    )
    return Component("resolution", Role.FRONT, model, "front"), facts


def settings_of(content: Mapping[str, Any]) -> CompressorSettings:
    """Settings of a content that was made here."""
    return CompressorSettings.model_validate(content)
