"""Pieces that a graph is cut into, as onnxruntime cuts it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.lint.graphs import Node
from hvlc.lint.partitions import count_partitions
from hvlc.targets import Operation


def graph(*edges: str) -> list[Node]:
    """Nodes "reads>writes", names of one letter."""
    parts = [edge.split(">") for edge in edges]
    return [Node(str(i), Operation("X"), False, 0, tuple(a), tuple(b)) for i, (a, b) in enumerate(parts)]


CHAIN = graph("x>a", "a>b", "b>c", "c>d", "d>e")


@pytest.mark.parametrize(
    ("nodes", "taken", "pieces"),
    [
        (CHAIN, "11111", 1),
        (CHAIN, "00000", 0),
        (CHAIN, "11011", 2),
        (CHAIN, "10101", 3),
        (CHAIN, "01110", 1),
        # A refused branch beside a taken one cuts nothing: the join waits for it, and what is before is one piece.
        (graph("x>a", "a>b", "a>c", "bc>d"), "1101", 2),
        # What is refused and needs nothing of a piece runs before it.
        (graph("x>a", "x>b", "ab>c"), "101", 1),
        # Two taken chains without a refused node between them are one piece.
        (graph("x>a", "y>b", "a>c", "b>d"), "1111", 1),
        (graph("x>a", "y>b", "a>c", "b>d"), "1011", 1),
        (graph("x>a", "y>b", "a>c", "b>d", "c>e"), "11011", 2),
        ([], "", 0),
    ],
)
def test_pieces(nodes: list[Node], taken: str, pieces: int) -> None:
    assert count_partitions(nodes, [one == "1" for one in taken]) == pieces


@given(st.lists(st.booleans(), max_size=30))
def test_a_chain_has_as_many_pieces_as_runs(taken: list[bool]) -> None:
    nodes = [Node(str(i), Operation("X"), False, 0, (f"v{i}",), (f"v{i + 1}",)) for i in range(len(taken))]
    runs = sum(one and (i == 0 or not taken[i - 1]) for i, one in enumerate(taken))
    assert count_partitions(nodes, taken) == runs


@given(st.data())
def test_pieces_are_between_none_and_one_for_each_taken_node(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 12))
    nodes = [
        Node(
            str(i),
            Operation("X"),
            False,
            0,
            tuple(f"v{j}" for j in data.draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else ("x",),
            (f"v{i}",),
        )
        for i in range(size)
    ]
    taken = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    pieces = count_partitions(nodes, taken)
    assert bool(pieces) is any(taken)
    assert pieces <= sum(taken)
    assert count_partitions(nodes, [True] * size) == min(size, 1)


def test_the_files_own_order_of_independent_nodes_does_not_matter() -> None:
    assert count_partitions(graph("x>a", "x>b", "a>c", "b>d"), [True, False, True, True]) == 1
    assert count_partitions(graph("x>b", "x>a", "a>c", "b>d"), [False, True, True, True]) == 1
