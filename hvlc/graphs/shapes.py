"""Infer types and shapes of every value of a graph, including the com.microsoft operators that hvlc writes.

ONNX's own inference stops at operators that it does not know. Here it runs node by node, and the shapes of contrib
operators are computed in between (onnxruntime docs/ContribOperators.md).
"""

import math
from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT, OPSET

_SMALL = 64  # elements of constants that shapes may depend on

_Dims = Sequence[int | ir.SymbolicDim]


def infer_shapes(graph: ir.Graph) -> None:
    """Give every value its type and shape, as far as they follow from the graph's inputs and constants.

    Args:
        graph: in topological order; values that have a type and a shape keep them.
    """
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.type = ir.TensorType(value.const_value.dtype)
            value.shape = ir.Shape(value.const_value.shape.numpy())
    for node in graph:
        if any(output.shape is None or output.type is None for output in node.outputs if output.name):
            _infer(node, graph.opset_imports.get("", OPSET))


def _infer(node: ir.Node, opset: int) -> None:
    if node.domain == MICROSOFT:
        rule = _CONTRIB.get(node.op_type)
        if rule is not None:
            rule(node)
    elif not node.domain:
        _infer_standard(node, opset)


def _infer_standard(node: ir.Node, opset: int) -> None:
    """Ask ONNX about one node; what it cannot tell stays unknown."""
    types = {str(v.name): _type(v) for v in node.inputs if v is not None and v.type is not None}
    known = {str(v.name): v.const_value for v in node.inputs if v is not None}
    data = {name: ir.to_proto(tensor) for name, tensor in known.items() if tensor is not None and _tells_shapes(tensor)}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        found = onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), types, data)
    except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, TypeError):
        return
    for output in node.outputs:
        if output.name in found:
            _take(output, found[output.name])


def _tells_shapes(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.INT64 and tensor.size <= _SMALL


def _type(value: ir.Value) -> onnx.TypeProto:
    proto = ir.to_proto(value)
    return proto.type


def _take(value: ir.Value, found: onnx.TypeProto) -> None:
    tensor = found.tensor_type
    value.type = value.type or ir.TensorType(ir.DataType(tensor.elem_type))
    if value.shape is None and tensor.HasField("shape"):
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
        value.shape = ir.Shape(dims)


def _give(value: ir.Value, like: ir.Value | None, dims: _Dims | None) -> None:
    if like is not None:
        value.type = value.type or like.type
    if dims is not None and value.shape is None:
        value.shape = ir.Shape(dims)


def _dims(value: ir.Value | None) -> list[int | ir.SymbolicDim] | None:
    return list(value.shape) if value is not None and value.shape is not None else None


def _product(node: ir.Node) -> None:
    x = _dims(node.inputs[0])
    _give(node.outputs[0], node.inputs[0], [*x[:-1], node.attributes.get_int("N", 0)] if x else None)


def _attention(node: ir.Node) -> None:
    query, past = _dims(node.inputs[0]), [_dims(value) for value in node.inputs[3:5]]
    heads, kv_heads = (node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads"))
    if query is not None:
        packed = node.inputs[1] is None
        width = query[2] * heads // (heads + 2 * kv_heads) if packed and isinstance(query[2], int) else query[2]
        _give(node.outputs[0], node.inputs[0], [*query[:2], width])
    for output, value, dims in zip(node.outputs[1:3], node.inputs[3:5], past, strict=False):
        _give(output, value, dims)  # of a cache that has its room from the start


def _convolution(node: ir.Node) -> None:
    """The output is like the input, and the state after like that before."""
    for output, like in zip(node.outputs, (node.inputs[0], node.inputs[3]), strict=False):
        _give(output, like, _dims(like))


def _norm(node: ir.Node) -> None:
    dims = _dims(node.inputs[0])
    for output in (node.outputs[0], *node.outputs[3:]):
        _give(output, node.inputs[0], dims)


def _lookup(node: ir.Node) -> None:
    table, ids, scales = (_dims(value) for value in node.inputs[:3])
    packed = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8
    if table is None or ids is None:
        return
    per_byte = 8 // node.attributes.get_int("bits", 4) if packed else 1
    rows = [d * per_byte if isinstance(d, int) and i == len(table) - 2 else d for i, d in enumerate(table[1:])]
    _give(node.outputs[0], node.inputs[2] if scales else None, [*ids, *rows])


_CONTRIB: dict[str, Callable[[ir.Node], None]] = {
    "MatMulNBits": _product,
    "GroupQueryAttention": _attention,
    "CausalConvWithState": _convolution,
    "SkipSimplifiedLayerNormalization": _norm,
    "SkipLayerNormalization": _norm,
    "GatherBlockQuantized": _lookup,
}


def dynamic_dims(value: ir.Value) -> str:
    """Dynamic dimensions of a value's shape; empty if it is static."""
    if value.shape is None:
        return "has no known shape"
    unknown = [str(d) for d in value.shape if not isinstance(d, int)]
    return f"has dimensions {', '.join(unknown)}" if unknown else ""


def elements(value: ir.Value) -> int:
    """Number of elements of a value of a fixed shape."""
    return math.prod(int(d) for d in value.shape or () if isinstance(d, int))
