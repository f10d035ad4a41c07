"""Edit a graph: replace nodes and values, add and remove initializers.

Where onnx_ir has an operation, passes take it from there: `replace_all_uses_with`, `replace_nodes_and_values` and
`extract` of `onnx_ir.convenience`, `RemoveUnusedNodesPass`. These functions add what is missing there: lazy weights,
initializers that are unique by name, and optional outputs.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.weights.lazy import Expression, LazyTensor


def replace_node(old: ir.Node, new: ir.Node | Sequence[ir.Node], outputs: Sequence[ir.Value] | None = None) -> None:
    """Put nodes where one stands; its outputs' names, types, shapes and readers go to values of theirs.

    Args:
        old: node of a graph; it is removed.
        new: that take its place, in order.
        outputs: one for each of the first outputs of `old`; None: the first one of the last node.

    Raises:
        HvlcError: `old` belongs to no graph (a bug).
    """
    nodes = [new] if isinstance(new, ir.Node) else list(new)
    made = [nodes[-1].outputs[0]] if outputs is None else list(outputs)
    ir.convenience.replace_nodes_and_values(graph_of(old), old, [old], nodes, old.outputs[: len(made)], made)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that holds a node.

    Raises:
        HvlcError: none does (a bug).
    """
    if not isinstance(node.graph, ir.Graph):
        cause = f"internal error: node {node.name} belongs to no graph"
        raise HvlcError("pass.detached", cause, "please report it")
    return node.graph


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Give a value the readers of another, and its name, type and shape as far as it has them.

    onnx_ir's `replace_nodes_and_values` would also hand on the empty name of an optional output that nothing reads.
    """
    new.name = old.name or new.name
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def bypass(node: ir.Node, value: ir.Value) -> None:
    """Let what reads the first output of a node read a value that equals it, and remove the node.

    The graph's own outputs stay as they are: a node that makes one is not bypassed.
    """
    graph = graph_of(node)
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    graph.remove(node, safe=True)


def redirect(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    """Let some readers read a value instead, each at its input of a number.

    onnx_ir's `replace_all_uses_with` takes every reader, also the node that makes the new value of the old one.
    """
    for node, index in uses:
        node.replace_input_with(index, value)


def make_node(
    op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int | float | Sequence[int]
) -> ir.Node:
    """A node with one output, which is named after it."""
    node = ir.node(op_type, list(inputs), attributes or None, name=name)
    node.outputs[0].name = f"{name}:0"
    return node


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer of this tensor, named like it; the one that the graph has under that name, when it has one."""
    if tensor.name in graph.initializers:
        return graph.initializers[str(tensor.name)]
    dims = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=dims)
    graph.register_initializer(value)
    return value


def register_dims(graph: ir.Graph, dims: tuple[int, ...]) -> ir.Value:
    """The constant int64 `[rank]` that holds a shape, once in a graph."""
    return register(graph, ir.tensor(np.array(dims, np.int64), name=f"{'x'.join(map(str, dims))}_dims"))


def replace_weight(value: ir.Value, expression: Expression) -> None:
    """Give an initializer other values of the same shape and dtype, under the same name."""
    value.const_value = LazyTensor(str(value.name), expression)


def drop_unread(graph: ir.Graph, *values: ir.Value | None) -> None:
    """Remove those initializers among some values that nothing reads any more.

    onnx_ir's `RemoveUnusedNodesPass` would look through the whole model, for each node that a pass replaces.
    """
    for value in values:
        if value is not None and not value.uses() and value.name in graph.initializers:
            del graph.initializers[str(value.name)]


def dequantizers(graph: ir.Graph, readers: Collection[str]) -> Iterator[ir.Node]:
    """The DequantizeLinear nodes whose outputs named nodes read, each once."""
    made = {value.producer(): None for node in graph if node.name in readers for value in node.inputs if value}
    for node in made:
        if node is not None and node.op_type == "DequantizeLinear" and not node.domain:
            yield node
