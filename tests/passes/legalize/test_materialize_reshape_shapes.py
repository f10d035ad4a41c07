"""Reshapes say the numbers that follow from fixed shapes."""

import numpy as np
import pytest

from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.legalize.materialize_reshape_shapes import MaterializeReshapeShapes
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run

BEFORE = """
graph (float[2, 4, 6] x) => (float[2, 4, 6] y)
   <int64[4] split = {0, 0, -1, 3}, int64[3] join = {0, 4, -1}> {
      heads = Reshape (x, split)
      y = Reshape (heads, join)
}
"""


@pytest.mark.usefixtures("checked")
def test_signs_become_numbers() -> None:
    made = bundle(component(BEFORE))
    graph = made.components["graph"].graph
    infer_shapes(graph)
    MaterializeReshapeShapes().run(made)
    assert lines(graph) == ["heads = Reshape (x, [2, 4, 2, 3])", "y = Reshape (heads, [2, 4, 6])"]
    assert set(graph.initializers) == {"2x4x2x3_dims", "2x4x6_dims"}
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(made.components["graph"].model, {"x": x})[0], x)


@pytest.mark.usefixtures("checked")
def test_a_shape_that_is_not_fixed_stays() -> None:
    made = bundle(component(BEFORE.replace("[2, 4, 6]", "[n, 4, 6]")))
    graph = made.components["graph"].graph
    infer_shapes(graph)
    before = lines(graph)
    MaterializeReshapeShapes().run(made)
    assert lines(graph) == before
    assert {skip.reason for skip in made.journal[0].skipped} == {"its output has no fixed shape"}
