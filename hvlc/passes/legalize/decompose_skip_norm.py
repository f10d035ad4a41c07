"""Decompose onnxruntime's SkipLayerNormalization operators into Add and a norm where a target does not support them.

The inverse of `hvlc.passes.fuse.fuse_skip_norm`, for models that any tool fused: SkipSimplifiedLayerNormalization
becomes `Add -> RMSNormalization` and SkipLayerNormalization `Add -> LayerNormalization`, exact up to the order of the
additions. Qualcomm's compiler (onnxruntime-qnn 2.7, tried on one-node models) rejects both fused operators.
"""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.skip_norm import PLAIN, SUM_OUTPUT, take_apart
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator
from hvlc.passes.traits import Trait

_SINCE = {"RMSNormalization": 23, "LayerNormalization": 17}  # opset


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
            if node.domain != MICROSOFT or node.op_type not in PLAIN:
                continue
            if self.takes(node.op_type, MICROSOFT):
                continue
            obstacle = self._obstacle(node, opset)
            if obstacle:
                skipped.append(Skip(str(node.name), obstacle))
            else:
                take_apart(component.graph, node)
                changed += 1
        return Outcome(changed, tuple(skipped))

    def _obstacle(self, node: ir.Node, opset: int) -> str:
        """Reason why a norm stays as it is; empty when nothing speaks against it."""
        norm = PLAIN[node.op_type]
        for part in ("Add", norm):
            verdict = self.takes(part)
            if not verdict:
                return verdict.reason
        if opset < _SINCE[norm]:
            return f"{norm} needs opset {_SINCE[norm]}, the model has {opset}"
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:SUM_OUTPUT]):
            return "its mean or variance is read"
        return ""
