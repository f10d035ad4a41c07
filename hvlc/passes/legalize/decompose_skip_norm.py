"""Decompose onnxruntime's SkipLayerNormalization operators into Add and a norm where a target does not support them.

The inverse of `hvlc.passes.fuse.fuse_skip_norm`, for models that any tool fused: SkipSimplifiedLayerNormalization
becomes `Add -> RMSNormalization` and SkipLayerNormalization `Add -> LayerNormalization`, exact up to the order of the
additions. Qualcomm's compiler (onnxruntime-qnn 2.7, tried on one-node models) rejects both fused operators.
"""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.editing import take_over
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator
from hvlc.passes.traits import Trait

_NORMS = {"SkipSimplifiedLayerNormalization": "RMSNormalization", "SkipLayerNormalization": "LayerNormalization"}
_SINCE = {"RMSNormalization": 23, "LayerNormalization": 17}  # opset
_NORM_INPUTS = {"RMSNormalization": 1, "LayerNormalization": 2}  # weight, and bias of the norm
_EPSILON = 1e-12  # onnxruntime docs/ContribOperators.md: default of both
_SUM_OUTPUT = 3


@dataclass(frozen=True)
class DecomposeSkipNorm(ComponentPass):
    """Decompose residual norms that the target does not support.

    Attributes:
        takes: operators that the target takes: the fused ones and their parts.
    """

    takes: TakesOperator
    requires = frozenset({Trait.LATE_OPSET})

    def transform(self, component: Component) -> Outcome:
        """Take every fused norm apart that the target refuses."""
        changed, skipped = 0, []
        opset = component.model.opset_imports.get("", 0)
        for node in list(component.graph):
            if node.domain != MICROSOFT or node.op_type not in _NORMS:
                continue
            if self.takes(node.op_type, MICROSOFT):
                continue
            obstacle = self._obstacle(node, opset)
            if obstacle:
                skipped.append(Skip(str(node.name), obstacle))
            else:
                _take_apart(component.graph, node)
                changed += 1
        return Outcome(changed, tuple(skipped))

    def _obstacle(self, node: ir.Node, opset: int) -> str:
        """Why a norm stays as it is; empty when nothing speaks against it."""
        norm = _NORMS[node.op_type]
        for part in ("Add", norm):
            verdict = self.takes(part)
            if not verdict:
                return verdict.reason
        if opset < _SINCE[norm]:
            return f"{norm} needs opset {_SINCE[norm]}, the model has {opset}"
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:_SUM_OUTPUT]):
            return "its mean or variance is read"
        return ""


def _take_apart(graph: ir.Graph, node: ir.Node) -> None:
    """Put the additions and the norm in the fused node's place."""
    norm = _NORMS[node.op_type]
    last = 2 + _NORM_INPUTS[norm]  # behind weight and bias of the norm comes a bias of the sum
    total, name = node.outputs[0], str(node.name)
    terms = [node.inputs[1], *node.inputs[last : last + 1]]
    added: ir.Value | None = node.inputs[0]
    for place, term in enumerate(value for value in terms if value is not None):
        add = ir.node("Add", [added, term], name=f"{name}.add_{place}" if place else f"{name}.add")
        graph.insert_before(node, add)
        added = add.outputs[0]
        added.name, added.type, added.shape = f"{add.name}.sum", total.type, total.shape
    attributes = {"axis": -1, "epsilon": node.attributes.get_float("epsilon", _EPSILON)}
    weights = [value for value in node.inputs[2:last] if value is not None]
    normed = ir.node(norm, [added, *weights], attributes, name=name)
    graph.insert_before(node, normed)
    take_over(node.outputs[0], normed.outputs[0])
    if len(node.outputs) > _SUM_OUTPUT and added is not None:
        take_over(node.outputs[_SUM_OUTPUT], added)
    graph.remove(node, safe=True)
