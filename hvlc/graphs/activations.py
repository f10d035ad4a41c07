"""Memory of a graph's activations, found by walking through it: what is alive at once, without running anything."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hvlc.graphs.shapes import INFERENCE_ERRORS, infer_node

_SMALL = 4096  # elements of values that are computed on the way, because shapes may depend on them
_FLOAT = 4  # bytes
#: Times what is alive that onnxruntime's arena takes at most: it grows by doublings and keeps gaps (docs/vision.md).
_ARENA = 2.6


def stated_cap(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> int | None:
    """Memory in bytes that onnxruntime's CPU provider takes for a run, at most, beside the loaded model.

    Args:
        model: without subgraphs; its external data is not read.
        inputs: shapes of the graph's inputs.

    Returns:
        None: a shape does not follow from the inputs'.
    """
    found = peak_activations(model, inputs)
    return None if found is None else int(_ARENA * (found.values + found.copies))


@dataclass(frozen=True)
class Activations:
    """Peaks of a run, in bytes.

    Attributes:
        values: that wait to be read, at most at once.
        copies: of the kernel that makes the most for itself: patches side by side, heads apart, weights in float.
    """

    values: int
    copies: int


def peak_activations(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> Activations | None:
    """Peaks of values and of kernels' copies while a graph runs, node by node in its order.

    Args:
        model: without subgraphs; its external data is not read.
        inputs: shapes of the graph's inputs.

    Returns:
        None: a shape does not follow from the inputs'.
    """
    graph, versions = model.graph, {entry.domain: entry.version for entry in model.opset_import}
    types = {value.name: _with_shape(value.type, inputs[value.name]) for value in graph.input if value.name in inputs}
    types |= {t.name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for t in graph.initializer}
    values = {t.name: t for t in graph.initializer if prod(t.dims) <= _SMALL and not t.external_data}
    stored, readers = {t.name for t in graph.initializer}, Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    sizes = {name: _bytes(types[name]) or 0 for name in inputs if name in types}
    alive = most = sum(sizes.values())
    copies = 0
    for node in graph.node:
        found = _types_of(node, types, values, versions)
        written = {name: _bytes(found[name]) if name in found else None for name in node.output if name}
        if None in written.values():
            return None
        types |= found
        sizes |= {name: size or 0 for name, size in written.items()}
        alive += sum(sizes[name] for name in written)
        most, copies = max(most, alive), max(copies, _copies(node, types))
        for name in node.input:
            readers[name] -= 1
            if not readers[name] and name not in stored:
                alive -= sizes.pop(name, 0)
    return Activations(most, copies)


def _with_shape(declared: onnx.TypeProto, shape: tuple[int, ...]) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(declared.tensor_type.elem_type, shape)


def _types_of(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    values: dict[str, onnx.TensorProto],
    versions: Mapping[str, int],
) -> dict[str, onnx.TypeProto]:
    """Types of what a node writes; small values that follow from known ones are computed and entered."""
    if node.op_type == "Shape" and not node.domain and (shape := _dims(types.get(node.input[0]))) is not None:
        given = {attribute.name: attribute.i for attribute in node.attribute}
        dims = np.array(shape[given.get("start", 0) : given.get("end", len(shape))], np.int64)
        values[node.output[0]] = numpy_helper.from_array(dims, node.output[0])
    elif not node.domain and all(name in values for name in node.input if name):
        _compute(node, values, versions)
    made = {name: values[name] for name in node.output if name in values}
    known = {name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for name, t in made.items()}
    return known or dict(infer_node(node, types, values, versions).types)


def _compute(node: onnx.NodeProto, values: dict[str, onnx.TensorProto], versions: Mapping[str, int]) -> None:
    """Enter what a node makes of known values, if it is small and can be computed."""
    read = {name: numpy_helper.to_array(values[name]) for name in node.input if name}
    outputs = [name for name in node.output if name]
    given = [helper.make_tensor_value_info(name, values[name].data_type, None) for name in read]
    alone = helper.make_graph([node], "alone", given, [helper.make_empty_tensor_value_info(name) for name in outputs])
    opset = helper.make_opsetid("", versions.get("", versions.get("ai.onnx", 1)))
    try:
        made = ReferenceEvaluator(helper.make_model(alone, opset_imports=[opset])).run(None, read)
    except (*INFERENCE_ERRORS, TypeError, NotImplementedError, KeyError, AttributeError):
        return
    for name, value in zip(outputs, made, strict=True):
        if np.size(value) <= _SMALL:
            values[name] = numpy_helper.from_array(np.asarray(value), name)


def _dims(found: onnx.TypeProto | None) -> list[int] | None:
    """Shape of a type; None: it is not static."""
    if found is None or not found.tensor_type.HasField("shape"):
        return None
    dims = found.tensor_type.shape.dim
    return [d.dim_value for d in dims] if all(d.HasField("dim_value") for d in dims) else None


def _bytes(found: onnx.TypeProto) -> int | None:
    dims = _dims(found)
    if dims is None:
        return None
    return prod(dims) * helper.tensor_dtype_to_np_dtype(found.tensor_type.elem_type).itemsize


def _copies(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> int:
    """Bytes that onnxruntime's kernel holds besides: patches side by side, heads apart, weights in float."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMulNBits" and given.get("accuracy_level", 0) != 4:
        return _FLOAT * given["K"] * given["N"]
    if node.op_type in ("MultiHeadAttention", "Attention"):
        return sum(_bytes(types[name]) or 0 for name in node.input[:3] if name in types)
    if node.op_type == "Conv":
        kernel, made = _dims(types.get(node.input[1])), _dims(types.get(node.output[0]))
        return _FLOAT * prod(kernel[1:]) * prod(made[2:]) if kernel and made else 0
    return 0
