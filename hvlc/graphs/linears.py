"""Find linear layers (MatMul by a constant matrix) and group them by their input.

Linears that share an input are calibrated, scaled and rotated together.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.weights.checkpoint import StoredTensor
from hvlc.weights.lazy import Expression, expression_of

_MATRIX = 2  # rank
_AXES = 3  # input of a Slice


@dataclass(frozen=True)
class LinearGroup:
    """Linears that share one input.

    Attributes:
        input: float `[..., in]`.
        nodes: MatMul by an initializer `[in, out]` each, in graph order.
    """

    input: ir.Value
    nodes: tuple[ir.Node, ...]


def is_linear(node: ir.Node) -> bool:
    """Whether a node is a MatMul of a computed value by a constant float32 matrix."""
    if node.op_type != "MatMul" or node.domain:
        return False
    x, weight = node.inputs
    if x is None or x.const_value is not None or weight is None or weight.const_value is None:
        return False
    return len(weight.const_value.shape) == _MATRIX and weight.const_value.dtype == ir.DataType.FLOAT


def linear_groups(graph: ir.Graph) -> tuple[LinearGroup, ...]:
    """Every linear of a graph once, grouped by its input, in the order in which the inputs are first read.

    Subgraphs are not looked into. Nodes stand in topological order in every graph of a bundle, so a group comes after
    all that its input is computed from.
    """
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if is_linear(node) and node.inputs[0] is not None:
            found.setdefault(node.inputs[0], []).append(node)
    return tuple(LinearGroup(value, tuple(nodes)) for value, nodes in found.items())


def up_to_last(groups: Sequence[LinearGroup], needed: Callable[[LinearGroup], bool]) -> tuple[LinearGroup, ...]:
    """Groups up to the last that is needed: a walk that has come to it has seen all that is."""
    places = [place for place, group in enumerate(groups) if needed(group)]
    return tuple(groups[: places[-1] + 1]) if places else ()


@dataclass(frozen=True)
class Projection:
    """A linear and the constant that is added to its product.

    Attributes:
        node: the MatMul.
        bias: constant float `[out]`, if any.
    """

    node: ir.Node
    bias: ir.Value | None

    @property
    def weight(self) -> ir.Value:
        """Constant float `[in, out]`."""
        return operand(self.node, 1)


def projection_behind(value: ir.Value) -> Projection | None:
    """The projection that makes a value, if nothing else reads the product that a bias is added to."""
    node, bias = value.producer(), None
    if node is not None and node.op_type == "Add" and not node.domain:
        constants = [v for v in node.inputs if v is not None and v.const_value is not None]
        products = [v for v in node.inputs if v is not None and v.const_value is None]
        if len(constants) != 1 or len(products) != 1 or not read_by(products[0], [node]):
            return None
        node, bias = products[0].producer(), constants[0]
    return Projection(node, bias) if node is not None and is_linear(node) else None


def tables(graph: ir.Graph) -> tuple[ir.Value, ...]:
    """Constant matrices `[rows, width]` whose rows are looked up."""
    gathers = [node for node in graph if node.op_type == "Gather" and not node.domain]
    found = [operand(node, 0) for node in gathers if node.attributes.get_int("axis", 0) == 0]
    return tuple(v for v in found if v.const_value is not None and len(v.const_value.shape) == _MATRIX)


def stored_tables(graphs: Iterable[ir.Graph]) -> frozenset[StoredTensor]:
    """Tensors that the checkpoint stores for the tables of some graphs."""
    return frozenset(t for graph in graphs for table in tables(graph) for t in values_of(table).stored())


def is_tied(group: LinearGroup, stored: frozenset[StoredTensor]) -> bool:
    """Whether a linear of the group has the values of one of these tables."""
    return any(t in stored for node in group.nodes for t in values_of(operand(node, 1)).stored())


def cuts_positions(node: ir.Node) -> bool:
    """Whether a node takes a part of float `[batch, sequence, width]` along its first two axes."""
    if node.op_type != "Slice" or node.domain or len(node.inputs) <= _AXES:
        return False
    axes = node.inputs[_AXES]
    return axes is not None and axes.const_value is not None and set(axes.const_value.numpy().tolist()) <= {0, 1}


def values_of(constant: ir.Value) -> Expression:
    """The values of an initializer.

    Raises:
        ValueError: it is none.
    """
    if constant.const_value is None:
        raise ValueError(f"{constant.name} has no value")
    return expression_of(constant.const_value)


def operand(node: ir.Node, position: int) -> ir.Value:
    """An input that the operator always has.

    Raises:
        ValueError: it is left out.
    """
    value = node.inputs[position]
    if value is None:
        raise ValueError(f"{node.name} has no input {position}")
    return value


def read_by(value: ir.Value, readers: Iterable[ir.Node]) -> bool:
    """Whether only these nodes read a value, and it is not an output of the graph."""
    return not value.is_graph_output() and set(value.consumers()) <= set(readers)


def inverse_factors(factors: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Factors for the channels of a producer where the channels that are made of them are multiplied by `factors`.

    Args:
        factors: float32 `[in]`, above 0; equal where channels are.
        channels: int64 `[in]`, the producer's channel that each channel is made of.

    Returns:
        float32 `[channels of the producer]`; 1 for those that nothing is made of.
    """
    made = np.ones(int(channels.max()) + 1, np.float32)
    made[channels] = factors
    inverse: np.ndarray = (1 / made.astype(np.float64)).astype(np.float32)
    return inverse
