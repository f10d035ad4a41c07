"""Decompose onnxruntime's CausalConvWithState for targets that do not support it.

The state is put before the positions that run, a depthwise convolution without padding reads both, and the last of them
are the state after it: Concat, Conv and Slice, the operators that onnxruntime's fuses (docs/ContribOperators.md).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.editing import make_node, register_dims, replace_node
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator

_OPERATOR = "CausalConvWithState"
_KERNEL, _BIAS, _PAST = 1, 2, 3  # inputs
_POSITIONS = 2  # axis
_RANK = 3
_NEEDED = ("Concat", "Conv", "Slice")
#: Attributes that are read.
_KNOWN = frozenset({"activation", "ndim"})


@dataclass(frozen=True)
class DecomposeCausalConvolution(ComponentPass):
    """Decompose causal convolutions with a state that the target does not support.

    Attributes:
        takes: operators that the target takes: the fused one and its parts.
    """

    takes: TakesOperator

    def transform(self, component: Component) -> Outcome:
        """Take every convolution apart that the target refuses."""
        changed, skipped = 0, list[Skip]()
        found = [n for n in component.graph if n.op_type == _OPERATOR and n.domain == MICROSOFT]
        for node in found if not self.takes(_OPERATOR, MICROSOFT) else ():
            obstacle = self._obstacle(node)
            if obstacle:
                skipped.append(Skip(str(node.name), obstacle))
            else:
                _take_apart(component.graph, node)
                changed += 1
        return Outcome(changed, tuple(skipped))

    def _obstacle(self, node: ir.Node) -> str:
        """Reason why a convolution stays as it is; empty when nothing speaks against taking it apart."""
        activation = node.attributes.get_string("activation", "none")
        for part in (*_NEEDED, *(("Sigmoid", "Mul") if activation != "none" else ())):
            verdict = self.takes(part)
            if not verdict:
                return verdict.reason
        unknown = sorted(name for name in node.attributes if name not in _KNOWN)
        if unknown:
            return f"has {', '.join(unknown)}"
        if activation not in ("none", "silu", "swish"):
            return f"its activation is {activation}"
        if len(node.inputs) <= _PAST or node.inputs[_PAST] is None:
            return "has no state before it"
        if len(_sizes(node.inputs[_KERNEL])) != _RANK:
            return "its kernel is not a constant of three dimensions"
        return ""


def _sizes(kernel: ir.Value | None) -> tuple[int, ...]:
    """Dimensions of a constant kernel; none where it is not one."""
    if kernel is None or kernel.const_value is None:
        return ()
    return tuple(int(d) for d in kernel.const_value.shape.numpy())


def _take_apart(graph: ir.Graph, node: ir.Node) -> None:
    """Put the operators in the convolution's place; the one that makes its output has its name."""
    nodes: list[ir.Node] = []

    def op(op_type: str, suffix: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        nodes.append(make_node(op_type, inputs, f"{node.name}{suffix}", **attributes))
        return nodes[-1].outputs[0]

    def ints(value: int) -> ir.Value:
        return register_dims(graph, (value,))

    kernel, bias, past = node.inputs[_KERNEL], node.inputs[_BIAS], node.inputs[_PAST]
    channels, _, length = _sizes(kernel)
    activation = node.attributes.get_string("activation", "none")
    joined = op("Concat", ".with_past", past, node.inputs[0], axis=_POSITIONS)
    attributes = {"group": channels, "kernel_shape": [length]}
    given = [joined, kernel, *([bias] if bias is not None else [])]
    if activation == "none":
        made = op("Conv", "", *given, **attributes)
    else:
        plain = op("Conv", ".convolved", *given, **attributes)
        made = op("Mul", "", plain, op("Sigmoid", ".sigmoid", plain))
    outputs = [made]
    if len(node.outputs) > 1:
        end = np.iinfo(np.int64).max
        outputs.append(op("Slice", ".present", joined, ints(1 - length), ints(int(end)), ints(_POSITIONS)))
    replace_node(node, nodes, outputs)
