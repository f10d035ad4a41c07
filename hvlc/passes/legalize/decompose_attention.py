"""Decompose the Attention operator of opset 23 for targets that do not support it.

`softmax(Q K^T * scale) V` by Reshape, Transpose, MatMul and Softmax, which providers have taken for years. The query is
scaled before the product, not the scores after it: the same numbers but for rounding, and the scores stay within
float16, in which NPUs compute. onnxruntime's CoreML provider has no Attention, OpenVINO's leaves it to the CPU or fails
(hvlc/targets/*.toml say how that is known).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import make_node, register, replace_node
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator
from hvlc.passes.traits import Trait

_NEEDED = ("Reshape", "Transpose", "Mul", "MatMul", "Softmax")
_QKV = 3  # inputs
_RANK = 3  # of query, key and value: heads in the last dimension
_HEADS_FIRST, _KEYS_LAST = [0, 2, 1, 3], [0, 2, 3, 1]


@dataclass(frozen=True)
class DecomposeAttention(ComponentPass):
    """Decompose every unmasked self- or cross-attention that the target refuses.

    Attributes:
        takes: operators that are taken where encoders run: Attention, and what that consists of.
    """

    takes: TakesOperator
    roles = frozenset({Role.VISION_ENCODER})
    requires = frozenset({Trait.SEPARATE_ENCODERS})

    def transform(self, component: Component) -> Outcome:
        """Write out what can be."""
        changed, skipped = 0, list[Skip]()
        for node in [n for n in component.graph if n.op_type == "Attention" and not n.domain]:
            obstacle = _obstacle(node, self.takes)
            if obstacle:
                skipped.append(Skip(str(node.name), obstacle))
            else:
                _write_out(component.graph, node)
                changed += 1
        return Outcome(changed, tuple(skipped))


def _obstacle(node: ir.Node, takes: TakesOperator) -> str:
    """Reason why an attention stays as it is; empty when nothing speaks against writing it out."""
    if takes("Attention"):
        return "the target takes Attention"
    refused = next((verdict for op in _NEEDED if not (verdict := takes(op))), None)
    if refused is not None:
        return refused.reason
    if any(value is not None for value in node.inputs[_QKV:]):
        return "has a mask or a cache"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its cache or its scores are read"
    heads = node.attributes.get_int("q_num_heads", 0)
    if not heads or heads != node.attributes.get_int("kv_num_heads", 0):
        return "keys have other heads than queries, or the number is not given"
    given = [name for name in ("is_causal", "softcap", "softmax_precision") if name in node.attributes]
    if any(node.attributes[name].value for name in given):
        return f"has {', '.join(given)}"
    if "scale" not in node.attributes:
        return "its scale is not given"
    query = node.inputs[0]
    if query is None or (query.shape is not None and len(query.shape) != _RANK):
        return "its heads are a dimension of their own"
    return ""


def _write_out(graph: ir.Graph, node: ir.Node) -> None:
    """Put the operators in the attention's place; the last one has its name and its output."""
    nodes: list[ir.Node] = []

    def op(op_type: str, suffix: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        name = f"{node.name}.{suffix}" if suffix else str(node.name)
        nodes.append(make_node(op_type, inputs, name, **attributes))
        return nodes[-1].outputs[0]

    heads = node.attributes.get_int("q_num_heads", 1)
    split = register(graph, ir.tensor(np.array([0, 0, heads, -1], np.int64), name=f"split_into_{heads}_heads"))
    joined = register(graph, ir.tensor(np.array([0, 0, -1], np.int64), name="joined_heads"))
    scale = np.array(node.attributes.get_float("scale", 1.0), np.float32)
    factor = register(graph, ir.tensor(scale, name=f"{node.name}.scale"))
    query, key, value = node.inputs[:_QKV]
    query = op("Mul", "scaled", query, factor)
    query, key, value = (op("Reshape", f"{n}_heads", v, split) for n, v in zip("qkv", (query, key, value), strict=True))
    query = op("Transpose", "q", query, perm=_HEADS_FIRST)
    key = op("Transpose", "k", key, perm=_KEYS_LAST)
    value = op("Transpose", "v", value, perm=_HEADS_FIRST)
    weights = op("Softmax", "softmax", op("MatMul", "scores", query, key), axis=-1)
    attended = op("Transpose", "rows", op("MatMul", "attended", weights, value), perm=_HEADS_FIRST)
    op("Reshape", "", attended, joined)
    replace_node(node, nodes)
