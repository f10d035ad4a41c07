"""Rules of a target as data: supported operators, and conditions under which it refuses one or computes it wrong."""

import math
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from hvlc.inputs.records import StrictModel
from hvlc.targets.operation import Grain, Operand, Operation

#: Numbers of graphs: positions, ranks, sizes of dimensions, integers and floats of tensors.
Position = Annotated[int, Field(ge=0, le=65_535)]
Rank = Annotated[int, Field(ge=0, le=64)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Magnitude = Annotated[float, Field(ge=0, le=1e300)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]

Scalar = bool | Whole | Number | str | tuple[Whole, ...]


class Evidence(StrEnum):
    """Evidence for a limit."""

    RUN = "run"
    READ = "read"
    INFERRED = "inferred"


class Severity(StrEnum):
    """Effect of a rule that applies: the operator is refused, or it runs and its numbers may be wrong."""

    REFUSAL = "refusal"
    HAZARD = "hazard"


class Known(StrictModel):
    """Evidence for a statement, with its source."""

    evidence: Evidence
    source: str = Field(min_length=1)


class Operators(Known):
    """Operators that a target takes, or refuses for one reason.

    Attributes:
        names: of operators.
        domain: theirs; "" is ai.onnx.
        taken: whether they may run.
        reason: why not.
        fix: what to do instead.
    """

    names: tuple[str, ...]
    domain: str = ""
    taken: bool = True
    reason: str = ""
    fix: str = ""

    @model_validator(mode="after")
    def _a_refusal_has_a_reason(self) -> Self:
        if not self.taken and not self.reason:
            raise ValueError("operators that are not taken need a reason")
        return self


class OperandIs(StrictModel):
    """A condition on one operand; every part that is given must hold, and what the file does not tell never does.

    Attributes:
        at: position; any position when it is not given.
        given: whether the operand is there.
        constant: whether it is known when the graph is compiled.
        dtypes: element types, before quantization.
        quantized: integer types it is quantized to; an empty list asks for a value that is not quantized.
        grains: what shares a scale.
        scale: the one scale, to a millionth of it.
        zero_point: the one zero point.
        gives_zero_point: whether the file names one.
        scale_below: a scale below that.
        factor_above: an integer above that, which LPBQ multiplies a channel's scale by.
        rank_above: more dimensions than that.
        rank: exactly as many dimensions.
        side_above: a dimension above that.
        last_at_most: the last dimension is not larger.
        matrices_above: more matrices than that: the product of all dimensions but the last two.
        rows: exactly as many rows, along one axis: every dimension but this and the last is 1.
        is_output: whether the integers, or the value where it is not quantized, are an output of the graph.
        largest_above: a constant with a magnitude above that.
        least_below: an integer constant with an element below that.
    """

    at: Position | None = None
    given: bool | None = None
    constant: bool | None = None
    dtypes: tuple[str, ...] | None = None
    quantized: tuple[str, ...] | None = None
    grains: tuple[Grain, ...] | None = None
    scale: Magnitude | None = None
    zero_point: Whole | None = None
    gives_zero_point: bool | None = None
    scale_below: Magnitude | None = None
    factor_above: Count | None = None
    rank_above: Rank | None = None
    rank: Rank | None = None
    side_above: Count | None = None
    last_at_most: Count | None = None
    matrices_above: Count | None = None
    rows: Count | None = None
    is_output: bool | None = None
    largest_above: Magnitude | None = None
    least_below: Whole | None = None

    def holds(self, operands: tuple[Operand | None, ...]) -> bool:
        """Whether an operand is like this."""
        if self.at is None:
            return any(self._fits(operand) for operand in operands)
        return self._fits(operands[self.at] if self.at < len(operands) else None)

    def _fits(self, operand: Operand | None) -> bool:
        if operand is None:
            return self.given is False
        return self.given is not False and self._value_fits(operand) and self._quantization_fits(operand)

    def _value_fits(self, operand: Operand) -> bool:
        rank = None if operand.shape is None else len(operand.shape)
        return (
            (self.constant is None or operand.constant is self.constant)
            and (self.dtypes is None or operand.dtype in self.dtypes)
            and (self.rank is None or rank == self.rank)
            and (self.rank_above is None or (rank is not None and rank > self.rank_above))
            and (self.side_above is None or any(d is not None and d > self.side_above for d in operand.shape or ()))
            and (self.is_output is None or operand.is_output is self.is_output)
            and self._size_fits(operand.shape or ())
            and (self.largest_above is None or (operand.largest is not None and operand.largest > self.largest_above))
            and (self.least_below is None or (operand.least is not None and operand.least < self.least_below))
        )

    def _size_fits(self, shape: tuple[int | None, ...]) -> bool:
        last = shape[-1] if shape else None
        matrices = math.prod(size or 1 for size in shape[:-2])
        return (
            (self.last_at_most is None or (last is not None and last <= self.last_at_most))
            and (self.matrices_above is None or matrices > self.matrices_above)
            and (self.rows is None or [size for size in shape[:-1] if size != 1] == [self.rows])
        )

    def _quantization_fits(self, operand: Operand) -> bool:
        found = operand.quantized
        if found is None:
            asked = (
                self.grains,
                self.scale,
                self.zero_point,
                self.gives_zero_point,
                self.scale_below,
                self.factor_above,
            )
            return not self.quantized and all(part is None for part in asked)
        return (
            (self.quantized is None or found.dtype in self.quantized)
            and (self.grains is None or found.grain in self.grains)
            and (self.zero_point is None or found.zero_point == self.zero_point)
            and (self.gives_zero_point is None or found.gives_zero_point is self.gives_zero_point)
            and (self.scale_below is None or (found.least_scale is not None and found.least_scale < self.scale_below))
            and (
                self.factor_above is None
                or (found.largest_factor is not None and found.largest_factor > self.factor_above)
            )
            and (self.scale is None or (found.scale is not None and abs(found.scale - self.scale) <= 1e-6 * self.scale))
        )


class Condition(StrictModel):
    """A condition on an operation; every part that is given must hold.

    Attributes:
        attributes: values that attributes have; of a list, one. An attribute that is not given has no value.
        other_than: values that given attributes do not have; every element of a list must have it.
        no_multiple: attributes that are not a multiple of another one, by its name.
        inputs: on what it reads; all of them must hold.
        outputs: on what it writes; all of them must hold.
        readers: operators of which at least one reads its output.
    """

    attributes: dict[str, Scalar | tuple[str, ...]] = Field(default_factory=dict)
    other_than: dict[str, Scalar] = Field(default_factory=dict)
    no_multiple: dict[str, str] = Field(default_factory=dict)
    inputs: tuple[OperandIs, ...] = ()
    outputs: tuple[OperandIs, ...] = ()
    readers: tuple[str, ...] = ()

    def holds(self, operation: Operation) -> bool:
        """Whether an operation is like this."""
        given = operation.attributes or {}
        return (
            all(name in given and _is_one_of(given[name], value) for name, value in self.attributes.items())
            and all(name in given and _differs(given[name], value) for name, value in self.other_than.items())
            and all(_leaves_a_rest(given.get(name), given.get(other)) for name, other in self.no_multiple.items())
            and all(operand.holds(operation.inputs) for operand in self.inputs)
            and all(operand.holds(operation.outputs) for operand in self.outputs)
            and (not self.readers or bool(operation.readers.intersection(self.readers)))
        )


def _is_one_of(value: object, wanted: Scalar | tuple[str, ...]) -> bool:
    texts = isinstance(wanted, tuple) and all(isinstance(item, str) for item in wanted)
    return value in wanted if texts and isinstance(wanted, tuple) else value == wanted


def _leaves_a_rest(value: object, divisor: object) -> bool:
    return isinstance(value, int) and isinstance(divisor, int) and divisor > 0 and value % divisor != 0


def _differs(value: object, usual: Scalar) -> bool:
    """Whether a value is another; of a list, whether any element is, where the usual value is not a list."""
    if isinstance(value, tuple) and not isinstance(usual, tuple):
        return any(item != usual for item in value)
    return value != usual


class Rule(Known):
    """Operators that are refused, or err, under a condition.

    Attributes:
        operators: names, with the domain where it is not ai.onnx; "*" is every operator.
        other_than: operators that "*" leaves out.
        severity: what happens.
        when: the condition; without one the rule always holds.
        unless: conditions that each make an exception.
        reason: what is wrong, for the user.
        fix: what to do about it.
    """

    operators: tuple[str, ...] = Field(min_length=1)
    other_than: tuple[str, ...] = ()
    severity: Severity = Severity.REFUSAL
    when: Condition = Condition()
    unless: tuple[Condition, ...] = ()
    reason: str = Field(min_length=1)
    fix: str = ""

    def holds(self, operation: Operation) -> bool:
        """Whether the rule is about this operation."""
        every = "*" in self.operators and operation.operator not in self.other_than
        named = every or operation.operator in self.operators
        return named and self.when.holds(operation) and not any(c.holds(operation) for c in self.unless)

    def is_about(self, dtype: str) -> bool:
        """Whether the rule asks for an input of this element type."""
        return any(dtype in (operand.dtypes or ()) for operand in self.when.inputs)


class Product(Known):
    """Types of a product (MatMul, Gemm, Conv) of a quantized activation with constant quantized weights.

    Attributes:
        operators: the products.
        activations: integer types of the first operand; "float" where it is not quantized.
        weights: integer types of the second.
        grains: what shares a scale of the weights.
        inputs_multiple_of: of which the number of input features has to be a multiple.
        negative_scales: whether a scale of the weights may be negative.
    """

    operators: tuple[str, ...]
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    grains: tuple[Grain, ...]
    inputs_multiple_of: int = Field(1, ge=1, le=1 << 20)
    negative_scales: bool = False
