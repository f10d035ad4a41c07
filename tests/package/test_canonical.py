"""The canonical form forgets names and order, and nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hvlc.errors import UserError
from hvlc.package.canonical import CanonicalGraph, canonical_graph, match, paired_constants

UNARY, BINARY = ("Neg", "Exp", "Tanh", "Sigmoid"), ("Add", "Mul", "Sub", "Max")


@dataclass(frozen=True)
class Step:
    """A node of a random graph: what it does to which of the values so far."""

    op: str
    reads: tuple[int, ...]
    inside: bool  # an If whose branches do it


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    for count in range(3, draw(st.integers(4, 12))):  # values 0 to 2: the input and two weights
        one = st.integers(0, count - 1)
        op = draw(st.sampled_from(UNARY + BINARY))
        reads = (draw(one),) if op in UNARY else (draw(one), draw(one))
        steps.append(Step(op, reads, draw(st.integers(0, 4)) == 0))
    return steps


def branch(step: Step, values: list[str], name: str, other: str) -> onnx.GraphProto:
    inner = helper.make_node(step.op, [values[i] for i in step.reads], [other], name=name)
    return helper.make_graph([inner], other, [], [helper.make_tensor_value_info(other, TensorProto.FLOAT, [4])])


def built(steps: list[Step], names: list[str], order: list[int] | None = None) -> onnx.ModelProto:
    """The program under other names, its nodes in another order that can run."""
    values = ["x", f"{names[0]}.a", f"{names[0]}.b", *(f"{n}:0" for n in names[1 : len(steps) + 1])]
    nodes = []
    for k, step in enumerate(steps):
        out = values[3 + k]
        if step.inside:
            branches = {
                key: branch(step, values, f"{names[1 + k]}.{key}.node", f"{names[1 + k]}.{key}.out")
                for key in ("then_branch", "else_branch")
            }
            nodes.append(helper.make_node("If", ["flag"], [out], name=names[1 + k], **branches))
        else:
            nodes.append(helper.make_node(step.op, [values[i] for i in step.reads], [out], name=names[1 + k]))
    nodes = [nodes[i] for i in order or range(len(nodes))]
    weights = [numpy_helper.from_array(np.full(4, k, np.float32), values[1 + k]) for k in range(2)]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    nodes.append(helper.make_node("Identity", [values[-1]], ["y"], name=f"{names[0]}.end"))
    graph = helper.make_graph(
        nodes, names[0], inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def read(place: Path, model: onnx.ModelProto) -> CanonicalGraph:
    path = place / "g.onnx"
    onnx.save(model, path)
    return canonical_graph(path, {"g.onnx": path.stat().st_size})


def orders(steps: list[Step], draw: Any) -> list[int]:
    """A random order in which the steps can run."""
    left, done = set(range(len(steps))), {0, 1, 2}
    order: list[int] = []
    while left:
        ready = sorted(k for k in left if set(steps[k].reads) <= done)
        order.append(draw(st.sampled_from(ready)))
        left.remove(order[-1])
        done.add(3 + order[-1])
    return order


NAMES = [f"n{i}" for i in range(16)]


@given(steps=programs(), data=st.data())
def test_names_and_order_do_not_matter(place: Path, steps: list[Step], data: st.DataObject) -> None:
    names = data.draw(st.permutations([f"other{i}" for i in range(16)]))
    one = read(place, built(steps, NAMES))
    other = read(place, built(steps, names, orders(steps, data.draw)))
    assert one.digest == other.digest
    matching = match(one, other)
    assert not matching.changed
    assert not matching.only_first
    assert not matching.only_second
    assert len(matching.same) == len(one.nodes)
    if any({1, 2} & set(step.reads) for step in steps):
        assert paired_constants(one, other, matching)


@given(steps=programs(), data=st.data())
def test_another_operator_is_found_where_it_is(place: Path, steps: list[Step], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(steps) - 1))
    ops = UNARY if steps[at].op in UNARY else BINARY
    op = data.draw(st.sampled_from([op for op in ops if op != steps[at].op]))
    changed = [*steps[:at], Step(op, steps[at].reads, steps[at].inside), *steps[at + 1 :]]
    one, other = read(place, built(steps, NAMES)), read(place, built(changed, NAMES))
    assert one.digest != other.digest
    matching = match(one, other)
    assert {(one.nodes[i].op, other.nodes[j].op) for i, j in matching.changed} == {(steps[at].op, op)}
    assert {one.nodes[i].place.split("/")[0] for i, _ in matching.changed} == {NAMES[1 + at]}
    assert not matching.only_first
    assert not matching.only_second


def line(*nodes: tuple[str, dict[str, Any]], constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """Operators one after another on "x"; constants are further inputs of the nodes that their names begin with."""
    made, value = [], "x"
    for k, (op, attributes) in enumerate(nodes):
        more = [name for name in constants or {} if name.startswith(f"{op}.")]
        made.append(helper.make_node(op, [value, *more], [f"v{k}"], name=f"{op}_{k}", **attributes))
        value = f"v{k}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(made, "line", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def test_an_attribute_is_structure(place: Path) -> None:
    one, other = (read(place, line(("Neg", {}), ("Softmax", {"axis": axis}), ("Exp", {}))) for axis in (0, 1))
    matching = match(one, other)
    assert [(one.nodes[i].attributes, other.nodes[j].attributes) for i, j in matching.changed] == [
        ({"axis": "0"}, {"axis": "1"})
    ]
    assert len(matching.same) == 2


def test_a_shape_is_structure_and_a_weight_is_not(place: Path) -> None:
    def made(shape: list[int], weight: float) -> CanonicalGraph:
        constants = {"Reshape.to": np.array(shape), "Mul.by": np.array([weight], np.float32)}
        return read(place, line(("Reshape", {}), ("Mul", {}), constants=constants))

    assert made([3, 2], 1.0).digest == made([3, 2], 2.0).digest
    assert made([3, 2], 1.0).digest != made([6, 1], 1.0).digest


def test_an_added_node_is_the_only_one_without_a_counterpart(place: Path) -> None:
    one = read(place, line(("Neg", {}), ("Exp", {}), ("Tanh", {})))
    other = read(place, line(("Neg", {}), ("Exp", {}), ("Abs", {}), ("Tanh", {})))
    matching = match(one, other)
    assert [other.nodes[j].op for j in matching.only_second] == ["Abs"]
    assert not matching.only_first
    assert not matching.changed


def test_a_node_used_twice_is_not_two_nodes(place: Path) -> None:
    steps = [Step("Neg", (0,), False), Step("Add", (3, 3), False)]
    copied = [Step("Neg", (0,), False), Step("Neg", (0,), False), Step("Add", (3, 4), False)]
    assert read(place, built(steps, NAMES)).digest != read(place, built(copied, NAMES)).digest


def test_order_of_inputs_matters(place: Path) -> None:
    one, other = ([Step("Neg", (0,), False), Step("Sub", reads, False)] for reads in ((0, 3), (3, 0)))
    assert read(place, built(one, NAMES)).digest != read(place, built(other, NAMES)).digest


def test_a_value_from_nowhere_is_an_error(place: Path) -> None:
    model = line(("Neg", {}))
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(UserError, match=r"package\.graph"):
        read(place, model)
