"""Constant indices become int32 where ONNX's schema proves that they may."""

import numpy as np
import pytest

from hvlc.passes.legalize.narrow_integers import NarrowIntegers
from tests.helpers.sessions import run
from tests.lint.texts import bundle_of, feeds, nodes_of, skips

GRAPH = """
graph (float[4, 6] x) => (float[4, 2] y) <int64[2] picked = {%s}> {
      [gather] y = Gather <axis = 1> (x, picked)
}
"""
PASS = NarrowIntegers(frozenset({"gather", "shape_it", "add"}))


@pytest.mark.usefixtures("checked")
def test_indices_are_narrowed() -> None:
    made = bundle_of(GRAPH % "1, -3")
    PASS.run(made)
    assert nodes_of(made) == ["[gather] y = Gather <axis = 1> (x, picked.int32)"]
    constant = made.components["graph"].graph.initializers["picked.int32"].const_value
    assert (constant.numpy().dtype, constant.numpy().tolist()) == (np.int32, [1, -3])


def test_the_numbers_stay() -> None:
    old, new = bundle_of(GRAPH % "1, -3"), bundle_of(GRAPH % "1, -3")
    PASS.run(new)
    models = [made.components["graph"].model for made in (old, new)]
    np.testing.assert_array_equal(*(run(model, feeds(models[0]))[0] for model in models))


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        (
            "graph (float[4, 6] x) => (float[6, 4] y) <int64[2] s = {6, 4}> { [shape_it] y = Reshape (x, s) }",
            "shape_it input 1",
            "the operator takes int64 alone",
        ),
        (
            "graph (int64[2] x) => (int64[2] y) <int64[2] s = {6, 4}> { [add] y = Add (x, s) }",
            "add input 1",
            "other inputs or outputs must have the same type",
        ),
        (GRAPH % "1, 3000000000", "gather input 1", "values lie outside int32"),
    ],
)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(text: str, where: str, reason: str) -> None:
    made = bundle_of(text)
    before = nodes_of(made)
    PASS.run(made)
    assert (nodes_of(made), skips(made)) == (before, [(where, reason)])


def test_other_nodes_are_left_alone() -> None:
    made = bundle_of(GRAPH % "1, 2")
    NarrowIntegers(frozenset()).run(made)
    assert made.journal[-1].changed == 0
