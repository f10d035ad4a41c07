"""Positions of a chunk's tokens, looked up in a table of the whole cache."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.graphs.builder import LAST_INDEX, POSITIONS, GraphBuilder
from hvlc.graphs.bundle import Component, Role
from hvlc.manifest.manifest import POSITION_TABLE
from hvlc.passes.static.look_up_positions import LookUpPositions
from hvlc.runtime.positions import grid_positions, position_table
from tests.helpers.sessions import run

CONTEXT, TOKENS, IMAGE = 24, 4, 5


def decoder(tokens: int) -> Component:
    """A stand-in of a part that reads positions twice, and lengths."""
    b = GraphBuilder("part")
    positions = b.input(POSITIONS, ir.DataType.INT64, [3, 1, tokens])
    last = b.input(LAST_INDEX, ir.DataType.INT32, [1, 1])
    table = b.constant(np.arange(CONTEXT, dtype=np.float32) * 10)
    b.output(b.op("Gather", table, positions, axis=0), "rows", ir.DataType.FLOAT, [3, 1, tokens])
    b.output(b.op("Identity", last), "last", ir.DataType.INT32, [1, 1])
    return Component("decoder_1", Role.DECODER, b.model(), "model")


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_each_chunk_has_the_positions_of_its_rows(tokens: int) -> None:
    ids = np.array([1, 2, *[IMAGE] * 6, 3, 4], np.int64)
    positions = grid_positions(ids, IMAGE, [np.array([2, 3])])
    table = position_table(positions, CONTEXT)
    part = decoder(tokens)
    assert LookUpPositions(CONTEXT).transform(part).changed == 1
    assert [value.name for value in part.graph.inputs] == [POSITION_TABLE, LAST_INDEX]
    for end in range(tokens, CONTEXT + 1, tokens):
        rows, _ = run(part.model, {POSITION_TABLE: table, LAST_INDEX: np.array([[end - 1]], np.int32)})
        np.testing.assert_array_equal(rows[:, 0], table[:, end - tokens : end] * 10)


def test_what_is_given_no_positions_stays() -> None:
    b = GraphBuilder("part")
    b.output(b.op("Identity", b.input("x", ir.DataType.FLOAT, [1])), "y", ir.DataType.FLOAT, [1])
    outcome = LookUpPositions(CONTEXT).transform(Component("head", Role.DECODER, b.model(), "model"))
    assert outcome.changed == 0
    assert outcome.skipped[0].reason == "takes no position_ids"


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 5))
def test_an_answer_counts_on(text: int, context: int, rows: int) -> None:
    ids = np.array([*range(6, 6 + text), *[IMAGE] * (rows * 2)], np.int64)
    positions = grid_positions(ids, IMAGE, [np.array([rows, 2])])
    table = position_table(positions, context)
    assert table.shape == (3, context)
    assert table.dtype == np.int32
    np.testing.assert_array_equal(table[:, : len(ids)], positions[:, :context])
    behind = table[:, len(ids) :]
    np.testing.assert_array_equal(behind, np.stack([positions.max() + np.arange(1, behind.shape[1] + 1)] * 3))
