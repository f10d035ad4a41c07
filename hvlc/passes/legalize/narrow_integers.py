"""Narrow constant int64 indices to int32 where the operator takes both, for targets without int64.

Proven from ONNX's schemas: an input's type must be free to be int32, and no other input or output may share it.
Values outside int32 stay. What the model's own inputs and outputs are is not changed.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx import defs

from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.editing import register
from hvlc.passes.base import ComponentPass, Outcome

_LARGEST = 1 << 20  # elements; indices of that number are not constants of a graph
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class NarrowIntegers(ComponentPass):
    """Narrow int64 constants to int32.

    Attributes:
        nodes: names of those that a target refuses as they are.
    """

    nodes: frozenset[str]

    def transform(self, component: Component) -> Outcome:
        """Narrow the constant inputs of the named nodes."""
        changed, skipped = 0, []
        opset = component.model.opset_imports.get("", 0)
        for node in list(component.graph):
            if node.name not in self.nodes or node.domain:
                continue
            for place, value in enumerate(node.inputs):
                if value is None or value.const_value is None or value.dtype != ir.DataType.INT64:
                    continue
                obstacle = _obstacle(node, place, value.const_value, opset)
                if obstacle:
                    skipped.append(Skip(f"{node.name} input {place}", obstacle))
                    continue
                values = value.const_value.numpy().astype(np.int32)
                node.replace_input_with(place, register(component.graph, ir.tensor(values, name=f"{value.name}.int32")))
                changed += 1
        return Outcome(changed, tuple(skipped))


def _obstacle(node: ir.Node, place: int, constant: ir.TensorProtocol, opset: int) -> str:
    """Reason why an input must stay int64; empty when it may be int32."""
    schema = defs.get_schema(node.op_type, opset) if defs.has(node.op_type, opset) else None
    if schema is None or place >= len(schema.inputs):
        return "ONNX has no schema of it"
    variable = schema.inputs[place].type_str
    allowed = [c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == variable]
    if not allowed or "tensor(int32)" not in allowed[0]:
        return "the operator takes int64 alone"
    sharing = [p for p in (*schema.inputs, *schema.outputs) if p.type_str == variable]
    if len(sharing) > 1:
        return "other inputs or outputs must have the same type"
    values = constant.numpy() if constant.size <= _LARGEST else None
    if values is None or (values.size and (values.min() < _INT32.min or values.max() > _INT32.max)):
        return "values lie outside int32"
    return ""
