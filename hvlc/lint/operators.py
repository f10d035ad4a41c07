"""Operators of the installed onnxruntime: their schemas, and the dtypes that its CPU kernels take.

Read from onnxruntime's own registries; nothing of a model is run or loaded.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

_ONNX = ("", "ai.onnx")
#: Attributes that onnxruntime's kernels take as 0 or 1 alone; of others everything but 0 is true.
_FLAGS = {"CumSum": ("exclusive", "reverse"), "Mod": ("fmod",)}
_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
#: Words that onnxruntime's kernels know of text attributes; ONNX's schemas list them in prose.
_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "AveragePool": {"auto_pad": _PADS},
    "BitShift": {"direction": ("LEFT", "RIGHT")},
    "Conv": {"auto_pad": _PADS},
    "ConvTranspose": {"auto_pad": _PADS},
    "DepthToSpace": {"mode": ("DCR", "CRD")},
    "Gelu": {"approximate": ("none", "tanh")},
    "GridSample": {
        "mode": ("bilinear", "linear", "nearest", "bicubic", "cubic"),
        "padding_mode": ("zeros", "border", "reflection"),
    },
    "LpPool": {"auto_pad": _PADS},
    "MaxPool": {"auto_pad": _PADS},
    "Pad": {"mode": ("constant", "reflect", "edge", "wrap")},
    "Resize": {
        "mode": ("nearest", "linear", "cubic"),
        "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple"),
    },
    "RoiAlign": {"mode": ("avg", "max")},
    "TfIdfVectorizer": {"mode": ("TF", "IDF", "TFIDF")},
}
_OPEN = 2**31 - 1  # last version of a kernel that has none
_Kernel = tuple[int, int, Mapping[str, frozenset[str]]]  # first and last version, types
_Types = Callable[[str], str | None]
_HALF, _SINGLE = "tensor(float16)", "tensor(float)"


@dataclass(frozen=True)
class Parameter:
    """A formal input or output.

    Attributes:
        type: name of a type parameter, or one type.
        required: whether an operand has to be there.
        variadic: whether it takes any number of operands.
        homogeneous: whether those have one type.
        name: its own.
    """

    type: str
    required: bool
    variadic: bool
    homogeneous: bool
    name: str


@dataclass(frozen=True)
class Operator:
    """One version of an operator.

    Attributes:
        since: version of its domain.
        deprecated: whether it was taken out in this version.
        counts: fewest and most inputs, fewest and most outputs.
        inputs: formal ones.
        outputs: formal ones.
        attributes: number of the type (AttributeProto) and whether it is required, by name.
        types: allowed types of each type parameter.
    """

    since: int
    deprecated: bool
    counts: tuple[int, int, int, int]
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    attributes: Mapping[str, tuple[int, bool]]
    types: Mapping[str, frozenset[str]]


def version() -> str:
    """The onnxruntime that is installed, in words."""
    return f"onnxruntime {ort.__version__}"


def operator_of(op_type: str, domain: str, opset: int) -> Operator | None:
    """The version of an operator that an opset has; None where it has none."""
    versions = _operators().get((_domain(domain), op_type), ())
    return next((one for one in reversed(versions) if one.since <= opset), None)


def has_domain(domain: str) -> bool:
    """Whether onnxruntime has operators of a domain."""
    return _domain(domain) in {known for known, _ in _operators()}


def objection(node: onnx.NodeProto, operator: Operator) -> str:
    """Contradiction between a node and its operator: counts, absent operands, attributes. Empty when there is none."""
    least_in, most_in, least_out, most_out = operator.counts
    if not least_in <= len(node.input) <= most_in:
        return f"has {len(node.input)} inputs, {_range(least_in, most_in)} are expected"
    if not least_out <= len(node.output) <= most_out:
        return f"has {len(node.output)} outputs, {_range(least_out, most_out)} are expected"
    for what, names, formal in (("input", node.input, operator.inputs), ("output", node.output, operator.outputs)):
        for name, parameter in zip(names, formal, strict=False):
            if parameter.required and not name:
                return f"has no {what} {parameter.name!r}"
    return _attribute_objection(node, operator) or _graph_objection(node)


def type_objection(node: onnx.NodeProto, operator: Operator, types: _Types) -> str:
    """Contradiction between the types that a node reads and those that its operator takes.

    Args:
        node: of the operator; see `objection`.
        operator: its version.
        types: gives the type of a value, as in "tensor(float)", or None where it is not known.
    """
    bound: dict[str, str] = {}
    for name, parameter in _operands(node.input, operator.inputs):
        found = types(name)
        if found is None:
            continue
        allowed = operator.types.get(parameter.type)
        if found not in (allowed if allowed is not None else {parameter.type}):
            return f"takes no {found} as {parameter.name!r}"
        if allowed is not None and (parameter.homogeneous or not parameter.variadic):
            other = bound.setdefault(parameter.type, found)
            if other != found:
                return f"reads {other} and {found} where both have to be the same"
    return ""


def kernel_objection(node: onnx.NodeProto, operator: Operator, types: _Types) -> str:
    """Lack of a CPU kernel for a node of these types; empty where there is one, or types are not known.

    float16 that is read runs as float32 where only that has a kernel. An operator without any kernel that ONNX defines
    as a function runs as the operators inside, as does Clip. A Constant needs none.
    """
    if node.op_type in ("Clip", "Constant") and not _domain(node.domain):
        return ""
    known = kernels().get((_domain(node.domain), node.op_type), ())
    fitting = [kernel for kernel in known if _is_of(kernel, operator.since)]
    if not fitting:
        return "" if _is_function(node, operator) else "has no kernel on the CPU"
    bound = _bound(node, operator, types)
    halves = any(types(name) == _HALF for name in node.input if name)
    single = {name: _SINGLE if kind == _HALF and halves else kind for name, kind in bound.items()}
    if any(_fits(kernel[2], kinds) for kernel in fitting for kinds in (bound, single)):
        return ""
    wanted = [kind for name, kind in bound.items() if any(name in kernel[2] for kernel in fitting)]
    return f"has no kernel on the CPU for {', '.join(dict.fromkeys(wanted))}"


def _is_of(kernel: _Kernel, since: int) -> bool:
    """Whether a kernel is of a version: one without a last version is of its first alone (KernelRegistry, ORT)."""
    first, last, _ = kernel
    return first == since or first < since <= last < _OPEN


def _fits(kernel: Mapping[str, frozenset[str]], bound: Mapping[str, str]) -> bool:
    return all(bound.get(name) is None or bound[name] in kinds for name, kinds in kernel.items())


def _bound(node: onnx.NodeProto, operator: Operator, types: _Types) -> dict[str, str]:
    """Types by type parameter and by the name of a formal operand: kernels are registered by either."""
    bound: dict[str, str] = {}
    operands = (*_operands(node.input, operator.inputs), *_operands(node.output, operator.outputs))
    for name, parameter in operands:
        found = types(name)
        if found is not None:
            bound.setdefault(parameter.type, found)
            bound.setdefault(parameter.name, found)
    return bound


def _operands(names: Sequence[str], formal: Sequence[Parameter]) -> Iterator[tuple[str, Parameter]]:
    """Given operands with their formal ones; the last formal one may stand for several."""
    for place, name in enumerate(names):
        if name and formal:
            parameter = formal[min(place, len(formal) - 1)]
            if place < len(formal) or parameter.variadic:
                yield name, parameter


def _is_function(node: onnx.NodeProto, operator: Operator) -> bool:
    """Whether ONNX defines an operator by others."""
    if _domain(node.domain):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, operator.since, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined] # no stub


def _graph_objection(node: onnx.NodeProto) -> str:
    """Contradiction between the counts of a node and those of the graphs inside it."""
    graphs = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
    if _domain(node.domain) or node.op_type not in ("If", "Loop"):
        return ""
    outputs = len(node.output) + (node.op_type == "Loop")  # the condition comes first
    for name, graph in graphs.items():
        if len(graph.output) != outputs:
            return f"has a graph {name!r} with {len(graph.output)} outputs, {outputs} are expected"
        if node.op_type == "Loop" and len(graph.input) != len(node.input):
            return f"has a graph {name!r} with {len(graph.input)} inputs, {len(node.input)} are expected"
    return ""


def _attribute_objection(node: onnx.NodeProto, operator: Operator) -> str:
    names = [attribute.name for attribute in node.attribute]
    if len(names) != len(set(names)):
        return "has an attribute twice"
    for attribute in node.attribute:
        if attribute.name not in operator.attributes:
            return f"has an attribute {attribute.name!r}, which its operator does not know"
        kind, _ = operator.attributes[attribute.name]
        if attribute.type != kind or not _is_consistent(attribute):
            expected = onnx.AttributeProto.AttributeType.Name(kind)
            return f"has an attribute {attribute.name!r} that is not of the type {expected}"
        if attribute.name in _FLAGS.get(node.op_type, ()) and attribute.i not in (0, 1):
            return f"has an attribute {attribute.name!r} of {attribute.i}, 0 or 1 is expected"
        words = () if node.domain else _WORDS.get(node.op_type, {}).get(attribute.name, ())
        said = attribute.s.decode("utf-8", "replace")
        if words and said not in words:
            return f"has an attribute {attribute.name!r} of {said[:40]!r}, one of {', '.join(words)} is expected"
    missing = [name for name, (_, required) in operator.attributes.items() if required and name not in names]
    return f"has no attribute {missing[0]!r}" if missing else ""


def _is_consistent(attribute: onnx.AttributeProto) -> bool:
    """Whether an attribute holds a value of the type that it states."""
    if attribute.ref_attr_name:
        return False
    field = {"FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g", "SPARSE_TENSOR": "sparse_tensor"}
    name = onnx.AttributeProto.AttributeType.Name(attribute.type)
    return name not in field or bool(attribute.HasField(field[name])) or name in ("FLOAT", "INT", "STRING")


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"{least} or more" if most > 1000 else f"{least} to {most}"


def _domain(name: str) -> str:
    return "" if name in _ONNX else name


@cache
def _operators() -> Mapping[tuple[str, str], tuple[Operator, ...]]:
    found: dict[tuple[str, str], list[Operator]] = defaultdict(list)
    for schema in runtime.get_all_operator_schema():
        attributes = {name: (int(one.type), bool(one.required)) for name, one in schema.attributes.items()}
        counts = (schema.min_input, schema.max_input, schema.min_output, schema.max_output)
        found[_domain(schema.domain), schema.name].append(
            Operator(
                schema.since_version,
                bool(schema.deprecated),
                counts,
                tuple(_parameter(one) for one in schema.inputs),
                tuple(_parameter(one) for one in schema.outputs),
                attributes,
                {one.type_param_str: frozenset(one.allowed_type_strs) for one in schema.type_constraints},
            )
        )
    return {key: tuple(sorted(versions, key=lambda one: one.since)) for key, versions in found.items()}


def _parameter(formal: "runtime.schemadef.OpSchema.FormalParameter") -> Parameter:
    option = formal.option.name
    return Parameter(formal.typeStr, option == "Single", option == "Variadic", bool(formal.isHomogeneous), formal.name)


@cache
def kernels() -> Mapping[tuple[str, str], tuple[_Kernel, ...]]:
    """First and last version, and types by type parameter or operand, of every kernel of the CPU."""
    found = defaultdict(list)
    for kernel in runtime.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            first, last = kernel.version_range
            types = {name: frozenset(kinds) for name, kinds in kernel.type_constraints.items()}
            found[_domain(kernel.domain), kernel.op_name].append((first, last, types))
    return {key: tuple(kernels) for key, kernels in found.items()}
