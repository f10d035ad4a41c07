"""Implement float zero points as a second, thin product.

Over a block `sum(scale * (level - zero) * x)` is `scale * sum((level - middle) * x)` and, for the middle level alone,
`(middle - zero) * scale * sum(x)`: a product without zero points, and one by the sums of each block's inputs, which has
a `block_size`th of the weights. com.microsoft.MatMulNBits takes float zero points too, but onnxruntime 1.31's CPU
provider then dequantizes the whole matrix at every call, and at 8 bits it refuses to run.
"""

import numpy as np
import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.editing import make_node, register

_RANK = 3  # of a decoder's activations: batch, sequence, features


def add_middles(graph: ir.Graph, product: ir.Node, middles: ir.Value, block_size: int) -> None:
    """Add the share of the middle levels to a product, for all that read it.

    Args:
        graph: of the product.
        product: MatMulNBits of float `[..., in]` without zero points; where the graph does not say how many dimensions
            its input has, it is `[batch, sequence, in]`.
        middles: value of each block's middle level, float32 `[out, blocks]`.
        block_size: inputs of a block; `in` is a multiple of it.
    """
    x, result = product.inputs[0], product.outputs[0]
    if x is None:
        raise HvlcError("plan.incomplete", f"{product.name} reads nothing", "report it")
    total = ir.node("Add", [None, None], name=f"{product.name}.total")
    output = total.outputs[0]
    output.type, output.shape = result.type, result.shape
    ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)
    output.name, result.name = result.name, f"{product.name}.levels:0"
    sums = _block_sums(graph, product, x, block_size)
    columns = make_node("Transpose", [middles], f"{product.name}.middles", perm=[1, 0])
    share = make_node("MatMul", [sums, columns.outputs[0]], f"{product.name}.zero_points")
    total.replace_input_with(0, result)
    total.replace_input_with(1, share.outputs[0])
    graph.insert_after(product, [columns, share, total])


def _block_sums(graph: ir.Graph, before: ir.Node, x: ir.Value, block_size: int) -> ir.Value:
    """float `[..., in]` to `[..., blocks]`, once for all products that read it."""
    name = f"{x.name}.sums_of_{block_size}"
    for reader in x.consumers():
        if reader.name == f"{name}.blocks":
            return reader.outputs[0].consumers()[0].outputs[0]
    before_last = (_RANK if x.shape is None else len(x.shape)) - 1
    split = np.array([0] * before_last + [-1, block_size], np.int64)
    dims = register(graph, ir.tensor(split, name=f"{'x'.join(map(str, split))}_blocks"))
    axis = register(graph, ir.tensor(np.array([-1], np.int64), name="last_axis"))
    blocks = make_node("Reshape", [x, dims], f"{name}.blocks")
    sums = make_node("ReduceSum", [blocks.outputs[0], axis], name, keepdims=0)
    graph.insert_before(before, [blocks, sums])
    return sums.outputs[0]
