"""Fold statically known shapes to constants, and remove Expands that copy nothing.

A compiler of static shapes takes neither `Shape` nor what is computed from it: SigLIP's pooling head reads the number
of images and repeats its probe for each. With one image the number is a constant, and nothing is repeated.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import bypass, drop_unread, register_dims
from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait

_MOST = 64  # elements of what describes a shape


@dataclass(frozen=True)
class FoldShapes(ComponentPass):
    """Fold `Shape` of static shapes and `Concat` of constant dimensions, and remove `Expand` that changes nothing."""

    roles = frozenset({Role.DECODER, Role.VISION_ENCODER})
    requires = frozenset({Trait.STATIC_SHAPES})
    promises = frozenset({Trait.INFERRED_SHAPES})
    ends = frozenset({Trait.COMPUTED_SHAPES})

    def transform(self, component: Component) -> Outcome:
        """Fold in the order in which the nodes run; shapes of what comes behind are inferred anew."""
        graph, changed, skipped = component.graph, 0, []
        for node in [n for n in graph if n.op_type in ("Shape", "Concat", "Expand") and not n.domain]:
            same = _folded(graph, node)
            if same is not None:
                _replace(graph, node, same)
                changed += 1
            elif node.op_type == "Shape":
                skipped.append(Skip(str(node.name), "its input has no fixed shape"))
        if changed:
            _forget_open_shapes(graph)
            infer_shapes(graph)
        return Outcome(changed, tuple(skipped))


def _folded(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """The value that a node's output is equal to, where it is known."""
    source = node.inputs[0]
    if source is None or node.outputs[0].is_graph_output():
        return None
    if node.op_type == "Shape":
        if source.shape is None or not source.shape.is_static():
            return None
        dims = source.shape.numpy()
        return register_dims(
            graph, dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
        )
    if node.op_type == "Concat":
        parts = [_dims(value) for value in node.inputs]
        known = [part for part in parts if part is not None]
        return register_dims(graph, tuple(d for part in known for d in part)) if len(known) == len(parts) else None
    asked = _dims(node.inputs[1])
    if asked is None or source.shape is None or not source.shape.is_static():
        return None
    dims = source.shape.numpy()
    return source if np.broadcast_shapes(dims, asked) == tuple(dims) else None


def _dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """Values of a constant int64 `[rank]`."""
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.dtype != ir.DataType.INT64 or len(tensor.shape) != 1:
        return None
    return tuple(tensor.numpy().tolist()) if math.prod(tensor.shape.numpy()) <= _MOST else None


def _replace(graph: ir.Graph, node: ir.Node, same: ir.Value) -> None:
    read = list(node.inputs)
    bypass(node, same)
    drop_unread(graph, *read)


def _forget_open_shapes(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output() and value.shape is not None and not value.shape.is_static():
                value.shape = None
