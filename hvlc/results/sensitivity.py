"""Sensitivity records: the effect of quantizing one part of a model, and nothing else, on its logits.

Records that calibration makes, recipes spend and reports show.
"""

import math
import re
from typing import Final, Literal

from pydantic import Field

from hvlc.graphs.bundle import Role
from hvlc.results import Record

#: Raised whenever a change makes older files unreadable.
SCHEMA_VERSION: Final = 1


class Candidate(Record):
    """A part in one format, everything else in float.

    Attributes:
        bits: width of an element.
        block_size: input channels that share one scale.
        stored_bytes: of the part's matrices.
        table_bytes: of the embedding tables whose bytes depend on the part's: 0 where they share them.
        output_error: squared error of the part's outputs, relative to their squares: `tr(E G E^T) / tr(W G W^T)` with
            the Gram matrix `G` of its inputs and the error `E` of its weights, summed over its matrices.
        loss: mean Kullback-Leibler divergence of the answers from the float model's, in nats per token; absent where
            it was not measured.
    """

    bits: int
    block_size: int
    stored_bytes: int = Field(ge=0)
    table_bytes: int = Field(default=0, ge=0)
    output_error: float = Field(ge=0)
    loss: float | None = Field(default=None, ge=0)

    @property
    def name(self) -> str:
        """Name of the format."""
        return f"int{self.bits} b{self.block_size}"

    @property
    def package_bytes(self) -> int:
        """Everything in a package that depends on this choice."""
        return self.stored_bytes + self.table_bytes

    @property
    def damage(self) -> float:
        """The loss; where it was not measured the output error, which the loss grows with: to second order each part
        adds its relative squared error times a factor of its own (Malinovskii et al., "Pushing the Limits of LLM
        Quantization via the Linearity Theorem", arXiv 2411.17525), and the factors are taken to be equal.
        """
        return self.output_error if self.loss is None else self.loss


class Part(Record):
    """Matrices that share an input, and so a format.

    Attributes:
        component: whose graph has them.
        role: of the component.
        weights: names of the initializers, in graph order.
        elements: number of weights.
        candidates: one for each format, in the order in which they were asked for.
    """

    component: str
    role: Role
    weights: tuple[str, ...] = Field(min_length=1)
    elements: int = Field(ge=1)
    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @property
    def layer(self) -> int | None:
        """Number of its layer; None outside of layers."""
        found = re.search(r"\.(\d+)\.", self.weights[0])
        return int(found[1]) if found else None

    @property
    def kind(self) -> str:
        """Name of the part in its layer: "q_proj/k_proj/v_proj"."""
        modules = [weight.removesuffix(".weight").rpartition(".")[2] for weight in self.weights]
        return "/".join(dict.fromkeys(modules))

    @property
    def name(self) -> str:
        """Name of the part with its place: "decoder 3 down_proj"."""
        layer = "" if self.layer is None else f" {self.layer}"
        return f"{self.component}{layer} {self.kind}"

    @property
    def price(self) -> float | None:
        """Damage for each byte that the smallest candidate saves of the largest; None where it saves none."""
        small, large = (pick(self.candidates, key=lambda c: c.package_bytes) for pick in (min, max))
        saved = large.package_bytes - small.package_bytes
        return (small.damage - large.damage) / saved if saved else None


class Sensitivity(Record):
    """The damage of every part of a model in every format.

    Attributes:
        schema_version: version of this file format.
        checkpoint: hex digest.
        recipe: whose matrices these are.
        target: that takes the formats.
        solver: who chose the levels.
        calibration: name of the calibration set.
        calibration_digest: of it.
        tokens: whose answers were compared; 0 where none were.
        scaled: whether only the coarsest format's losses were measured, and the others' follow from the output errors.
        fixed_bytes: stored bytes of all planned matrices that belong to no part and depend on none.
        parts: in the order in which they run.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    checkpoint: str
    recipe: str
    target: str
    solver: str
    calibration: str
    calibration_digest: str
    tokens: int = Field(ge=0)
    scaled: bool = False
    fixed_bytes: int = Field(ge=0)
    parts: tuple[Part, ...] = Field(min_length=1)

    @property
    def measured(self) -> bool:
        """Whether answers were compared."""
        return self.tokens > 0

    @property
    def elements(self) -> int:
        """Number of weights of all parts."""
        return sum(part.elements for part in self.parts)

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the candidates, which are the same for every part."""
        return tuple(candidate.name for candidate in self.parts[0].candidates)

    @property
    def dearest_first(self) -> tuple[Part, ...]:
        """The parts, those first that save the fewest bytes for the damage that they do; of a single format those that
        do the most.
        """

        def dearness(part: Part) -> tuple[float, float]:
            return -math.inf if part.price is None else part.price, part.candidates[0].damage

        return tuple(sorted(self.parts, key=dearness, reverse=True))


class FrontPoint(Record):
    """A choice of a format for every part.

    Attributes:
        name: unique within the front.
        uniform: whether it is one format for all, for comparison.
        bits_per_weight: average stored bits of the parts' matrices.
        package_bytes: stored bytes of all planned matrices.
        damage: summed, as predicted from the parts'.
        formats: number of parts by the name of their format.
        recipe: file beside the front that builds it.
        measured: what a package of it scored; absent where none was built.
    """

    name: str
    uniform: bool
    bits_per_weight: float = Field(gt=0)
    package_bytes: int = Field(ge=0)
    damage: float = Field(ge=0)
    formats: dict[str, int]
    recipe: str
    measured: float | None = None


class Front(Record):
    """Pareto front: choices of formats from the smallest size to the least loss.

    Attributes:
        schema_version: version of this file format.
        checkpoint: hex digest.
        predicted: what damages are: mean divergence in nats per token, or relative output error.
        score: what was measured of packages; absent where none was built.
        reference: score of the model in float.
        points: by size, the uniform ones last.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    checkpoint: str
    predicted: Literal["nats per token", "output error"]
    score: Literal["perplexity", "exact match"] | None = None
    reference: float | None = None
    points: tuple[FrontPoint, ...] = Field(min_length=1)
