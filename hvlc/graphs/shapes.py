"""Infer types and shapes node by node, without reading weights, also behind operators that only onnxruntime knows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir
from onnx import defs, helper, shape_inference

from hvlc.graphs.builder import OPSET
from hvlc.graphs.stand_ins import has_stand_in, stand_in
from hvlc.inputs.onnx_functions import version_of
from hvlc.inputs.onnx_model import domain_of

_SMALL = 64  # elements of constants that shapes may depend on

#: onnx raises one or the other; the last two where a node states what no schema allows.
INFERENCE_ERRORS = (
    shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    IndexError,
    ValueError,
)


@dataclass(frozen=True)
class Inferred:
    """Answer of ONNX about one node.

    Attributes:
        types: of its outputs by name, as far as they follow.
        objection: why its inputs' shapes or its attributes do not fit. Empty: they do, or ONNX cannot tell.
    """

    types: Mapping[str, onnx.TypeProto] = field(default_factory=dict)
    objection: str = ""


def infer_node(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, onnx.TensorProto],
    versions: Mapping[str, int],
) -> Inferred:
    """Infer the types of what a node writes.

    Args:
        node: without graphs inside it.
        types: of the values that it reads, as far as they are known.
        constants: the small ones that it reads, by name.
        versions: of the operators' domains.
    """
    if not has_stand_in(node):
        return _infer_standard(node, types, constants, versions)
    known, values = dict(types), dict(constants)
    for made in stand_in(node, types.get):
        known |= _infer_standard(made, known, values, versions).types
        if made.op_type == "Constant":
            values[made.output[0]] = made.attribute[0].t
    return Inferred({name: known[name] for name in node.output if name in known})


def _infer_standard(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, onnx.TensorProto],
    versions: Mapping[str, int],
) -> Inferred:
    """Ask ONNX about one node; all of its inputs must have types."""
    version, given = version_of(node, versions), {name for name in node.input if name}
    known = {name: types[name] for name in given if name in types}
    if domain_of(node.domain) or not defs.has(node.op_type, version) or len(known) < len(given):
        return Inferred()
    data = {name: constants[name] for name in given if name in constants}
    opsets = [helper.make_opsetid(domain, number) for domain, number in versions.items()]
    try:
        schema = defs.get_schema(node.op_type, version)
        return Inferred(shape_inference.infer_node_outputs(schema, node, known, data, None, opsets))
    except INFERENCE_ERRORS as error:
        return Inferred(objection=_reason(error))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.removeprefix("[ShapeInferenceError] ").removeprefix("[TypeInferenceError] ")[:200]


def infer_shapes(graph: ir.Graph) -> None:
    """Give every value its type and shape, as far as they follow from the graph's inputs and constants.

    Args:
        graph: in topological order; values that have a type and a shape keep them.
    """
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.type = ir.TensorType(value.const_value.dtype)
            value.shape = ir.Shape(value.const_value.shape.numpy())
    versions = {"": OPSET, **graph.opset_imports}
    for node in graph:
        if any(output.shape is None or output.type is None for output in node.outputs if output.name):
            _infer(node, versions)


def _infer(node: ir.Node, versions: Mapping[str, int]) -> None:
    read = [value for value in node.inputs if value is not None]
    types = {str(value.name): ir.serde.serialize_value(value).type for value in read if value.type is not None}
    known = {str(value.name): value.const_value for value in read if value.const_value is not None}
    data = {name: ir.serde.serialize_tensor(tensor) for name, tensor in known.items() if _tells_shapes(tensor)}
    found = infer_node(ir.serde.serialize_node(node), types, data, versions).types
    for output in node.outputs:
        if str(output.name) in found:
            _take(output, found[str(output.name)])


def _tells_shapes(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.INT64 and tensor.size <= _SMALL


def _take(value: ir.Value, found: onnx.TypeProto) -> None:
    tensor = found.tensor_type
    value.type = value.type or ir.TensorType(ir.DataType(tensor.elem_type))
    if value.shape is None and tensor.HasField("shape"):
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
        value.shape = ir.Shape(dims)


def dynamic_dims(value: ir.Value) -> str:
    """Dynamic dimensions of a value's shape; empty if it is static."""
    if value.shape is None:
        return "has no known shape"
    unknown = [str(d) for d in value.shape if not isinstance(d, int)]
    return f"has dimensions {', '.join(unknown)}" if unknown else ""


def elements(value: ir.Value) -> int:
    """Number of elements of a value of a fixed shape."""
    return math.prod(int(d) for d in value.shape or () if isinstance(d, int))
