"""Add the zero point of 0 that a DequantizeLinear omits.

ONNX says that a missing zero point is 0, so nothing changes. Qualcomm's compiler (onnxruntime-qnn 2.7) reads 4-bit
integers with one scale for a channel or the whole tensor as others without one, and says nothing; LPBQ weights
without zero points it refuses.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.editing import dequantizers, register
from hvlc.passes.base import ComponentPass, Outcome


@dataclass(frozen=True)
class AddZeroPoints(ComponentPass):
    """Add the zero point of 0 to DequantizeLinear nodes without one.

    Attributes:
        nodes: names of those that read what is dequantized, and that a target refuses, or errs in, as they are.
    """

    nodes: frozenset[str]

    def transform(self, component: Component) -> Outcome:
        """Complete what the named nodes read."""
        changed, skipped = 0, []
        for node in dequantizers(component.graph, self.nodes):
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                continue
            levels, scale = node.inputs[:2]
            shape = _shape(scale)
            if levels is None or levels.dtype is None or shape is None:
                skipped.append(Skip(str(node.name), "the type of its integers or the shape of its scales is not known"))
                continue
            node.resize_inputs(3)
            zeros = np.zeros(shape.numpy(), levels.dtype.numpy())
            name = f"{node.outputs[0].name}.zeros"
            node.replace_input_with(2, register(component.graph, ir.tensor(zeros, name=name)))
            changed += 1
        return Outcome(changed, tuple(skipped))


def _shape(scale: ir.Value | None) -> ir.Shape | None:
    """Shape of scales; of those of LPBQ, which are dequantized, that of their integers."""
    producer = scale.producer() if scale is not None else None
    source = producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else scale
    return source.shape if source is not None and source.shape is not None and source.shape.is_static() else None
