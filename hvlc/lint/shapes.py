"""Infer types and shapes of every value of a file's graph, without reading its weights.

ONNX infers all of it at once first, so that what subgraphs and lists of sizes say is known; then each node in turn, of
which `hvlc.lint.graphs` knows more values by then.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from hvlc.graphs import shapes
from hvlc.graphs.stand_ins import has_stand_in, stand_in

_INLINE_BYTES = 4096  # larger initializers are not shapes: only their type and dimensions matter
_MOST_SIZES = 1_000_000  # that onnx computes for all nodes; each takes it some 100 bytes
_RENAMED = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class ValueType:
    """Element type and dimensions of a value; a symbolic or unknown dimension is None."""

    dtype: str | None
    shape: tuple[int | None, ...] | None


class Types:
    """Types of the values that are visible in a graph.

    Args:
        found: types by name, of this graph's own values.
        outer: those around it.
    """

    def __init__(self, found: Mapping[str, onnx.TypeProto], outer: "Types | None" = None) -> None:
        self._own = dict(found)
        self._outer = outer

    def proto(self, name: str) -> onnx.TypeProto | None:
        """A type as ONNX writes it; None where it is not known."""
        return self._own.get(name) or (self._outer.proto(name) if self._outer else None)

    def __getitem__(self, name: str) -> ValueType:
        """Element type and dimensions of a value."""
        found = self.proto(name)
        if found is None or not found.HasField("tensor_type"):
            return ValueType(None, None)
        tensor = found.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)
        return ValueType(dtype_name(tensor.elem_type), dims if tensor.HasField("shape") else None)

    def text(self, name: str) -> str | None:
        """A type as ONNX's schemas write it, as in "tensor(float)"; None where it is not known."""
        found = self.proto(name)
        return _text(found) if found is not None else None

    def learn(self, name: str, found: onnx.TypeProto) -> None:
        """Take what inference says of a value: it knows more than the file, which keeps what inference leaves open."""
        stated = self._own.get(name)
        if stated is None or not stated.HasField("tensor_type") or not found.HasField("tensor_type"):
            self._own[name] = found if stated is None or _text(stated) is None else stated
            return
        if not found.tensor_type.HasField("shape"):
            return
        old, new = stated.tensor_type.shape.dim, found.tensor_type.shape.dim
        if stated.tensor_type.HasField("shape") and len(old) == len(new):
            for one, other in zip(old, new, strict=True):
                if not other.HasField("dim_value") and one.HasField("dim_value"):
                    other.CopyFrom(one)
        self._own[name] = found


def light_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """A copy of the graph without its weights, with the types of all values as far as they follow from the file.

    Where inference fails, because the graph contradicts itself, they are what the file states.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.CopyFrom(_without_weights(model.graph))
    _replace(light.graph)
    with contextlib.suppress(*shapes.INFERENCE_ERRORS):
        light = shape_inference.infer_shapes(light, data_prop=_is_small(light.graph))
    return light.graph


def _is_small(graph: onnx.GraphProto) -> bool:
    """Whether onnx may compute the graph's lists of sizes: each Concat of one with itself doubles it."""
    lengths = {tensor.name: int(np.prod(tensor.dims, dtype=float)) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        read = [lengths.get(name, 1) for name in node.input]
        read += [max(attribute.t.dims, default=1) for attribute in node.attribute if attribute.HasField("t")]
        length = sum(read) if node.op_type == "Concat" else max(read, default=1)
        total += length
        if total > _MOST_SIZES:
            return False
        lengths |= dict.fromkeys(node.output, length)
    return True


def types_of(graph: onnx.GraphProto, outer: Types | None = None) -> Types:
    """The types that a graph states of its own values."""
    found = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    for constant in graph.initializer:
        found[constant.name] = helper.make_tensor_type_proto(constant.data_type, list(constant.dims))
    return Types(found, outer)


def infer_node(
    node: onnx.NodeProto, types: Types, values: Mapping[str, np.ndarray], versions: Mapping[str, int]
) -> str:
    """Learn the types of what a node writes.

    Args:
        node: without graphs inside it.
        types: of the values that it can see; takes what is learned.
        values: small constants by name.
        versions: of the operators' domains.

    Returns:
        Why ONNX finds that the node cannot be: its inputs' shapes or attributes do not fit. Empty when they do.
    """
    known = {name: one for name in node.input if (one := types.proto(name)) is not None and _text(one) is not None}
    data = {name: numpy_helper.from_array(values[name], name) for name in known if name in values}
    inferred = shapes.infer_node(node, known, data, versions)
    for name, one in inferred.types.items():
        types.learn(name, one)
    return inferred.objection


def _text(found: onnx.TypeProto | None) -> str | None:
    """A type as schemas write it; None where it is open."""
    if found is None:
        return None
    kind = found.WhichOneof("value")
    if kind == "tensor_type":
        name = _element(found.tensor_type.elem_type)
        return f"tensor({name})" if name else None
    if kind == "sparse_tensor_type":
        name = _element(found.sparse_tensor_type.elem_type)
        return f"sparse_tensor({name})" if name else None
    if kind in ("sequence_type", "optional_type"):
        inner = _text(getattr(found, kind).elem_type)
        return f"{'seq' if kind == 'sequence_type' else 'optional'}({inner})" if inner else None
    if kind == "map_type":
        key, inner = _element(found.map_type.key_type), _text(found.map_type.value_type)
        return f"map({key},{inner})" if key and inner else None
    return None


@cache
def _element(data_type: int) -> str | None:
    """The name of an element type, as ONNX's schemas write it."""
    if data_type == onnx.TensorProto.UNDEFINED or data_type not in onnx.TensorProto.DataType.values():
        return None
    return onnx.TensorProto.DataType.Name(data_type).lower()


def dtype_name(data_type: int) -> str | None:
    """The name of an element type, as targets write it."""
    name = _element(data_type)
    return _RENAMED.get(name, name) if name else None


def _without_weights(graph: onnx.GraphProto) -> onnx.GraphProto:
    """A graph in which large initializers are inputs of the same type and shape."""
    light = onnx.GraphProto(
        name=graph.name, node=graph.node, input=graph.input, output=graph.output, value_info=graph.value_info
    )
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= _INLINE_BYTES:
            light.initializer.append(tensor)
        elif tensor.name not in given:
            light.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _replace(graph: onnx.GraphProto, outer: Types | None = None) -> None:
    """Put standard operators in the place of onnxruntime's own, in subgraphs too."""
    types = types_of(graph, outer)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += stand_in(node, types.proto) if has_stand_in(node) else [node]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _replace(attribute.g, types)
    del graph.node[:]
    graph.node.extend(nodes)
