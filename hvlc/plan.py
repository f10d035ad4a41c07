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
    """How the scales are stored.

    LPBQ (AIMET's "low power blockwise quantization") stores a whole number from 1 to `LPBQ_LARGEST` for each block and
    a float32 for each row; a block's scale is their product. An NPU multiplies levels by the whole number and is left
    with 8-bit integers that have one scale a row.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    LPBQ = "lpbq"


#: Largest whole number of an LPBQ block. Times the lowest 4-bit level, -8, it is the lowest 8-bit integer; Qualcomm's
#: compiler lets larger products wrap around (docs/snapdragon.md).
LPBQ_LARGEST = 16

_SCALE_NAMES = {ScaleType.FLOAT32: "f32", ScaleType.FLOAT16: "f16", ScaleType.LPBQ: "lpbq"}
_SCALE_BYTES = {ScaleType.FLOAT32: 4, ScaleType.FLOAT16: 2, ScaleType.LPBQ: 1}


class ZeroType(StrEnum):
    """Element type of the zero points: integers as wide as a level, or any float.

    A float zero point is stored as what it makes of the middle level, `(2**(bits - 1) - zero) * scale` in float32: a
    product adds that times the sum of the block's inputs, which is fast everywhere. onnxruntime's own float zero
    points dequantize the whole matrix at every product (1.31, one core, 2048 x 2048, one token: 18 ms, here 0.8 ms).
    """

    INTEGER = "integer"
    FLOAT = "float"


@dataclass(frozen=True)
class WeightFormat:
    """A block-wise integer format.

    Attributes:
        bits: width of an element.
        block_size: input channels that share one scale.
        symmetric: no zero points; the stored level is offset by `2 ** (bits - 1)`.
        scale_type: how the scales are stored; LPBQ is for 4 bits without zero points or negative scales.
        negative_scales: whether a scale may be negative.
        zero_type: element type of the zero points, where there are any.

    Raises:
        ValueError: LPBQ scales of another form.
    """

    bits: int
    block_size: int
    symmetric: bool = True
    scale_type: ScaleType = ScaleType.FLOAT16
    negative_scales: bool = True
    zero_type: ZeroType = ZeroType.INTEGER

    def __post_init__(self) -> None:
        if self.is_lpbq and (self.bits != 4 or not self.symmetric or self.negative_scales):
            raise ValueError("LPBQ scales are for 4 bits without zero points or negative scales")

    def bytes(self, out_features: int, in_features: int) -> int:
        """Stored size of a matrix, levels and scales (and zero points)."""
        blocks = out_features * ceil(in_features / self.block_size)
        factors = 4 * out_features if self.is_lpbq else 0
        zeros = 0 if self.symmetric else out_features * ceil(ceil(in_features / self.block_size) * self.bits / 8)
        if self.float_zeros:
            zeros = 4 * blocks
        scales = blocks * _SCALE_BYTES[self.scale_type] + factors
        return blocks * self.block_size * self.bits // 8 + scales + zeros

    @property
    def is_lpbq(self) -> bool:
        """Whether a block's scale is a whole number times its row's float."""
        return self.scale_type is ScaleType.LPBQ

    @property
    def float_zeros(self) -> bool:
        """Whether it has zero points, and they are float."""
        return not self.symmetric and self.zero_type is ZeroType.FLOAT

    def static_obstacle(self, in_features: int) -> str:
        """Why a product in QDQ form cannot take a matrix of this format; empty when it can."""
        if not self.symmetric:
            return "static activations take weights without zero points"
        if in_features % self.block_size:
            return f"rows of {in_features} are no whole number of blocks of {self.block_size}"
        return ""

    def __str__(self) -> str:
        kind = "sym" if self.symmetric else "float zero" if self.float_zeros else "asym"
        return f"int{self.bits} b{self.block_size} {kind} {_SCALE_NAMES[self.scale_type]}"


class ActivationType(StrEnum):
    """Element type of static integer activations."""

    UINT16 = "uint16"
    INT16 = "int16"


class RangeMethod(StrEnum):
    """How the range of an activation follows from what calibration saw of it."""

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
