"""Types and shapes of every value of a graph, without its weights.

ONNX knows no operator of onnxruntime, and what follows one would stay unknown. So inference runs on a copy in which
standard operators with the same types and shapes stand in for those.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import helper, shape_inference

MICROSOFT = "com.microsoft"
_INLINE_BYTES = 4096  # larger initializers are no shapes: only their type and dimensions matter
_RENAMED = {"float": "float32", "double": "float64"}
_Dims = Mapping[str, tuple[int, ...]]  # of initializers


@dataclass(frozen=True)
class ValueType:
    """Element type and dimensions of a value; a symbolic or unknown dimension is None."""

    dtype: str | None
    shape: tuple[int | None, ...] | None


def infer(model: onnx.ModelProto) -> dict[str, ValueType]:
    """Types of all values by name, as far as they follow from the file.

    Where inference fails, because the graph contradicts itself, they are what the file states.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.CopyFrom(_without_weights(model.graph))
    _stand_in(light.graph, {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    with contextlib.suppress(shape_inference.InferenceError, RuntimeError):  # onnx raises either
        light = shape_inference.infer_shapes(light, data_prop=True)
    return dict(_types(light.graph))


def dtype_name(data_type: int) -> str | None:
    """The name of an element type, as targets write it."""
    if data_type == onnx.TensorProto.UNDEFINED or data_type not in onnx.TensorProto.DataType.values():
        return None
    name = onnx.TensorProto.DataType.Name(data_type).lower()
    return _RENAMED.get(name, name)


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, ValueType]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        yield value.name, ValueType(dtype_name(tensor.elem_type), dims if tensor.HasField("shape") else None)
    for constant in graph.initializer:
        yield constant.name, ValueType(dtype_name(constant.data_type), tuple(constant.dims))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _types(attribute.g)


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


def _stand_in(graph: onnx.GraphProto, dims: _Dims) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        make = _STAND_INS.get((node.domain, node.op_type))
        nodes += make(node, dims) if make else [node]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _stand_in(attribute.g, dims)
    del graph.node[:]
    graph.node.extend(nodes)


_StandIn = Callable[[onnx.NodeProto, _Dims], list[onnx.NodeProto]]


def _like(*places: int) -> _StandIn:
    """Each output is like the input at its place."""

    def make(node: onnx.NodeProto, _dims: _Dims) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Identity", [node.input[place]], [name])
            for name, place in zip(node.output, places, strict=False)
            if name and place < len(node.input) and node.input[place]
        ]

    return make


def _table(node: onnx.NodeProto, dims: list[int], like: str) -> list[onnx.NodeProto]:
    """Nodes that make `OUTPUT.table`: zeros of a type that another value has."""
    name = node.output[0]
    size = helper.make_tensor(f"{name}.dims", onnx.TensorProto.INT64, [len(dims)], dims)
    return [
        helper.make_node("Constant", [], [f"{name}.dims"], value=size),
        helper.make_node("ConstantOfShape", [f"{name}.dims"], [f"{name}.zeros"]),
        helper.make_node("CastLike", [f"{name}.zeros", like], [f"{name}.table"]),
    ]


def _product(node: onnx.NodeProto, _dims: _Dims) -> list[onnx.NodeProto]:
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    table = _table(node, [sizes.get("K", 0), sizes.get("N", 0)], node.input[0])
    return [*table, helper.make_node("MatMul", [node.input[0], table[-1].output[0]], [node.output[0]])]


def _looked_up(node: onnx.NodeProto, dims: _Dims) -> list[onnx.NodeProto]:
    stored, bits = dims.get(node.input[0]), {a.name: a.i for a in node.attribute}.get("bits", 4)
    if stored is None or len(node.input) < 3:
        return []
    table = _table(node, [*stored[:-1], stored[-1] * 8 // bits], node.input[2])
    return [*table, helper.make_node("Gather", [table[-1].output[0], node.input[1]], [node.output[0]])]


def _skip(node: onnx.NodeProto, _dims: _Dims) -> list[onnx.NodeProto]:
    """The first output and the last, the sum, are like the input; mean and variance between them nobody reads."""
    named = [name for place, name in enumerate(node.output) if name and place in (0, 3)]
    return [helper.make_node("Identity", [node.input[0]], [name]) for name in named]


_STAND_INS: Mapping[tuple[str, str], _StandIn] = {
    ("", "SimplifiedLayerNormalization"): _like(0),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip,
    (MICROSOFT, "SkipLayerNormalization"): _skip,
    (MICROSOFT, "GroupQueryAttention"): _like(0, 3, 4),
    (MICROSOFT, "MultiHeadAttention"): _like(0),
    (MICROSOFT, "RotaryEmbedding"): _like(0),
    (MICROSOFT, "FastGelu"): _like(0),
    (MICROSOFT, "BiasGelu"): _like(0),
    (MICROSOFT, "Gelu"): _like(0),
    (MICROSOFT, "QuickGelu"): _like(0),
    (MICROSOFT, "MatMulNBits"): _product,
    (MICROSOFT, "GatherBlockQuantized"): _looked_up,
}
