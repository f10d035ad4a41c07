"""Replace Gemm by MatMul and Add, for targets that refuse Gemm or compute it wrong.

Only a Gemm `A @ B + C` without transposition or scaling is replaced: exact up to the order of the additions. Qualcomm's
compiler (onnxruntime-qnn 2.7) refuses weights with two levels of scales (LPBQ) in Gemm without a float bias, and with
one it computes wrong numbers and says nothing; in MatMul they are right.
"""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.editing import replace_node
from hvlc.passes.base import ComponentPass, Outcome


@dataclass(frozen=True)
class GemmToMatMulAdd(ComponentPass):
    """Replace Gemm nodes by MatMul, and by Add if there is a bias.

    Attributes:
        nodes: names of those that a target refuses, or errs in, as they are.
    """

    nodes: frozenset[str]

    def transform(self, component: Component) -> Outcome:
        """Replace every named Gemm that is a plain product."""
        changed, skipped = 0, []
        for node in list(component.graph):
            if node.op_type != "Gemm" or node.domain or node.name not in self.nodes:
                continue
            obstacle = _obstacle(node)
            if obstacle:
                skipped.append(Skip(str(node.name), obstacle))
                continue
            _spell_out(node)
            changed += 1
        return Outcome(changed, tuple(skipped))


def _spell_out(node: ir.Node) -> None:
    """Replace a Gemm by the product, and the addition of the bias after it."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    product = ir.node("MatMul", node.inputs[:2], name=str(node.name))
    if bias is None:
        replace_node(node, product)
        return
    value, result = product.outputs[0], node.outputs[0]
    value.name, value.type, value.shape = f"{node.name}.product", result.type, result.shape
    replace_node(node, [product, ir.node("Add", [value, bias], name=f"{node.name}.bias")])


def _obstacle(node: ir.Node) -> str:
    """Reason why a Gemm is not a plain product and sum; empty when it is."""
    scales = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if any(scale != 1.0 for scale in scales):
        return "it scales the product or the bias"
    if node.attributes.get_int("transA", 0) or node.attributes.get_int("transB", 0):
        return "it transposes a matrix"
    return ""
