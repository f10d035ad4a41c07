"""Head norms see their rows in one dimension, and nothing else changes."""

import numpy as np
import pytest

from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.legalize.flatten_norms import FlattenNorms
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run

BEFORE = """
graph (float[1, 5, 8] x) => (float[1, 5, 8] y)
   <float[4] scale = {0, 0, 0, 0}, int64[4] split = {1, 5, 2, 4}, int64[3] join = {1, 5, 8}> {
      heads = Reshape (x, split)
      normed = RMSNormalization <axis = -1> (heads, scale)
      y = Reshape (normed, join)
}
"""
AFTER = [
    "heads = Reshape (x, [1, 10, 4])",
    "normed = RMSNormalization <axis = -1> (heads, scale)",
    "y = Reshape (normed, [1, 5, 8])",
]
ROUNDED = """
graph (float[1, 5, 8] x) => (float[1, 5, 8] y)
   <float[4] scale = {0, 0, 0, 0}, int64[4] split = {1, 5, 2, 4}, int64[3] join = {1, 5, 8}, float step = {0},
    uint16 zero = {32768}> {
      heads = Reshape (x, split)
      levels = QuantizeLinear (heads, step, zero)
      rounded = DequantizeLinear (levels, step, zero)
      normed = RMSNormalization <axis = -1> (rounded, scale)
      out_levels = QuantizeLinear (normed, step, zero)
      out = DequantizeLinear (out_levels, step, zero)
      y = Reshape (out, join)
}
"""
READ_TWICE = BEFORE.replace("=> (", "=> (float[1, 5, 2, 4] seen, ").replace("y =", "seen = Identity (heads)\n y =")
SPLIT = "int64[4] split = {1, 5, 2, 4}"
NEAR_MISSES = {
    "its rows lie in one dimension": BEFORE.replace(SPLIT, "int64[3] split = {1, 10, 4}"),
    "its shape is not fixed": BEFORE.replace("[1, 5, 8] x", "[1, s, 8] x").replace("{1, 5, 2, 4}", "{1, -1, 2, 4}"),
    "normalizes over more than the last axis": BEFORE.replace("axis = -1", "axis = -2").replace(
        "float[4] scale = {0,", "float[2, 4] scale = {0, 0, 0, 0, 0,"
    ),
    "no Reshape of its own before it": READ_TWICE,
    "not only Reshapes after it": BEFORE.replace(
        "y = Reshape (normed, join)", "z = Identity (normed)\n y = Reshape (z, join)"
    ),
}


def run_pass(text: str) -> tuple[list[str], list[str], str]:
    """Lines before and after, and the reason for what was declined."""
    made = bundle(component(text))
    graph = made.components["graph"].graph
    infer_shapes(graph)
    before = lines(graph)
    FlattenNorms().run(made)
    skipped = made.journal[0].skipped
    return before, lines(graph), skipped[0].reason if skipped else ""


@pytest.mark.usefixtures("checked")
def test_the_rows_of_a_head_norm_are_joined() -> None:
    assert run_pass(BEFORE)[1:] == (AFTER, "")


@pytest.mark.usefixtures("checked")
def test_rounding_around_the_norm_is_seen_through() -> None:
    before, after, _ = run_pass(ROUNDED)
    assert [a for a, b in zip(after, before, strict=True) if a != b] == ["heads = Reshape (x, [1, 10, 4])"]


@pytest.mark.parametrize("text", [BEFORE, ROUNDED])
def test_the_numbers_stay(text: str) -> None:
    feeds = {"x": np.random.default_rng(1).normal(size=(1, 5, 8)).astype(np.float32)}
    before, after = bundle(component(text)), bundle(component(text))
    infer_shapes(after.components["graph"].graph)
    FlattenNorms().run(after)
    expected, found = (run(b.components["graph"].model, feeds)[0] for b in (before, after))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("reason", NEAR_MISSES)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(reason: str) -> None:
    before, after, said = run_pass(NEAR_MISSES[reason])
    assert (after, said) == (before, reason)
