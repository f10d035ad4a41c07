"""The policy of a package: which vision encoder answers a request that names none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hvlc.inputs.records import StrictModel

_MOST = 2**31  # visual tokens or pixels of a request: more than any has

Count = Annotated[int, Field(ge=0, lt=_MOST)]
#: Tag or class that a request states of itself.
Tag = Annotated[str, Field(min_length=1, max_length=200)]
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]


@dataclass(frozen=True)
class Circumstances:
    """Statements of a caller about a request, for the policy alone. None: not stated.

    Attributes:
        task_tag: kind of task, in the words of the package's rules.
        device_class: kind of device, in the words of the package's rules.
        latency_ms: milliseconds that the encoder may take over all images.
    """

    task_tag: str | None = None
    device_class: str | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class ImageStatistics:
    """Figures of a request's images, which a host has once the front graph has run.

    Attributes:
        visual_tokens: of all images.
        pieces: inputs of an encoder, of all images.
        pixels: height times width of the largest image, as it was given.
        aspect: longer side over shorter side of the longest image; at least 1.
        scale: largest scale per side that was used; small where the compressor found every image easy.
    """

    visual_tokens: int = 0
    pieces: int = 0
    pixels: int = 0
    aspect: float = 1.0
    scale: float = 1.0


class PolicyRule(StrictModel):
    """Use `encoder` for requests that meet every condition; None: not a condition, and absent from the file.

    A condition about what a request does not state does not hold.

    Attributes:
        encoder: its name.
        task_tag: the request has this tag.
        device_class: the request has this class.
        above_visual_tokens: the images have more visual tokens.
        below_visual_tokens: the images have fewer visual tokens.
        above_pixels: the largest image has more pixels.
        below_pixels: the largest image has fewer pixels.
        above_aspect: the longest image has a larger ratio of its sides.
        below_aspect: the longest image has a smaller ratio of its sides.
        above_scale: the compressor kept more of an image's sides.
        below_scale: the compressor kept less of every image's sides.
        fits_latency: by the stated cost of a piece, the encoder takes no longer than the request's budget.
    """

    encoder: str
    task_tag: Tag | None = None
    device_class: Tag | None = None
    above_visual_tokens: Annotated[int, Field(gt=-_MOST, lt=_MOST)] | None = None  # early manifests had any
    below_visual_tokens: Count | None = None
    above_pixels: Count | None = None
    below_pixels: Count | None = None
    above_aspect: Annotated[float, Field(ge=1, le=1e9)] | None = None
    below_aspect: Annotated[float, Field(ge=1, le=1e9)] | None = None
    above_scale: Annotated[float, Field(ge=0, lt=1)] | None = None
    below_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    fits_latency: bool = False

    @model_validator(mode="after")
    def _can_hold(self) -> Self:
        if set(self.model_dump()) == {"encoder"}:
            raise ValueError("a rule without a condition always holds: give one, or make its encoder the default")
        for name in ("visual_tokens", "pixels", "aspect", "scale"):
            above, below = self._bounds(name)
            if above is not None and below is not None and above >= below:
                raise ValueError(f"above_{name} is {above} and below_{name} {below}: no request is between them")
        return self

    @model_serializer(mode="wrap")
    def _conditions_alone(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not a condition."""
        found: dict[str, Any] = written(self)
        return {name: value for name, value in found.items() if value is not None and value is not False}

    def _bounds(self, name: str) -> tuple[float | None, float | None]:
        return getattr(self, f"above_{name}"), getattr(self, f"below_{name}")

    def holds(self, stated: Circumstances, images: ImageStatistics, costs: Mapping[str, float]) -> bool:
        """Whether a request meets every condition.

        Args:
            stated: by its caller.
            images: of the request.
            costs: milliseconds per piece of each encoder.
        """
        if self.task_tag not in (None, stated.task_tag) or self.device_class not in (None, stated.device_class):
            return False
        if self.fits_latency and (stated.latency_ms is None or costs[self.encoder] * images.pieces > stated.latency_ms):
            return False
        return all(
            _between(getattr(images, name), *self._bounds(name))
            for name in ("visual_tokens", "pixels", "aspect", "scale")
        )


class EncoderPolicy(StrictModel):
    """Rules for the vision encoder that answers when the caller says "auto".

    Attributes:
        default: when no rule holds.
        rules: the first that holds decides.
        milliseconds_per_piece: stated cost of encoders, on the device that the package is for; absent from the file
            where none is stated.
    """

    default: str
    rules: tuple[PolicyRule, ...] = ()
    milliseconds_per_piece: dict[str, Milliseconds] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _costs_are_stated(self) -> Self:
        timed = {rule.encoder for rule in self.rules if rule.fits_latency}
        if unknown := sorted(timed - set(self.milliseconds_per_piece)):
            raise ValueError(f"fits_latency needs milliseconds_per_piece of {', '.join(unknown)}")
        return self

    @model_serializer(mode="wrap")
    def _without_the_usual(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Packages of before stated no costs."""
        found: dict[str, Any] = written(self)
        if not self.milliseconds_per_piece:
            found.pop("milliseconds_per_piece", None)
        return found

    @property
    def encoders(self) -> set[str]:
        """Names of all encoders that it speaks of."""
        return {self.default, *(rule.encoder for rule in self.rules), *self.milliseconds_per_piece}

    def choose(self, stated: Circumstances, images: ImageStatistics) -> str:
        """Name of the encoder for a request.

        Args:
            stated: by its caller.
            images: of the request.
        """
        holding = (rule.encoder for rule in self.rules if rule.holds(stated, images, self.milliseconds_per_piece))
        return next(holding, self.default)


def _between(value: float, above: float | None, below: float | None) -> bool:
    return (above is None or value > above) and (below is None or value < below)
