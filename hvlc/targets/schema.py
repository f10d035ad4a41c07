"""Schema of a target file, and the support questions that code may ask a target."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from hvlc.errors import nearest
from hvlc.graphs.placement import Placement, Provider
from hvlc.inputs.records import StrictModel
from hvlc.targets.operation import Grain, Operation
from hvlc.targets.rules import Evidence, Known, Operators, Product, Rule, Severity

_MICROSOFT = "com.microsoft"

#: Bits of an element.
Width = Annotated[int, Field(ge=1, le=64)]


class Tried(StrEnum):
    """Kind of test that packages for a target have had."""

    RUN = "run"
    EMULATED = "compiled and emulated"
    RULES = "rules only"


class Compiler(StrEnum):
    """Ahead-of-time compiler of a target's graphs."""

    NONE = "none"
    QNN = "qnn"


@dataclass(frozen=True)
class SupportAnswer:
    """Yes, or no with the reason."""

    taken: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.taken


@dataclass(frozen=True)
class Finding:
    """A target's objection to an operation.

    Attributes:
        rule: name of the limit in the target's file.
        severity: whether it is refused, or errs.
        reason: what is wrong.
        fix: what to do about it; may be empty.
        evidence: how the limit is known; None where the file does not say.
        source: from where.
    """

    rule: str
    severity: Severity
    reason: str
    fix: str = ""
    evidence: Evidence | None = None
    source: str = ""


class BlockFormat(StrictModel):
    """A block-wise integer weight format that the target's matrix product takes.

    Attributes:
        bits: width of an element.
        block_sizes: input channels that share one scale.
        zero_points: whether asymmetric blocks are taken.
        negative_scales: whether a scale may be negative.
        float_zero_points: whether a zero point may be any float, so that a block may have a float minimum: the product
            is one without zero points, and a product by the sums of each block's inputs.
        evidence: how this is known.
        source: where.
    """

    bits: Width
    block_sizes: tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...]
    zero_points: bool
    negative_scales: bool
    float_zero_points: bool = False
    evidence: Evidence
    source: str


class Target(StrictModel):
    """One device or runtime.

    Attributes:
        schema_version: of the file.
        extends: the shipped target or family whose content this file's stands over.
        name: as given on the command line.
        description: one line.
        execution_provider: onnxruntime's name of the provider.
        provider_name: the provider that packages name to sessions (`hvlc.graphs.placement.Provider`). None: no name.
        compiler: what compiles its graphs here, before they reach the device: "qnn" is onnxruntime-qnn, which needs
            `soc_model` and `htp_arch`. "none": the runtime on the device compiles them, if anything does.
        tried: how far packages for it were tried.
        evidence: how the target as a whole is known.
        contrib_ops: com.microsoft operators that run on it.
        refused_ops: standard operators that do not.
        operators: groups of operators with their evidence, by name; where standard operators are listed as taken, those
            in no group are refused.
        rules: conditions under which operators are refused or err, by name.
        products: types of quantized products with constant weights, by name; where an operator is in one, a quantized
            product that is in none is refused.
        block_formats: quantized matrix products.
        gather_bits: widths that the block-wise embedding look-up takes.
        lookup_dtypes: element types of tables that a look-up (Gather) copies rows from.
        activation_dtypes: element types of static integer activations (QDQ form).
        cache_dtypes: element types of a KV cache besides float that GroupQueryAttention stores.
        written_cache_dtypes: those that a graph of fixed shapes may store itself, with its attention written out.
        fixed_shapes: whether every dimension must be static.
        prompt_chunk: tokens of a prompt that run at once, where shapes are fixed.
        context: tokens that a KV cache of fixed shapes has room for, if nobody asks for more; None is the model's.
        tile_batch: pieces of an image per run of a vision encoder whose shapes are not fixed, if nobody asks for
            another number. None: the runtime's own.
        max_rank: most dimensions of a value.
        drops_unit_dims: whether Reshape, Transpose, Reshape over one dimension too many are taken where a dimension is
            1 and stays in place.
        part_bytes: most bytes of one compiled part.
        partial: whether the provider is meant to take some nodes of a graph and leave the others to the CPU provider of
            the same session; what it refuses is reported then, and no reason against a graph.
        processor: what runs its graphs; without it an NPU where shapes are fixed, else the CPU.
        cpu_roles: components of a package that are meant to run on the CPU beside this target; a table has the reason
            of each.
        soc_model: Qualcomm's number of the chip.
        htp_arch: generation of its NPU.
        session_options: of onnxruntime, for this target.
        provider_options: of the execution provider.
        affinity: processor of each operator type that the provider takes only when told to.
        sources: how the limits above are known, by their name.
    """

    schema_version: int = Field(ge=1, le=1)
    extends: str | None = None
    name: str
    description: str
    execution_provider: str
    provider_name: str | None = None
    compiler: Compiler = Compiler.NONE
    tried: Tried = Tried.RULES
    evidence: Evidence
    contrib_ops: tuple[str, ...] = ()
    refused_ops: tuple[str, ...] = ()
    operators: dict[str, Operators] = Field(default_factory=dict)
    rules: dict[str, Rule] = Field(default_factory=dict)
    products: dict[str, Product] = Field(default_factory=dict)
    block_formats: tuple[BlockFormat, ...] = ()
    integer_products: bool = False
    gather_bits: tuple[Width, ...] = ()
    lookup_dtypes: tuple[str, ...] = ("float32",)
    activation_dtypes: tuple[str, ...] = ()
    cache_dtypes: tuple[str, ...] = ()
    written_cache_dtypes: tuple[str, ...] = ()
    fixed_shapes: bool = False
    prompt_chunk: int = Field(64, ge=1, le=1 << 24)
    context: int | None = Field(None, ge=1, le=1 << 24)
    tile_batch: int | None = Field(None, ge=1, le=4096)
    max_rank: int | None = Field(None, ge=1, le=64)
    drops_unit_dims: bool = False
    part_bytes: int | None = Field(None, ge=1, le=10**15)
    partial: bool = False
    processor: Placement | None = None
    cpu_roles: tuple[str, ...] | dict[str, str] = ()
    soc_model: int | None = Field(None, ge=0, le=65_535)
    htp_arch: int | None = Field(None, ge=0, le=65_535)
    session_options: dict[str, str] = Field(default_factory=dict)
    provider_options: dict[str, str] = Field(default_factory=dict)
    affinity: dict[str, str] = Field(default_factory=dict)
    sources: dict[str, Known] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _formats_are_distinct(self) -> Self:
        bits = [f.bits for f in self.block_formats]
        if len(bits) != len(set(bits)):
            raise ValueError("block_formats names a width twice")
        if self.block_formats and not self.takes_op("MatMulNBits", _MICROSOFT):
            raise ValueError("block_formats need MatMulNBits among contrib_ops")
        return self

    @model_validator(mode="after")
    def _sources_are_of_limits(self) -> Self:
        unknown = [name for name in self.sources if name not in type(self).model_fields]
        if unknown:
            raise ValueError(f"sources: no limit {unknown[0]!r}, {nearest(unknown[0], type(self).model_fields)}")
        return self

    def takes_op(self, op_type: str, domain: str = "") -> SupportAnswer:
        """Whether an operator may run here, whatever its types and shapes."""
        refusal = self._operator_refusal(op_type, domain)
        return SupportAnswer(refusal is None, refusal.reason if refusal else "")

    def takes_weights(self, bits: int, block_size: int, needs: tuple[str, ...] = ()) -> SupportAnswer:
        """Whether a block-wise quantized matrix product may run here.

        Args:
            bits: width of a level.
            block_size: input channels that share one scale.
            needs: names of `BlockFormat`'s attributes that have to be true.
        """
        formats = {f.bits: f for f in self.block_formats}
        if bits not in formats:
            return SupportAnswer(False, f"{self.name} takes {_list(formats)} bits, not {bits}")
        found = formats[bits]
        if block_size not in found.block_sizes:
            return SupportAnswer(False, f"{self.name} takes blocks of {_list(found.block_sizes)}, not {block_size}")
        missing = next((need for need in needs if not getattr(found, need)), "")
        return SupportAnswer(not missing, f"{self.name} takes no {missing.replace('_', ' ')} at {bits} bits")

    def takes_negative_scales(self, bits: int) -> bool:
        """Whether a block's scale may be negative, which lets its extreme value use all levels."""
        return any(f.bits == bits and f.negative_scales for f in self.block_formats)

    def takes_integer_products(self) -> SupportAnswer:
        """Whether a product may round its inputs to 8 bits as it runs (`hvlc.passes.quantize.multiply_integers`)."""
        return SupportAnswer(self.integer_products, f"{self.name} takes no products of integers that round as they run")

    def takes_gather(self, bits: int) -> SupportAnswer:
        """Whether an embedding look-up may read block-wise quantized rows of this width."""
        return SupportAnswer(
            bits in self.gather_bits, f"{self.name} looks up {_list(self.gather_bits)} bits only, not {bits}"
        )

    def takes_activations(self, dtype: str) -> SupportAnswer:
        """Whether static integer activations of this element type may run here."""
        return SupportAnswer(dtype in self.activation_dtypes, f"{self.name} takes no static {dtype} activations")

    def takes_cache(self, dtype: str) -> SupportAnswer:
        """Whether attention may store its keys and values in this element type."""
        return SupportAnswer(dtype in self.cache_dtypes, f"{self.name} keeps no KV cache of {dtype}")

    def writes_cache(self, dtype: str) -> SupportAnswer:
        """Whether a graph whose attention is written out may store keys and values in this element type."""
        return SupportAnswer(
            dtype in self.written_cache_dtypes, f"{self.name} has no way to write a KV cache of {dtype}"
        )

    def takes_windows(self) -> SupportAnswer:
        """Whether an attention may see a window of positions alone."""
        found = self.findings(Operation("GroupQueryAttention", _MICROSOFT, {"local_window_size": 1}))
        refusal = next((finding for finding in found if finding.severity is Severity.REFUSAL), None)
        return SupportAnswer(refusal is None, refusal.reason if refusal else "")

    def takes_lookup(self, dtype: str) -> SupportAnswer:
        """Whether an embedding look-up may copy rows of this element type."""
        return SupportAnswer(dtype in self.lookup_dtypes, f"{self.name} looks up no {dtype}")

    def takes_product(
        self, operator: str, activation: str, weight: str, grain: Grain, in_features: int | None = None
    ) -> SupportAnswer:
        """Whether a product of an activation ("float" or an integer type) with constant integers may run here.

        Args:
            operator: the product.
            activation: type of its first operand.
            weight: type of the integers.
            grain: what shares a scale of them.
            in_features: of the product; None where the number is not known.
        """
        about = [product for product in self.products.values() if operator in product.operators]
        named = [p for p in about if activation in p.activations and weight in p.weights and grain in p.grains]
        refusal = f"{self.name} takes no {operator} of {activation} activations with {weight} weights per {grain}"
        if named and in_features is not None and all(in_features % p.inputs_multiple_of for p in named):
            several = _list({product.inputs_multiple_of for product in named})
            return SupportAnswer(False, f"{refusal} and {in_features} inputs: it takes multiples of {several}")
        return SupportAnswer(not about or bool(named), refusal)

    def takes_negative_product(self, operator: str, activation: str, weight: str, grain: Grain) -> bool:
        """Whether a product that `takes_product` takes may have weights with negative scales."""
        about = [product for product in self.products.values() if operator in product.operators]
        return not about or any(
            product.negative_scales
            and activation in product.activations
            and weight in product.weights
            and grain in product.grains
            for product in about
        )

    def takes_part(self, size: int) -> SupportAnswer:
        """Whether one compiled part may have this many bytes."""
        limit = self.part_bytes
        taken = limit is None or size <= limit
        return SupportAnswer(taken, f"{self.name} takes parts of at most {limit} bytes, not {size}")

    def leaves_to_cpu(self, role: str) -> SupportAnswer:
        """Whether a component of this role is meant to run on the CPU."""
        taken = role in self.cpu_roles
        return SupportAnswer(taken, f"{self.name} declares no CPU component of the role {role}")

    def why_cpu(self, role: str) -> str:
        """Reason why a component of this role is meant to run on the CPU."""
        known = self.sources.get("cpu_roles")
        otherwise = known.source if known else f"{self.name} leaves a {role} to it"
        return self.cpu_roles.get(role, otherwise) if isinstance(self.cpu_roles, dict) else otherwise

    def fixes(self, role: str) -> bool:
        """Whether graphs of this role have to have fixed shapes."""
        return self.fixed_shapes and not self.leaves_to_cpu(role)

    @property
    def uses_cpu_kernels(self) -> bool:
        """Whether every node of its graphs runs on a kernel of onnxruntime's CPU provider."""
        return self.execution_provider == "cpu"

    @property
    def placement(self) -> Placement:
        """Processor of its graphs."""
        return self.processor or (Placement.NPU if self.fixed_shapes else Placement.CPU)

    @property
    def provider(self) -> Provider | None:
        """Provider and options of a session, where a package names the provider."""
        return Provider(name=self.provider_name, options=self.provider_options) if self.provider_name else None

    def findings(self, operation: Operation) -> tuple[Finding, ...]:
        """Everything that speaks against an operation: refusals first; empty when it may run as it is."""
        refusal = self._operator_refusal(operation.op_type, operation.domain)
        if refusal:
            return (refusal,)  # of an operator that is not taken, types and shapes do not matter
        found = (*self._shape_findings(operation), *self._product_findings(operation), *self._rule_findings(operation))
        return tuple(sorted(found, key=lambda finding: finding.severity is Severity.HAZARD))

    def _operator_refusal(self, op_type: str, domain: str) -> Finding | None:
        named = f"{domain}.{op_type}" if domain else op_type
        refusal = f"{self.name} does not take {named}"
        for name, group in self.operators.items():
            if group.domain == domain and op_type in group.names and not group.taken:
                reason = f"{refusal}: {group.reason}"
                return Finding(f"operators.{name}", Severity.REFUSAL, reason, group.fix, group.evidence, group.source)
        listed = [group for group in self.operators.values() if group.domain == domain and group.taken]
        if any(op_type in group.names for group in listed):
            return None
        if domain == _MICROSOFT:
            return None if op_type in self.contrib_ops else self._finding("contrib_ops", refusal)
        if domain:
            return self._finding("operators", refusal)
        if listed or op_type in self.refused_ops:
            return self._finding("operators" if listed else "refused_ops", refusal)
        return None

    def _shape_findings(self, operation: Operation) -> Iterator[Finding]:
        known = [(operand, operand.shape) for operand in operation.operands if operand.shape is not None]
        shapes = [shape for _, shape in known]
        if self.fixed_shapes and any(None in shape for shape in shapes):
            fix = "fix every dimension: one graph for each size of tile and prompt chunk"
            yield self._finding("fixed_shapes", f"{self.name} needs static shapes, and one here is dynamic", fix)
        rank = max((len(shape) - (self.drops_unit_dims and one.spare_unit) for one, shape in known), default=0)
        if self.max_rank is not None and rank > self.max_rank:
            fix = "merge dimensions, or move in two steps"
            yield self._finding("max_rank", f"{self.name} takes at most {self.max_rank} dimensions, not {rank}", fix)

    def _product_findings(self, operation: Operation) -> Iterator[Finding]:
        if len(operation.inputs) < 2:
            return
        first, second = operation.inputs[:2]
        if first is None or second is None or second.quantized is None or not second.constant:
            return
        activation = first.quantized.dtype if first.quantized else "float"
        weight = second.quantized
        turned = bool((operation.attributes or {}).get("transB", 0))
        features = second.shape[-1 if turned else -2] if second.shape is not None and len(second.shape) == 2 else None
        verdict = self.takes_product(operation.operator, activation, weight.dtype, weight.grain, features)
        if not verdict:
            yield self._finding("products", verdict.reason, "choose a pair of types that the target takes")

    def _rule_findings(self, operation: Operation) -> Iterator[Finding]:
        for name, rule in self.rules.items():
            if rule.holds(operation):
                yield Finding(f"rules.{name}", rule.severity, rule.reason, rule.fix, rule.evidence, rule.source)

    def _finding(self, limit: str, reason: str, fix: str = "") -> Finding:
        known = self.sources.get(limit)
        evidence, source = (known.evidence, known.source) if known else (None, "")
        return Finding(limit, Severity.REFUSAL, reason, fix, evidence, source)


def _list(values: Iterable[int]) -> str:
    return ", ".join(str(v) for v in sorted(values)) or "no"
