"""Linears are found, grouped by what they read, and nothing else is."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.builder import IR_VERSION
from hvlc.graphs.linears import (
    cuts_positions,
    inverse_factors,
    linear_groups,
    projection_behind,
    read_by,
    tables,
    up_to_last,
)

GRAPH = """
graph (float[b, s, 2] x, int64[b, s] ids) => (float[b, s, 2] y, float[b, s, 2] kept)
   <float[2, 2] a = {1, 2, 3, 4}, float[2, 2] b = {1, 2, 3, 4}, float[2] bias = {1, 2}, float[2] vector = {1, 2},
    double[2, 2] wide = {1, 2, 3, 4}, float[2, 2] table = {1, 2, 3, 4}, int64[1] one = {1}, int64[1] two = {2}> {
      [first] p = MatMul (x, a)
      [normed] n = RMSNormalization <axis = -1> (p, vector)
      [second] q = MatMul (n, b)
      [third] r = MatMul (x, b)
      [biased] s = Add (bias, q)
      [of_a_vector] v = MatMul (x, vector)
      [computed] c = MatMul (x, r)
      [reversed] d = MatMul (a, x)
      [doubled] w = Cast <to = 11> (x)
      [wide_product] e = MatMul (w, wide)
      [look_up] t = Gather <axis = 0> (table, ids)
      [pick] f = Gather <axis = 1> (a, ids)
      [positions] g = Slice (t, one, two, one)
      [channels] h = Slice (t, one, two, two)
      y = Add (s, t)
      kept = Identity (r)
}
"""


@pytest.fixture
def graph() -> ir.Graph:
    return ir.from_onnx_text(f'<ir_version: {IR_VERSION}, opset_import: ["" : 23]>{GRAPH.strip()}').graph


def value(graph: ir.Graph, name: str) -> ir.Value:
    return next(v for node in graph for v in node.outputs if v.name == name)


def node(graph: ir.Graph, name: str) -> ir.Node:
    return next(n for n in graph if n.name == name)


def test_linears_are_grouped_by_input_in_graph_order(graph: ir.Graph) -> None:
    found = [(group.input.name, [n.name for n in group.nodes]) for group in linear_groups(graph)]
    assert found == [("x", ["first", "third"]), ("n", ["second"])]


def test_groups_behind_the_last_that_is_needed_are_left_out(graph: ir.Graph) -> None:
    groups = linear_groups(graph)
    for name, count in {"first": 1, "third": 1, "second": 2, "none": 0}.items():
        found = up_to_last(groups, lambda group, name=name: any(n.name == name for n in group.nodes))
        assert found == groups[:count]


def test_a_projection_is_found_through_its_bias(graph: ir.Graph) -> None:
    biased, plain = projection_behind(value(graph, "s")), projection_behind(value(graph, "r"))
    assert biased is not None
    assert plain is not None
    assert (biased.node.name, biased.weight.name, biased.bias and biased.bias.name) == ("second", "b", "bias")
    assert (plain.node.name, plain.bias) == ("third", None)
    assert [projection_behind(value(graph, name)) for name in ("y", "n", "c", "d", "t")] == [None] * 5


def test_a_product_with_other_readers_is_no_projection_with_bias(graph: ir.Graph) -> None:
    graph.append(ir.node("Identity", [value(graph, "q")], name="spy"))
    assert projection_behind(value(graph, "s")) is None


def test_only_rows_are_looked_up_in_tables(graph: ir.Graph) -> None:
    assert [table.name for table in tables(graph)] == ["table"]


def test_readers_are_all_of_them(graph: ir.Graph) -> None:
    x = graph.inputs[0]
    readers = [n for n in graph if x in n.inputs]
    assert read_by(x, readers)
    assert not read_by(x, readers[1:])
    assert not read_by(value(graph, "y"), list(graph))


def test_only_the_first_two_axes_are_positions(graph: ir.Graph) -> None:
    assert [cuts_positions(node(graph, name)) for name in ("positions", "channels", "look_up")] == [True, False, False]


def test_inverse_factors_are_one_for_each_channel_of_the_producer() -> None:
    factors = np.array([2, 8, 2, 8, 3], np.float32)
    found = inverse_factors(factors, np.array([4, 1, 4, 1, 0]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1 / 3, 1 / 8, 1, 1, 1 / 2], np.float32))
