"""A walk stops where a group's input is known, and goes on with the weights of that moment."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.calibration.group_walk import statistics_of, steps_of, walk_groups
from hvlc.calibration.segments import Segment, Walk, Weights, cut_segments
from hvlc.errors import UserError
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.linears import linear_groups
from hvlc.weights.lazy import Constant

FIRST, SECOND = np.eye(4, dtype=np.float32) * 2, np.ones((4, 4), np.float32)


@pytest.fixture
def graph() -> ir.Graph:
    """The input, times 2, times a matrix of ones, plus 1."""
    b = GraphBuilder("chain")
    value = b.input("x", ir.DataType.FLOAT, ["n", 4])
    for name, matrix in {"first": FIRST, "second": SECOND}.items():
        value = b.op("MatMul", value, b.initializer(f"{name}.weight", Constant(matrix)), name=name)
    b.output(b.op("Add", value, b.constant(np.ones(4, np.float32))), "y", ir.DataType.FLOAT, ["n", 4])
    return b.graph


def samples(*rows: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((n, 4), n, np.float32)} for n in rows]


def test_each_group_is_yielded_when_its_input_is_there(graph: ir.Graph) -> None:
    groups, (output,) = linear_groups(graph), graph.outputs
    walk = Walk(samples(1, 3), 1)
    found = []
    for group in walk_groups(walk, cut_segments(graph, [g.input for g in groups], [output]), groups):
        found.append([walk.value(group.input, sample)[0, 0] for sample in range(2)])
        with pytest.raises(KeyError):  # nothing that reads it has run
            walk.value(group.nodes[0].outputs[0], 0)
    assert found == [[1, 3], [2, 6]]
    assert [walk.value(output, sample)[0, 0] for sample in range(2)] == [9, 25]


def test_what_is_decided_at_a_stop_is_what_the_walk_goes_on_with(graph: ir.Graph) -> None:
    groups, (output,) = linear_groups(graph), graph.outputs
    chosen: dict[str, np.ndarray] = {}

    def weights(segment: Segment) -> Weights:
        return lambda weight: chosen.get(str(weight.name))

    walk = Walk(samples(1), 1)
    path = cut_segments(graph, [g.input for g in groups], [output])
    for group in walk_groups(walk, path, groups, weights):
        chosen[f"{group.nodes[0].name}.weight"] = np.eye(4, dtype=np.float32) * 10
    assert walk.value(output, 0).tolist() == [[101] * 4]


def test_a_shorter_path_ends_at_its_last_group(graph: ir.Graph) -> None:
    groups = linear_groups(graph)
    walk = Walk(samples(1), 1)
    path = cut_segments(graph, [g.input for g in groups], graph.outputs)
    assert list(walk_groups(walk, path[:-1], groups)) == list(groups)
    with pytest.raises(KeyError):
        walk.value(graph.outputs[0], 0)


def test_every_sample_of_every_segment_is_a_step(graph: ir.Graph) -> None:
    groups = linear_groups(graph)
    told: list[tuple[str, int, int]] = []
    walk = Walk(samples(1, 2), 1)
    path = cut_segments(graph, [g.input for g in groups], graph.outputs)
    step = steps_of(lambda *what: told.append(what), "chain", path, walk)
    assert len(list(walk_groups(walk, path, groups, step=step))) == 2
    assert told == [("chain", done, 6) for done in range(1, 7)]


def test_statistics_are_those_of_all_samples_and_of_finite_values(graph: ir.Graph) -> None:
    group = linear_groups(graph)[0]
    statistics = statistics_of(group, Walk(samples(1, 3), 1))
    rows = np.concatenate([sample["x"] for sample in samples(1, 3)])
    assert statistics.count == 4
    np.testing.assert_allclose(statistics.gram, rows.T @ rows / 4)
    with pytest.raises(UserError, match="first is given is infinite") as error:
        statistics_of(group, Walk([{"x": np.full((1, 4), np.inf, np.float32)}], 1))
    assert error.value.code == "calibration.overflow"
