"""A graph as the operations that a target is asked about."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import defs, helper, inliner

from hvlc.errors import UserError
from hvlc.lint.constants import Constants
from hvlc.lint.shapes import ValueType, dtype_name, infer
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
    """

    name: str
    operation: Operation
    folded: bool
    depth: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass
class _Scope:
    """What is known of the values of a graph and of those around it."""

    opset: int
    types: dict[str, ValueType]
    constants: list[Constants]
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=lambda: defaultdict(list))
    known: set[str] = field(default_factory=set)  # computed before the graph runs
    wanted: set[str] = field(default_factory=set)  # outputs of the graph

    def values(self, name: str) -> np.ndarray | None:
        return next((c.values(name) for c in self.constants if name in c), None)


def read_graph(path: Path, dims: Mapping[str, int] | None = None) -> tuple[Node, ...]:
    """The nodes of an ONNX file, outer ones before those of their subgraphs; weights are not read.

    Args:
        path: the file.
        dims: sizes of symbolic dimensions, by name: the graph is read as if they were fixed.

    Raises:
        UserError: the file is no ONNX model, or reads data from outside its directory.
    """
    model = _load(path)
    for dim in _symbolic(model):
        if dims and dim.dim_param in dims:
            dim.dim_value = dims[dim.dim_param]
    return nodes_of(model, path.parent)


def symbolic_dims(path: Path) -> set[str]:
    """Names of the dimensions that a file leaves open.

    Raises:
        UserError: the file is no ONNX model.
    """
    return {dim.dim_param for dim in _symbolic(_load(path))}


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise UserError("lint.model", f"{path} is no ONNX model that can be read", "name an ONNX file") from error
    if not model.graph.node and not model.graph.output:
        raise UserError("lint.model", f"{path} is no ONNX model: it has no graph", "name an ONNX file")
    return model


def _symbolic(model: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
    """Dimensions of values of the main graph that have a name and no size."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_param")]


def nodes_of(model: onnx.ModelProto, directory: Path) -> tuple[Node, ...]:
    """The nodes of a model whose external data lies in a directory."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)
    scope = _Scope(opset, infer(model), [])
    return tuple(_nodes(model.graph, directory, scope, "", 0))


def _nodes(graph: onnx.GraphProto, directory: Path, outer: _Scope, prefix: str, depth: int) -> Iterator[Node]:
    scope = _Scope(
        outer.opset,
        outer.types,
        [Constants(graph, directory), *outer.constants],
        dict(outer.producers),
        defaultdict(list, {name: list(nodes) for name, nodes in outer.readers.items()}),
        outer.known | {tensor.name for tensor in graph.initializer},
        {value.name for value in graph.output},
    )
    for node in graph.node:
        for name in filter(None, node.input):
            scope.readers[name].append(node)
        for name in filter(None, node.output):
            scope.producers[name] = node
    for place, node in enumerate(graph.node):
        folded = _is_folded(node, scope)
        if folded:
            scope.known.update(node.output)
        name = prefix + (node.name or f"{node.op_type}[{place}]")
        yield Node(name, _operation(node, scope), folded, depth, tuple(filter(None, node.input)), tuple(node.output))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g, directory, scope, f"{name}/", depth + 1)


def _is_folded(node: onnx.NodeProto, scope: _Scope) -> bool:
    if node.op_type in _KEPT or any(attribute.HasField("g") for attribute in node.attribute):
        return False
    if node.op_type in ("Shape", "Size") and not node.domain:
        found = scope.types.get(node.input[0])
        return found is not None and found.shape is not None and None not in found.shape
    return all(name in scope.known for name in filter(None, node.input))


def _operation(node: onnx.NodeProto, scope: _Scope) -> Operation:
    readers = {reader.op_type for name in node.output for reader in scope.readers.get(name, [])}
    domain = "" if node.domain == "ai.onnx" else node.domain
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
    found = {} if node.domain else dict(_usual(node.op_type, scope.opset))
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
    producer = _dequantizer(scope.producers.get(name), scope)
    value = scope.types.get(name, ValueType(None, None))
    largest, least = _extremes(name, scope)
    if producer is None or producer.op_type != _DEQUANTIZE:
        spare = _has_spare_unit(name, value.shape, scope)
        return Operand(value.dtype, value.shape, name in scope.known, None, largest, least, spare_unit=spare)
    levels = producer.input[0]
    return Operand(value.dtype, value.shape, levels in scope.known, _quantized(producer, levels, scope))


def _dequantizer(producer: onnx.NodeProto | None, scope: _Scope) -> onnx.NodeProto | None:
    """What dequantizes a value; a Transpose behind constants without blocks is gone, onnxruntime turns those."""
    if producer is None or producer.op_type != "Transpose":
        return producer
    before = scope.producers.get(producer.input[0])
    if before is None or before.op_type != _DEQUANTIZE or before.input[0] not in scope.known:
        return producer
    return producer if any(attribute.name == "block_size" for attribute in before.attribute) else before


def _output(name: str, scope: _Scope) -> Operand:
    value = scope.types.get(name, ValueType(None, None))
    readers = scope.readers.get(name, [])
    quantizers = [reader for reader in readers if reader.op_type == _QUANTIZE]
    if name in scope.wanted or not quantizers or len(quantizers) < len(readers):
        spare = _has_spare_unit(name, value.shape, scope)
        return Operand(value.dtype, value.shape, is_output=name in scope.wanted, spare_unit=spare)
    levels = quantizers[0].output[0]
    quantized = _quantized(quantizers[0], levels, scope)
    return Operand(value.dtype, value.shape, quantized=quantized, is_output=levels in scope.wanted)


def _has_spare_unit(name: str, shape: tuple[int | None, ...] | None, scope: _Scope) -> bool:
    """Whether a value lies around a Transpose between two Reshapes, with a dimension of 1 that stays in place."""
    producer, readers = scope.producers.get(name), scope.readers.get(name, [])
    turn = producer if producer and producer.op_type == "Transpose" else readers[0] if len(readers) == 1 else None
    if turn is None or turn.op_type != "Transpose" or shape is None:
        return False
    before, after = scope.producers.get(turn.input[0]), scope.readers.get(turn.output[0], [])
    between = before is not None and (before.op_type, *(node.op_type for node in after)) == ("Reshape", "Reshape")
    alone = len(scope.readers[turn.input[0]]) == 1 and not {turn.input[0], turn.output[0]} & scope.wanted
    perm = next((tuple(attribute.ints) for attribute in turn.attribute if attribute.name == "perm"), ())
    return between and alone and any(place == at and shape[at] == 1 for at, place in enumerate(perm[: len(shape)]))


def _quantized(node: onnx.NodeProto, levels: str, scope: _Scope) -> Quantized | None:
    """What a QuantizeLinear or DequantizeLinear says of the integers beside it."""
    found = scope.types.get(levels)
    dtype = found.dtype if found else None
    point = scope.types.get(node.input[2]) if len(node.input) > 2 else None
    dtype = dtype or (point.dtype if point else None)
    if dtype is None:
        return None
    scale = node.input[1]
    producer = scope.producers.get(scale)
    block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
    shape = scope.types.get(scale, ValueType(None, None)).shape or ()
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
    values = scope.values(name) if name in scope.known else None
    if values is None or not values.size or values.dtype.kind not in "iuf":
        return None, None
    numbers = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not numbers.size:
        return None, None
    finite = numbers[np.isfinite(numbers)]  # float16 has an infinity: only what becomes one is out of range
    largest = float(np.abs(finite.astype(np.float64)).max()) if finite.size else None
    return largest, int(values.min()) if values.dtype.kind in "iu" else None


__all__ = ["Node", "dtype_name", "nodes_of", "read_graph"]
