"""The plan: what happens to every weight, decided before the first byte changes."""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from hvlc.bundle import Role


class Action(StrEnum):
    """What happens to a weight: there is no fourth."""

    QUANTIZE = "quantize"
    TIE = "tie"
    KEEP = "keep"


class ScaleType(StrEnum):
    """Stored element type of the scales."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True)
class WeightFormat:
    """A block-wise integer format.

    Attributes:
        bits: width of an element.
        block_size: input channels that share one scale.
        symmetric: no zero points; the stored level is offset by `2 ** (bits - 1)`.
        scale_type: stored type of the scales.
        negative_scales: whether a scale may be negative.
    """

    bits: int
    block_size: int
    symmetric: bool = True
    scale_type: ScaleType = ScaleType.FLOAT16
    negative_scales: bool = True

    def bytes(self, out_features: int, in_features: int) -> int:
        """Stored size of a matrix, levels and scales (and zero points)."""
        blocks = out_features * ceil(in_features / self.block_size)
        scale = 2 if self.scale_type is ScaleType.FLOAT16 else 4
        zeros = 0 if self.symmetric else out_features * ceil(ceil(in_features / self.block_size) * self.bits / 8)
        return blocks * self.block_size * self.bits // 8 + blocks * scale + zeros

    def __str__(self) -> str:
        kind = "sym" if self.symmetric else "asym"
        return f"int{self.bits} b{self.block_size} {kind} {'f16' if self.scale_type is ScaleType.FLOAT16 else 'f32'}"


@dataclass(frozen=True)
class Assignment:
    """The fate of one weight in one place.

    Attributes:
        component: which graph.
        role: its role.
        node: name of the node that reads the weight.
        weight: name of the initializer.
        out_features: rows of the stored matrix.
        in_features: columns of the stored matrix.
        action: what happens.
        reason: why it stays, or what it is tied to.
        format: the target format of a quantized weight.
        solver: who chooses the levels.
        dtype: element type of a weight that stays in float.
    """

    component: str
    role: Role
    node: str
    weight: str
    out_features: int
    in_features: int
    action: Action
    reason: str = ""
    format: WeightFormat | None = None
    solver: str | None = None
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def stored_as(self) -> str:
        """The format, or the element type of what stays."""
        return str(self.format or self.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes that this place adds to the package."""
        if self.action is Action.TIE:
            return 0
        if self.format is None:
            return (4 if self.dtype == "float32" else 2) * self.elements
        return self.format.bytes(self.out_features, self.in_features)


@dataclass(frozen=True)
class Plan:
    """Every assignment of a build, complete and printable.

    Attributes:
        recipe: name of the recipe.
        target: name of the target.
        assignments: one for each weight matrix.
        float_compute: whether quantized products compute in float (W4A16) instead of int8 activations.
    """

    recipe: str
    target: str
    assignments: tuple[Assignment, ...]
    float_compute: bool = True

    def for_component(self, name: str) -> dict[str, Assignment]:
        """Assignments of a component by node name."""
        return {a.node: a for a in self.assignments if a.component == name}

    @property
    def stored_bytes(self) -> int:
        """Bytes of all planned matrices in the package."""
        return sum(a.stored_bytes for a in self.assignments)

    def bits_per_weight(self, role: Role) -> float | None:
        """Average stored bits of the quantized matrices of a role, or None when it has none."""
        chosen = [a for a in self.assignments if a.role is role and a.action is Action.QUANTIZE]
        if not chosen:
            return None
        return 8 * sum(a.stored_bytes for a in chosen) / sum(a.elements for a in chosen)
