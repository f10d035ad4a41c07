"""The plan: the action, format and solver of every weight, complete before the first edit."""

from dataclasses import dataclass
from enum import StrEnum

from hvlc.graphs.bundle import Role
from hvlc.weights.formats import WeightFormat


class Action(StrEnum):
    """Action on a weight; there is no fourth."""

    QUANTIZE = "quantize"
    TIE = "tie"
    KEEP = "keep"


class ActivationType(StrEnum):
    """Element type of static integer activations."""

    UINT16 = "uint16"
    INT16 = "int16"


class RangeMethod(StrEnum):
    """Method that derives an activation's range from its calibration statistics."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


@dataclass(frozen=True)
class ActivationFormat:
    """Static integer activations: asymmetric, one scale for a whole tensor.

    Attributes:
        type: element type.
        range: how calibrated values choose scale and zero point.
        roles: components that have them; the others' activations are float.
        products: whether a product that makes an output of its graph is rounded too: compilers of NPUs take a product
            of integers only between integers.
    """

    type: ActivationType = ActivationType.UINT16
    range: RangeMethod = RangeMethod.MSE
    roles: tuple[Role, ...] = (Role.DECODER, Role.VISION_ENCODER)
    products: bool = False


class CacheType(StrEnum):
    """Element type of the KV cache."""

    FLOAT = "float"
    INT8 = "int8"

    @property
    def written(self) -> str:
        """Element type of the same levels where a graph writes them itself: around 128, as integer products ask."""
        return "uint8" if self is CacheType.INT8 else self.value


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
        options: of the solver, by name, sorted.
        shares: component and node whose bytes a tied weight shares.
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
    options: tuple[tuple[str, float | bool], ...] = ()
    shares: tuple[str, str] | None = None

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
        activations: the static integer activations that products read and write (QDQ form), or None.
        kv_cache: element type of the KV cache.
        notes: what was decided about the checkpoint that a user should know; it changes no assignment.
    """

    recipe: str
    target: str
    assignments: tuple[Assignment, ...]
    float_compute: bool = True
    activations: ActivationFormat | None = None
    kv_cache: CacheType = CacheType.FLOAT
    notes: tuple[str, ...] = ()

    def for_component(self, name: str) -> dict[str, Assignment]:
        """Assignments of a component by node name."""
        return {a.node: a for a in self.assignments if a.component == name}

    def is_static(self, role: Role) -> bool:
        """Whether a role's products have static integer activations; tables are stored as the decoder's matrices."""
        product = Role.DECODER if role is Role.EMBEDDING else role
        return self.activations is not None and product in self.activations.roles

    def observes(self, role: Role) -> bool:
        """Whether calibration has to find ranges of a role's values: of static activations, or of an int8 cache."""
        mine = [a for a in self.assignments if a.role is role]
        rounds = self.is_static(role) and any(a.action is Action.QUANTIZE for a in mine)
        return rounds or (self.kv_cache is not CacheType.FLOAT and role is Role.DECODER and bool(mine))

    @property
    def stored_bytes(self) -> int:
        """Bytes of all planned matrices in the package."""
        return sum(a.stored_bytes for a in self.assignments)

    def bits_per_weight(self, role: Role | None) -> float | None:
        """Average stored bits of the quantized matrices of a role, or of all; None when there are none."""
        chosen = [a for a in self.assignments if role in (None, a.role) and a.action is Action.QUANTIZE]
        if not chosen:
            return None
        return 8 * sum(a.stored_bytes for a in chosen) / sum(a.elements for a in chosen)
