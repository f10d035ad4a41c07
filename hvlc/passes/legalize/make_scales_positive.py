"""Make negative scales of constant weights positive by negating their levels too.

Exact: -s times q is s times -q, where -q is a level too. The lowest level of a signed integer has no positive twin, so
a channel with one stays. Qualcomm's compiler (onnxruntime-qnn 2.7) computes wrong numbers with negative scales for a
channel or the whole matrix, and says nothing.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.editing import dequantizers, drop_unread, register
from hvlc.passes.base import ComponentPass, Outcome


@dataclass(frozen=True)
class MakeScalesPositive(ComponentPass):
    """Negate negative scales and their levels, per channel or for the whole tensor.

    Attributes:
        nodes: names of those that read what is dequantized, and that a target refuses, or errs in, as they are.
    """

    nodes: frozenset[str]

    def transform(self, component: Component) -> Outcome:
        """Turn what the named nodes read."""
        changed, skipped = 0, []
        for node in dequantizers(component.graph, self.nodes):
            levels, scales = (_constant(value) for value in node.inputs[:2])
            if scales is None or not (scales < 0).any():
                continue
            negative = _along(node, scales < 0, levels)
            obstacle = _obstacle(node, levels, negative)
            if obstacle or levels is None:
                skipped.append(Skip(str(node.name), obstacle))
                continue
            turned = np.where(negative, -levels.astype(np.int32), levels.astype(np.int32)).astype(levels.dtype)
            for place, values in enumerate((turned, np.abs(scales))):
                name = f"{node.outputs[0].name}.{('levels', 'scales')[place]}"
                _put(component.graph, node, place, ir.tensor(values, name=name))
            changed += 1
        return Outcome(changed, tuple(skipped))


def _constant(value: ir.Value | None) -> np.ndarray | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _along(node: ir.Node, negative: np.ndarray, levels: np.ndarray | None) -> np.ndarray:
    """One flag a scale, in a shape that lies along the levels' axis of channels."""
    if levels is None or negative.ndim != 1:
        return negative
    dims = [1] * levels.ndim
    dims[node.attributes.get_int("axis", 1)] = -1
    return negative.reshape(dims)


def _obstacle(node: ir.Node, levels: np.ndarray | None, negative: np.ndarray) -> str:
    """Reason why the signs must stay; empty when they may be turned."""
    if node.attributes.get_int("block_size", 0):
        return "its scales are those of blocks"
    if levels is None:
        return "its integers are not constant"
    zeros = _constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if zeros is None or zeros.astype(np.int32).any():
        return "its zero point is not 0"
    lowest = ir.DataType.from_numpy(levels.dtype).min
    if lowest == 0:
        return "its integers have no sign"
    return "a level is the lowest, which has no positive twin" if (negative & (levels == lowest)).any() else ""


def _put(graph: ir.Graph, node: ir.Node, place: int, tensor: ir.TensorProtocol) -> None:
    """A constant in the place of another, which goes where nobody else reads it."""
    old = node.inputs[place]
    node.replace_input_with(place, register(graph, tensor))
    drop_unread(graph, old)
