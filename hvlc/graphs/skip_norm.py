"""onnxruntime's residual norms: a norm and the addition before it as one node, and both again.

onnxruntime docs/ContribOperators.md: SkipSimplifiedLayerNormalization and SkipLayerNormalization.
"""

import onnx_ir as ir

from hvlc.graphs.editing import take_over

#: The plain norm of each fused one.
PLAIN = {"SkipSimplifiedLayerNormalization": "RMSNormalization", "SkipLayerNormalization": "LayerNormalization"}
#: The fused norm of each plain one.
FUSED = {plain: fused for fused, plain in PLAIN.items()}
#: Place of the output that is the sum, which the norm reads.
SUM_OUTPUT = 3
_NORM_INPUTS = {"RMSNormalization": 1, "LayerNormalization": 2}  # weight, and bias of the norm
_EPSILON = 1e-12  # default of both


def take_apart(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Put the additions and the norm in the place of a fused node; the norm keeps its name.

    Args:
        graph: that the node is in.
        node: nobody reads its mean and variance.

    Returns:
        The sum, which the norm reads.

    Raises:
        ValueError: the node reads nothing.
    """
    norm = PLAIN[node.op_type]
    last = 2 + _NORM_INPUTS[norm]  # behind weight and bias of the norm comes a bias of the sum
    total, name = node.outputs[0], str(node.name)
    terms = [node.inputs[1], *node.inputs[last : last + 1]]
    added = node.inputs[0]
    for place, term in enumerate(value for value in terms if value is not None):
        add = ir.node("Add", [added, term], name=f"{name}.add_{place}" if place else f"{name}.add")
        graph.insert_before(node, add)
        added = add.outputs[0]
        added.name, added.type, added.shape = f"{add.name}.sum", total.type, total.shape
    if added is None:
        raise ValueError(f"{name} reads nothing")
    attributes = {"axis": -1, "epsilon": node.attributes.get_float("epsilon", _EPSILON)}
    weights = [value for value in node.inputs[2:last] if value is not None]
    normed = ir.node(norm, [added, *weights], attributes, name=name)
    graph.insert_before(node, normed)
    take_over(node.outputs[0], normed.outputs[0])
    if len(node.outputs) > SUM_OUTPUT:
        take_over(node.outputs[SUM_OUTPUT], added)
    graph.remove(node, safe=True)
    return added
