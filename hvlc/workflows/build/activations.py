"""Memory of vision encoders for activations, stated from a bundle before anything is written."""

import onnx
import onnx_ir as ir
from onnx import helper

from hvlc.graphs.activations import stated_cap
from hvlc.graphs.bundle import Bundle, Role
from hvlc.opening.graphs import mixes_batch
from hvlc.runtime.settings import TILE_BATCH
from hvlc.weights.lazy import LazyTensor

_SMALL = 64  # elements of constants that shapes may depend on


def activation_caps(bundle: Bundle) -> dict[str, int]:
    """Most bytes of activations of each vision encoder on a CPU over a full batch of tiles.

    Args:
        bundle: finished, its weights lazy; shapes of its encoders are not fixed.
    """
    image = bundle.facts.image
    if image is None or image.rule.piece_shape is None:
        return {}
    found: dict[str, int] = {}
    for name, component in bundle.components.items():
        if component.role is not Role.VISION_ENCODER:
            continue
        model = weightless(component.model)
        batch = 1 if mixes_batch(model.graph) else image.tile_batch or TILE_BATCH
        cap = stated_cap(model, {model.graph.input[0].name: (batch, 3, *image.rule.piece_shape)})
        found |= {} if cap is None else {name: cap}
    return found


def weightless(model: ir.Model) -> onnx.ModelProto:
    """A graph whose large weights have shapes and types, and no values."""
    graph = model.graph
    stored = [_described(str(v.name), v.const_value) for v in graph.initializers.values() if v.const_value is not None]
    inputs, outputs = ([ir.to_proto(value) for value in values] for values in (graph.inputs, graph.outputs))
    made = helper.make_graph([ir.to_proto(node) for node in graph], "graph", inputs, outputs, stored)
    versions = [helper.make_opsetid(domain, version) for domain, version in graph.opset_imports.items()]
    return helper.make_model(made, opset_imports=versions)


def _described(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """A tensor as an initializer: with its values where shapes may depend on them.

    Weights are lazy, and scales of activations are not known before a calibration: no shape depends on either.
    """
    known = not isinstance(tensor, LazyTensor)
    if known and tensor.size <= _SMALL and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT):
        small: onnx.TensorProto = ir.to_proto(tensor)
        small.name = name
        return small
    dims = [int(size) for size in tensor.shape.numpy()]
    found = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=dims)
    found.data_location = onnx.TensorProto.EXTERNAL
    found.external_data.add(key="location", value="")
    return found
