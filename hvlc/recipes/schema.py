"""Schema of a recipe: strict, versioned YAML that assigns a format and a solver to weights."""

import fnmatch
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hvlc.graphs.bundle import Role
from hvlc.graphs.plan import ActivationFormat, ActivationType, CacheType, RangeMethod
from hvlc.inputs.documents import dump_yaml
from hvlc.inputs.records import StrictModel
from hvlc.manifest.policy import EncoderPolicy
from hvlc.weights.formats import ScaleType, WeightFormat, weight_format

MOST_BLOCK = 65_536  # elements that share a scale
MOST_SAMPLES = 100_000  # as on the command line
MOST_TOKENS = 1 << 24  # of a sample: more than any model's context
MOST_BITS = 64  # of a weight, on average
MOST_MEGABYTES = 1e9  # a petabyte

#: A number that a solver is given; which are sensible is the solver's to say.
Setting = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | Annotated[float, Field(ge=-1e9, le=1e9)]

#: Components that a calibration walks through.
CalibratedRole = Literal[Role.DECODER, Role.VISION_ENCODER]


class WeightSpec(StrictModel):
    """Format and solver of a rule's weights.

    Attributes:
        bits: width of an element.
        block_size: input channels that share one scale.
        per_channel: one scale for all of an output channel's weights, instead of blocks.
        symmetric: no zero points.
        scale_type: how the scales are stored; lpbq is for static activations, 4 bits in blocks without zero points.
        products: "int8" rounds the inputs to 8 bits as they run, a scale a token: for 8 bits per channel by the solver
            `pairs`. None: as the recipe's `activations` say.
        solver: who chooses the levels.
        options: of the solver; what is not given has the solver's default.
        fallback: how matrices are stored whose rows are not a whole number of blocks, or which the target does not take
            in this form.
    """

    bits: Literal[4, 8]
    block_size: int | None = Field(None, ge=16, le=MOST_BLOCK)
    per_channel: bool = False
    symmetric: bool = True
    scale_type: ScaleType = ScaleType.FLOAT16
    products: Literal["int8"] | None = None
    solver: str = "rtn"
    options: dict[str, bool | Setting] = Field(default_factory=dict)
    fallback: "WeightSpec | None" = None

    @model_validator(mode="after")
    def _one_grain(self) -> Self:
        if (self.block_size is None) is not self.per_channel:
            raise ValueError("give either block_size or per_channel: true")
        return self

    @model_validator(mode="after")
    def _a_format_has_all_of_it(self) -> Self:
        self.format(MOST_BLOCK, negative_scales=False)
        return self

    @model_validator(mode="after")
    def _pairs_are_for_products_of_integers(self) -> Self:
        if (self.solver == "pairs") is not (self.products == "int8"):
            raise ValueError("products: int8 and solver: pairs go together")
        return self

    def format(self, in_features: int, *, negative_scales: bool) -> WeightFormat:
        """The format of rows of `in_features` as a plan carries it."""
        block_size = self.block_size or in_features
        return weight_format(
            self.bits,
            block_size,
            self.symmetric,
            self.scale_type,
            negative_scales,
            per_channel=self.per_channel,
            integer_product=self.products == "int8",
        )

    def with_fallbacks(self) -> Iterator["WeightSpec"]:
        """Format that is asked for, then its fallback, that one's and so on."""
        yield self
        if self.fallback is not None:
            yield from self.fallback.with_fallbacks()


class Rule(StrictModel):
    """The first rule that matches a weight decides it.

    Attributes:
        role: components it speaks of.
        weights: glob over the weights' dotted names.
        quantize: the format, or None to keep float.
        reason: why these weights stay, for rules that keep.
        optional: whether matching nothing is fine.
        fixed: whether a budget leaves the format as it is.
    """

    role: Role
    weights: str = "*"
    quantize: WeightSpec | None = None
    reason: str = ""
    optional: bool = False
    fixed: bool = False

    def matches(self, role: Role, weight: str) -> bool:
        """Whether the rule speaks of this weight."""
        if role is not self.role or not any(sign in self.weights for sign in "*?["):  # hundreds of rules are names
            return role is self.role and weight == self.weights
        return fnmatch.fnmatchcase(weight, self.weights)


class CalibrationSpec(StrictModel):
    """Calibration set of a recipe's solvers.

    Attributes:
        source: file, directory or built-in set (`hvlc.calibration.sources`). None: the built-in one that fits the
            model. The command line may name another.
        samples: how many.
        tokens: of a text sample.
    """

    source: str | None = None
    samples: int = Field(default=128, ge=2, le=MOST_SAMPLES)
    tokens: int = Field(default=512, ge=8, le=MOST_TOKENS)


class RotateSpec(StrictModel):
    """Rotation of a decoder's residual stream (`hvlc.passes.prepare.rotate_residual`) and heads (`rotate_heads`).

    Attributes:
        seed: of the signs.
        heads: also rotate the values of every attention.
        untie: store a tied head apart from its table instead of changing the basis around both.
    """

    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    heads: bool = True
    untie: bool = False


class SmoothSpec(StrictModel):
    """SmoothQuant's factors (`hvlc.calibration.scaling.smooth_factors`).

    Attributes:
        roles: components whose linears get them.
        exponent: how much of the difficulty goes to the weights.
    """

    roles: tuple[CalibratedRole, ...] = Field(default=(Role.DECODER,), min_length=1)
    exponent: float = Field(default=0.5, ge=0, le=1)


class AwqSpec(StrictModel):
    """AWQ's search (`hvlc.calibration.scaling.awq_factors`).

    Attributes:
        roles: components whose linears get factors.
        exponents: size of the searched grid.
        rows: of each weight that the search looks at.
    """

    roles: tuple[CalibratedRole, ...] = Field(default=(Role.DECODER,), min_length=1)
    exponents: int = Field(default=20, ge=2, le=1000)
    rows: int = Field(default=128, ge=1, le=MOST_SAMPLES)


class Preparation(StrictModel):
    """Exact changes of the float model that make it easier to quantize.

    They are done in this order, because a rotation folds away the gains of norms, which factors go into.

    Attributes:
        rotate: the basis of the decoder.
        smooth: peaks of activations into weights.
        awq: factors that a search over quantization errors finds.
    """

    rotate: RotateSpec | None = None
    smooth: SmoothSpec | None = None
    awq: AwqSpec | None = None


class FormatSpec(StrictModel):
    """A format that a budget may choose; all else is the rule's.

    Attributes:
        bits: width of an element.
        block_size: input channels that share one scale.
    """

    bits: Literal[4, 8]
    block_size: int = Field(ge=16, le=MOST_BLOCK)


class BudgetSpec(StrictModel):
    """A size within which formats are chosen so that the model's answers change least (`hvlc.recipes.budget`).

    Attributes:
        bits_per_weight: average stored bits of the matrices whose format is chosen.
        megabytes: of all planned matrices of the package, in 10 ** 6 bytes.
        formats: to choose from.
        solver: who chooses the levels while the damage is measured; the build's solvers are the rules'.
        samples: calibration samples of the measurement.
        tokens: of a text sample of the measurement.
        scaled: measure the loss of the coarsest format alone
            (`hvlc.workflows.sensitivity.sensitivity.SensitivityOptions`).
    """

    bits_per_weight: float | None = Field(default=None, gt=0, le=MOST_BITS)
    megabytes: float | None = Field(default=None, gt=0, le=MOST_MEGABYTES)
    formats: tuple[FormatSpec, ...] = Field(
        default=(FormatSpec(bits=4, block_size=32), FormatSpec(bits=8, block_size=32)), min_length=1
    )
    solver: str = "rtn"
    samples: int = Field(default=8, ge=2, le=MOST_SAMPLES)
    tokens: int = Field(default=256, ge=8, le=MOST_TOKENS)
    scaled: bool = False

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.bits_per_weight is None) is (self.megabytes is None):
            raise ValueError("give either bits_per_weight or megabytes")
        if len(set(self.formats)) < len(self.formats):
            raise ValueError("a format is named twice")
        return self


class StaticSpec(StrictModel):
    """Static activations of a recipe, whose scales come from calibration.

    Attributes:
        dtype: element type.
        range: how calibrated values choose scale and zero point (`hvlc.calibration.ranges`).
        roles: components that have them; the others' activations are float.
    """

    dtype: ActivationType = ActivationType.UINT16
    range: RangeMethod = RangeMethod.MSE
    roles: tuple[CalibratedRole, ...] = Field(default=(Role.DECODER, Role.VISION_ENCODER), min_length=1)

    def format(self) -> ActivationFormat:
        """The format as a plan carries it."""
        return ActivationFormat(self.dtype, self.range, self.roles)


class Recipe(StrictModel):
    """A quantization recipe.

    Attributes:
        schema_version: of the file.
        name: as given on the command line.
        description: one line.
        activations: "float" computes in float (the A16 of W4A16); "int8" lets the runtime quantize them; "static"
            gives them 16-bit integers with scales from calibration, in QDQ form.
        static: of "static" activations.
        kv_cache: element type of the KV cache; int8 has static scales from calibration.
        calibration: for solvers that need data.
        prepare: what is done to the float model first.
        budget: within which the rules' formats are chosen, those of fixed rules excepted; None leaves them.
        policy: which vision encoder answers a request that names none. None: the model's default one.
        rules: in order; a weight that none matches stays float.
    """

    schema_version: int = Field(ge=1, le=1)
    name: str
    description: str
    activations: Literal["float", "int8", "static"] = "float"
    static: StaticSpec | None = None
    kv_cache: CacheType = CacheType.FLOAT
    calibration: CalibrationSpec = Field(default_factory=CalibrationSpec)
    prepare: Preparation = Field(default_factory=Preparation)
    budget: BudgetSpec | None = None
    policy: EncoderPolicy | None = None
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _static_settings_are_for_static_activations(self) -> Self:
        if self.static is not None and self.activations != "static":
            raise ValueError(f"static has settings, and activations are {self.activations}")
        return self

    @property
    def activation_format(self) -> ActivationFormat | None:
        """Format of static activations. None: activations are not static."""
        return (self.static or StaticSpec()).format() if self.activations == "static" else None


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML that loads as an equal one; what has its default is left out."""
    return dump_yaml(recipe.model_dump(mode="json", exclude_defaults=True))
