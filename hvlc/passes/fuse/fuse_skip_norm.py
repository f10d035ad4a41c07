"""Fuse a residual Add and the norm after it into onnxruntime's contrib operators.

`Add -> RMSNormalization` becomes SkipSimplifiedLayerNormalization and `Add -> LayerNormalization`
SkipLayerNormalization, which also give the sum: exact up to the order of the additions.
Qualcomm's compiler (onnxruntime-qnn 2.7, tried on one-node models) rejects both, so the target decides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import take_over
from hvlc.graphs.skip_norm import FUSED, SUM_OUTPUT
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator
from hvlc.passes.traits import Trait

_WITH_BIAS = 3  # inputs of a LayerNormalization that has one


@dataclass(frozen=True)
class FuseSkipNorm(ComponentPass):
    """Fuse each norm with the residual addition that feeds it.

    Attributes:
        takes: operators that are taken where a component of a role runs.
    """

    takes: Callable[[Role], TakesOperator]
    roles = frozenset({Role.DECODER, Role.VISION_ENCODER})
    requires = frozenset({Trait.SEPARATE_ENCODERS})

    def transform(self, component: Component) -> Outcome:
        """Fuse every pair whose fused operator is taken."""
        changed, skipped, takes = 0, [], self.takes(component.role)
        for norm in list(component.graph):
            if norm.op_type not in FUSED or norm.domain:
                continue
            found = _residual(norm, takes)
            if isinstance(found, ir.Node):
                _fuse(component.graph, found, norm)
                changed += 1
            else:
                skipped.append(Skip(str(norm.name), found))
        return Outcome(changed, tuple(skipped))


def _residual(norm: ir.Node, takes: TakesOperator) -> ir.Node | str:
    """The addition to fuse with, or why this norm stays as it is."""
    verdict = takes(FUSED[norm.op_type], MICROSOFT)
    if not verdict:
        return verdict.reason
    if norm.attributes.get_int("axis", -1) != -1:
        return "normalizes over more than the last axis"
    add = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if add is None or add.op_type != "Add" or add.domain or add.graph is not norm.graph:
        return "no residual addition before it"
    if any(v is None or (v.producer() is None and not v.is_graph_input()) for v in add.inputs):
        return "adds a weight, not a residual"
    if norm.op_type == "LayerNormalization" and (len(norm.inputs) < _WITH_BIAS or norm.inputs[2] is None):
        return "has no bias"
    return add


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> None:
    """Replace the addition and the norm; the sum stays available to its other readers."""
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    inputs = [*add.inputs, *norm.inputs[1:]]
    name, attributes = str(norm.name), {"epsilon": epsilon}
    fused = ir.node(FUSED[norm.op_type], inputs, attributes, domain=MICROSOFT, num_outputs=4, name=name)
    normed, total = norm.outputs[0], add.outputs[0]
    graph.insert_before(add, fused)
    for output in fused.outputs:
        output.name = ""
    take_over(normed, fused.outputs[0])
    graph.remove(norm, safe=True)
    if total.uses() or total.is_graph_output():
        take_over(total, fused.outputs[SUM_OUTPUT])
    graph.remove(add, safe=True)
