"""Replace attention without a mask by onnxruntime's MultiHeadAttention, whose CPU kernel is a flash attention.

The standard Attention holds a score for every pair of patches and head: 9.7 GB for an image of 2048 x 1536 pixels in
patches of 16. MultiHeadAttention goes through them block by block (arXiv 2205.14135; onnxruntime 1.31,
contrib_ops/cpu/bert/multihead_attention.cc): 6,144 patches in 16 heads take 0.25 GB, not 2.6 GB, and half the time.
"""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import replace_node
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator
from hvlc.passes.traits import Trait

_NAME = "MultiHeadAttention"
_QKV = 3  # inputs
_RANK = 3  # of query, key and value: heads in the last dimension
_KEPT = {"q_num_heads", "kv_num_heads", "scale"}


@dataclass(frozen=True)
class FuseFlashAttention(ComponentPass):
    """Replace every unmasked attention with as many heads of keys as of queries, where the target takes the operator.

    Attributes:
        takes: operators that are taken where encoders run.
    """

    takes: TakesOperator
    roles = frozenset({Role.VISION_ENCODER})
    requires = frozenset({Trait.SEPARATE_ENCODERS})

    def transform(self, component: Component) -> Outcome:
        """Replace what can be."""
        changed, skipped = 0, list[Skip]()
        for node in [n for n in component.graph if n.op_type == "Attention" and not n.domain]:
            obstacle = self._obstacle(node)
            if obstacle:
                skipped.append(Skip(str(node.name), obstacle))
                continue
            settings: dict[str, int | float] = {"num_heads": node.attributes.get_int("q_num_heads", 0)}
            if "scale" in node.attributes:
                settings["scale"] = node.attributes.get_float("scale", 0.0)
            new = ir.node(_NAME, node.inputs[:_QKV], settings, domain=MICROSOFT, name=str(node.name))
            replace_node(node, new)
            changed += 1
        return Outcome(changed, tuple(skipped))

    def _obstacle(self, node: ir.Node) -> str:
        """Reason why an attention stays as it is; empty when nothing speaks against replacing it."""
        verdict = self.takes(_NAME, MICROSOFT)
        if not verdict:
            return verdict.reason
        if any(value is not None for value in node.inputs[_QKV:]):
            return "has a mask or a cache"
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return "gives more than its result"
        others = sorted(set(node.attributes) - _KEPT)
        if others:
            return f"has {', '.join(others)}"
        heads = [node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads")]
        if heads[0] < 1 or heads[0] != heads[1]:
            return f"has {heads[0]} heads of queries and {heads[1]} of keys"
        return ""
