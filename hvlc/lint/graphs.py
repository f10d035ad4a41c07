"""Read a graph as the list of operations that a target judges."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import defs, helper

from hvlc.graphs.stand_ins import has_stand_in
from hvlc.inputs.onnx_data import check_tensors
from hvlc.inputs.onnx_functions import inline_functions, version_of
from hvlc.inputs.onnx_graph import label, sort_nodes
from hvlc.inputs.onnx_model import domain_of, open_model, subgraphs, versions_of
from hvlc.lint import operators
from hvlc.lint.constants import Constants
from hvlc.lint.folding import MOST, fold
from hvlc.lint.shapes import Types, dtype_name, infer_node, light_graph, types_of
from hvlc.lint.structure import check_structure, check_versions
from hvlc.targets import Grain, Operand, Operation, Quantized

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
#: onnxruntime never computes these before, even when all of their inputs are constants: they carry quantization, or
#: their output is random.
_KEPT = frozenset({_QUANTIZE, _DEQUANTIZE, "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"})


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        name: its own, or operator and position; nodes of subgraphs have the owner's before a "/".
        operation: what a target is asked.
        folded: whether onnxruntime computes it before the target sees the graph.
        depth: 0 in the main graph.
        reads: names of values.
        writes: names of values.
        invalid: why onnxruntime cannot load the node: an unknown operator, types or shapes that do not fit. Empty when
            it can.
        kernel: why onnxruntime has no CPU kernel for it; empty where it has one, or its types are not known.
    """

    name: str
    operation: Operation
    folded: bool
    depth: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    invalid: str = ""
    kernel: str = ""


class _Scope:
    """Known shapes and constants of a graph's values, and of the enclosing graphs'.

    Attributes:
        versions: of the operators' domains.
        types: of values.
        constants: of small size.
        light: the graph without weights, with types that follow from the file.
        wanted: outputs of the graph.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        light: onnx.GraphProto,
        directory: Path,
        versions: Mapping[str, int],
        outer: "_Scope | None" = None,
    ) -> None:
        self.versions = versions
        self.types: Types = types_of(light, outer.types if outer else None)
        self.constants: Constants = Constants(graph, directory, outer.constants if outer else None)
        self.light = {node.output[0]: node for node in light.node if node.output}
        self.wanted = {value.name for value in graph.output}
        self._outer = outer
        self._known = {tensor.name for tensor in graph.initializer}  # computed before the graph runs
        self._guessed: set[str] = set()  # their types come from operators that stand in for others
        self._made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
        self._producers: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in filter(None, node.input):
                self._readers[name].append(node)
            for name in filter(None, node.output):
                self._producers[name] = node

    def values(self, name: str) -> np.ndarray | None:
        """A constant's values; None where there is none, or it is large."""
        return self.constants.values(name)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value."""
        if name in self._made or self._outer is None:
            return self._producers.get(name)
        return self._outer.producer(name)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a value, in this graph and in those around it."""
        own = self._readers.get(name, [])
        return own if name in self._made or self._outer is None else [*self._outer.readers(name), *own]

    def knows(self, name: str) -> bool:
        """Whether a value is computed before the graph runs."""
        if name in self._known:
            return True
        return name not in self._made and self._outer is not None and self._outer.knows(name)

    def learn(self, names: Iterable[str]) -> None:
        """Take values as computed before the graph runs."""
        self._known.update(names)

    def is_guessed(self, name: str) -> bool:
        """Whether the type of a value may be wrong."""
        if name in self._guessed:
            return True
        return name not in self._made and self._outer is not None and self._outer.is_guessed(name)

    def guess(self, names: Iterable[str]) -> None:
        """Take the types of values as possibly wrong."""
        self._guessed.update(names)

    def inner(self, graph: onnx.GraphProto, light: onnx.GraphProto, directory: Path) -> "_Scope":
        """The scope of a graph inside this one."""
        return _Scope(graph, light, directory, self.versions, self)


def read_graph(path: Path, dims: Mapping[str, int] | None = None) -> tuple[Node, ...]:
    """The nodes of an ONNX file, outer ones before those of their subgraphs; weights are not read.

    Args:
        path: the file.
        dims: sizes of symbolic dimensions, by name: the graph is read as if they were fixed.

    Raises:
        UserError: the file is not an ONNX model that onnxruntime can read, or its external data is damaged or outside
            its directory.
    """
    model = open_model(path, "lint")
    for dim in _symbolic(model):
        if dims and dim.dim_param in dims:
            dim.dim_value = dims[dim.dim_param]
    check_versions(model)
    model = inline_functions(model, "lint")
    check_structure(model)
    check_tensors(model, path.parent, "lint")
    return nodes_of(model, path.parent)


def symbolic_dims(path: Path) -> set[str]:
    """Names of the dimensions that a file leaves open.

    Raises:
        UserError: the file is not an ONNX model.
    """
    return {dim.dim_param for dim in _symbolic(open_model(path, "lint"))}


def _symbolic(model: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
    """Dimensions of values of the main graph that have a name and no size."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_param")]


def nodes_of(model: onnx.ModelProto, directory: Path) -> tuple[Node, ...]:
    """The nodes of a model whose external data lies in a directory, in topological order.

    Args:
        model: held to be sound; see `read_graph` for what has to be.
        directory: of its external data.
    """
    model = inline_functions(model, "lint")
    sort_nodes(model.graph)
    scope = _Scope(model.graph, light_graph(model), directory, versions_of(model))
    return tuple(_nodes(model.graph, directory, scope, "", 0))


def _nodes(graph: onnx.GraphProto, directory: Path, scope: _Scope, prefix: str, depth: int) -> Iterator[Node]:
    for place, node in enumerate(graph.node):
        invalid, kernel = _learn(node, scope)
        folded = _is_folded(node, scope)
        if folded:
            scope.learn(node.output)
        name = prefix + label(node, place)
        reads, writes = tuple(filter(None, node.input)), tuple(node.output)
        yield Node(name, _operation(node, scope), folded, depth, reads, writes, invalid, kernel)
        for attribute in node.attribute:
            for inner, light in _inner_graphs(attribute, scope.light.get(node.output[0]) if node.output else None):
                yield from _nodes(inner, directory, scope.inner(inner, light, directory), f"{name}/", depth + 1)


def _inner_graphs(
    attribute: onnx.AttributeProto, light: onnx.NodeProto | None
) -> Iterator[tuple[onnx.GraphProto, onnx.GraphProto]]:
    """The graphs of an attribute, each with its like in the graph without weights."""
    found = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    like = next((one for one in light.attribute if one.name == attribute.name), attribute) if light else attribute
    others = [*([like.g] if like.HasField("g") else []), *like.graphs]
    yield from zip(found, others if len(others) == len(found) else found, strict=True)


def _learn(node: onnx.NodeProto, scope: _Scope) -> tuple[str, str]:
    """Learn types and values of what a node writes.

    Returns:
        Why onnxruntime cannot load the node, and why it has no CPU kernel; empty where it can and has.
    """
    domain, version = domain_of(node.domain), version_of(node, scope.versions)
    operator = operators.operator_of(node.op_type, domain, version)
    if operator is None or operator.deprecated:
        known = f"{operators.version()} has no operator {node.op_type} of version {version}"
        return (f"{known} in the domain {domain}" if domain else known), ""
    invalid = operators.type_objection(node, operator, scope.types.text)
    holds_graphs = any(True for _ in subgraphs(node))
    if not invalid and not holds_graphs and node.op_type != "Constant":
        invalid = _infer(node, scope)
    guessed = any(scope.is_guessed(name) for name in node.input)
    if guessed or has_stand_in(node):
        scope.guess(node.output)
    invalid = "" if guessed else invalid  # what is not known for sure refuses nothing
    kernel = "" if invalid else operators.kernel_objection(node, operator, scope.types.text)
    return invalid, kernel


def _infer(node: onnx.NodeProto, scope: _Scope) -> str:
    """Learn types and values; returns why shapes or attributes do not fit."""
    values = {name: scope.constants.small(name, MOST) for name in node.input if name}
    known = {name: value for name, value in values.items() if value is not None and value.dtype.kind in "iufb"}
    invalid = infer_node(node, scope.types, known, scope.versions)
    if not invalid and node.domain in ("", "ai.onnx") and len(node.output) == 1 and node.op_type not in _KEPT:
        first = scope.types[node.input[0]].shape if node.input else None
        made = fold(node, [known.get(name) for name in node.input], first)
        if made is not None:
            scope.constants.keep(node.output[0], made)
    return invalid


def _is_folded(node: onnx.NodeProto, scope: _Scope) -> bool:
    if node.op_type in _KEPT or any(True for _ in subgraphs(node)):
        return False
    if node.op_type in ("Shape", "Size") and not node.domain:
        shape = scope.types[node.input[0]].shape
        return shape is not None and None not in shape
    return all(scope.knows(name) for name in filter(None, node.input))


def _operation(node: onnx.NodeProto, scope: _Scope) -> Operation:
    readers = {reader.op_type for name in node.output for reader in scope.readers(name)}
    domain = domain_of(node.domain)
    inputs = tuple(_input(name, scope) if name else None for name in node.input)
    return Operation(
        node.op_type,
        domain,
        _attributes(node, inputs, scope),
        inputs,
        tuple(_output(name, scope) if name else None for name in node.output),
        frozenset(readers),
    )


def _attributes(node: onnx.NodeProto, inputs: tuple[Operand | None, ...], scope: _Scope) -> dict[str, object]:
    """Plain attributes, ONNX's own where the file gives none; an axis is counted from the end, whatever the file does.

    CumSum has its axis as an input, which is an attribute here.
    """
    found = {} if node.domain else dict(_usual(node.op_type, version_of(node, scope.versions)))
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            found[attribute.name] = value.decode(errors="replace")
        elif isinstance(value, int | float):
            found[attribute.name] = value
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            found[attribute.name] = tuple(value)
    summed = scope.values(node.input[1]) if node.op_type == "CumSum" and not node.domain else None
    if summed is not None and summed.size == 1:
        found["axis"] = int(summed.reshape(-1)[0])
    axis, first = found.get("axis"), inputs[0] if inputs else None
    if isinstance(axis, int) and axis >= 0 and first is not None and first.shape is not None:
        found["axis"] = axis - len(first.shape)
    return found


@cache
def _usual(op_type: str, opset: int) -> dict[str, object]:
    """Values of the attributes that ONNX has one for where a file gives none."""
    if not defs.has(op_type, opset):
        return {}
    attributes = defs.get_schema(op_type, opset).attributes.items()
    given = {name: helper.get_attribute_value(one.default_value) for name, one in attributes if one.default_value.name}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in given.items()}


def _input(name: str, scope: _Scope) -> Operand:
    producer = _dequantizer(scope.producer(name), scope)
    value = scope.types[name]
    largest, least = _extremes(name, scope)
    if producer is None or producer.op_type != _DEQUANTIZE:
        spare = _has_spare_unit(name, value.shape, scope)
        return Operand(value.dtype, value.shape, scope.knows(name), None, largest, least, spare_unit=spare)
    levels = producer.input[0]
    return Operand(value.dtype, value.shape, scope.knows(levels), _quantized(producer, levels, scope))


def _dequantizer(producer: onnx.NodeProto | None, scope: _Scope) -> onnx.NodeProto | None:
    """Node that dequantizes a value; a Transpose after constants without blocks is gone, onnxruntime turns those."""
    if producer is None or producer.op_type != "Transpose":
        return producer
    before = scope.producer(producer.input[0])
    if before is None or before.op_type != _DEQUANTIZE or not scope.knows(before.input[0]):
        return producer
    return producer if any(attribute.name == "block_size" for attribute in before.attribute) else before


def _output(name: str, scope: _Scope) -> Operand:
    value = scope.types[name]
    readers = scope.readers(name)
    quantizers = [reader for reader in readers if reader.op_type == _QUANTIZE]
    if name in scope.wanted or not quantizers or len(quantizers) < len(readers):
        spare = _has_spare_unit(name, value.shape, scope)
        return Operand(value.dtype, value.shape, is_output=name in scope.wanted, spare_unit=spare)
    levels = quantizers[0].output[0]
    quantized = _quantized(quantizers[0], levels, scope)
    return Operand(value.dtype, value.shape, quantized=quantized, is_output=levels in scope.wanted)


def _has_spare_unit(name: str, shape: tuple[int | None, ...] | None, scope: _Scope) -> bool:
    """Whether a value lies around a Transpose between two Reshapes, with a dimension of 1 that stays in place."""
    producer, readers = scope.producer(name), scope.readers(name)
    turn = producer if producer and producer.op_type == "Transpose" else readers[0] if len(readers) == 1 else None
    if turn is None or turn.op_type != "Transpose" or shape is None:
        return False
    before, after = scope.producer(turn.input[0]), scope.readers(turn.output[0])
    between = before is not None and (before.op_type, *(node.op_type for node in after)) == ("Reshape", "Reshape")
    alone = len(scope.readers(turn.input[0])) == 1 and not {turn.input[0], turn.output[0]} & scope.wanted
    perm = next((tuple(attribute.ints) for attribute in turn.attribute if attribute.name == "perm"), ())
    return between and alone and any(place == at and shape[at] == 1 for at, place in enumerate(perm[: len(shape)]))


def _quantized(node: onnx.NodeProto, levels: str, scope: _Scope) -> Quantized | None:
    """Quantization of the integers beside a QuantizeLinear or DequantizeLinear."""
    dtype = scope.types[levels].dtype
    dtype = dtype or (scope.types[node.input[2]].dtype if len(node.input) > 2 else None)
    if dtype is None:
        return None
    scale = node.input[1]
    producer = scope.producer(scale)
    block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
    shape = scope.types[scale].shape or ()
    values, zeros = scope.values(scale), scope.values(node.input[2]) if len(node.input) > 2 else np.zeros(1)
    sizes, factors = values, None
    if block and producer is not None and producer.op_type == _DEQUANTIZE:
        grain = Grain.LPBQ
        factors, sizes = scope.values(producer.input[0]), scope.values(producer.input[1])
    elif block:
        grain = Grain.BLOCK
    else:
        grain = Grain.CHANNEL if any(size != 1 for size in shape) else Grain.TENSOR
    return Quantized(
        dtype,
        grain,
        float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None,
        int(zeros.reshape(-1)[0]) if zeros is not None and zeros.size and (zeros == zeros.flat[0]).all() else None,
        len(node.input) > 2 and bool(node.input[2]),
        float(sizes.min()) if sizes is not None and sizes.size else None,
        int(factors.max()) if factors is not None and factors.size else None,
    )


def _extremes(name: str, scope: _Scope) -> tuple[float | None, int | None]:
    """Largest magnitude and smallest integer of a constant; infinity is a magnitude, NaN is none."""
    values = scope.values(name) if scope.knows(name) else None
    if values is None or not values.size or values.dtype.kind not in "iuf":
        return None, None
    numbers = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not numbers.size:
        return None, None
    finite = numbers[np.isfinite(numbers)]  # float16 has an infinity: only what becomes one is out of range
    largest = float(np.abs(finite.astype(np.float64)).max()) if finite.size else None
    return largest, int(values.min()) if values.dtype.kind in "iu" else None


__all__ = ["Node", "dtype_name", "nodes_of", "read_graph"]
