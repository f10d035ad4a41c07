"""Surgery on small graphs: order, names and readers afterwards."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.errors import HvlcError
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.editing import (
    bypass,
    drop_unread,
    make_node,
    redirect,
    register,
    register_dims,
    replace_node,
    take_over,
)
from tests.helpers.checks import check_model


def chain() -> tuple[GraphBuilder, ir.Graph]:
    """x -> relu -> neg -> y, and a reader of relu beside it."""
    b = GraphBuilder("graph")
    x = b.input("x", ir.DataType.FLOAT, [2])
    relu = b.op("Relu", x, name="relu")
    neg = b.op("Neg", relu, name="neg")
    b.output(neg, "y", ir.DataType.FLOAT, [2])
    b.output(b.op("Abs", relu, name="abs"), "z", ir.DataType.FLOAT, [2])
    return b, b.graph


def names(graph: ir.Graph) -> list[str]:
    return [str(node.name) for node in graph]


def node_of(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if node.name == name)


def test_nodes_take_the_place_the_name_and_the_readers_of_one() -> None:
    b, graph = chain()
    first = make_node("Neg", [graph.inputs[0]], "first")
    replace_node(node_of(graph, "relu"), [first, make_node("Exp", first.outputs, "second")])
    assert names(graph) == ["first", "second", "neg", "abs"]
    assert node_of(graph, "second").outputs[0].name == "relu:0"
    assert {n.name for n in node_of(graph, "second").outputs[0].consumers()} == {"neg", "abs"}
    check_model(b.model())


def test_an_output_of_the_graph_is_replaced_with_its_type_and_shape() -> None:
    b, graph = chain()
    replace_node(node_of(graph, "neg"), make_node("Exp", node_of(graph, "relu").outputs, "exp"))
    output = graph.outputs[0]
    assert (output.name, output.dtype, output.shape) == ("y", ir.DataType.FLOAT, ir.Shape([2]))
    assert output.producer() is node_of(graph, "exp")
    check_model(b.model())


def test_a_node_outside_of_any_graph_is_a_bug() -> None:
    lost = make_node("Relu", [None], "lost")
    with pytest.raises(HvlcError, match=r"^\[pass\.detached\] internal error: node lost"):
        replace_node(lost, make_node("Exp", [None], "exp"))
    with pytest.raises(HvlcError, match=r"pass\.detached"):
        bypass(lost, lost.outputs[0])


def test_a_value_takes_over_what_is_known_of_another() -> None:
    _, graph = chain()
    old, new = node_of(graph, "neg").outputs[0], make_node("Exp", [graph.inputs[0]], "exp").outputs[0]
    take_over(old, new)
    assert (new.name, new.dtype, graph.outputs[0]) == ("y", ir.DataType.FLOAT, new)
    unnamed, other = ir.Value(name=""), ir.Value(name="kept", type=ir.TensorType(ir.DataType.INT8))
    take_over(unnamed, other)
    assert (other.name, other.dtype) == ("kept", ir.DataType.INT8)


def test_readers_go_past_a_node() -> None:
    b, graph = chain()
    bypass(node_of(graph, "relu"), graph.inputs[0])
    assert names(graph) == ["neg", "abs"]
    assert all(node.inputs[0] is graph.inputs[0] for node in graph)
    check_model(b.model())


def test_some_readers_read_another_value() -> None:
    _, graph = chain()
    relu = node_of(graph, "relu")
    uses = [use for use in relu.outputs[0].uses() if use.node.name == "neg"]
    doubled = make_node("Add", [relu.outputs[0], relu.outputs[0]], "doubled")
    graph.insert_after(relu, doubled)
    redirect(uses, doubled.outputs[0])
    assert node_of(graph, "neg").inputs[0] is doubled.outputs[0]
    assert node_of(graph, "abs").inputs[0] is relu.outputs[0]
    assert doubled.inputs[0] is relu.outputs[0]


def test_an_initializer_is_there_once_under_its_name() -> None:
    _, graph = chain()
    tensor = ir.tensor(np.ones(3, np.float32), name="ones")
    first = register(graph, tensor)
    assert register(graph, ir.tensor(np.zeros(3, np.float32), name="ones")) is first
    assert (first.dtype, first.shape) == (ir.DataType.FLOAT, ir.Shape([3]))
    assert register_dims(graph, (2, 3)) is register_dims(graph, (2, 3))
    assert graph.initializers["2x3_dims"].const_value.numpy().tolist() == [2, 3]  # type: ignore[union-attr]


def test_only_what_nothing_reads_is_dropped() -> None:
    _, graph = chain()
    read, unread = (register(graph, ir.tensor(np.ones(1, np.float32), name=name)) for name in ("read", "unread"))
    graph.append(make_node("Identity", [read], "reader"))
    drop_unread(graph, read, unread, None, graph.inputs[0], unread)
    assert list(graph.initializers) == ["read"]


def test_a_node_has_attributes_and_a_named_output() -> None:
    node = make_node("Transpose", [None], "turned", perm=[1, 0])
    assert node.outputs[0].name == "turned:0"
    assert list(node.attributes["perm"].as_ints()) == [1, 0]
    assert not make_node("Relu", [None], "plain").attributes
