"""What is read from fixed shapes becomes constants, and copies along axes that stay go."""

import numpy as np
import pytest

from hvlc.graphs.bundle import Role
from hvlc.graphs.shapes import dynamic_dims, infer_shapes
from hvlc.passes.static.fix_shapes import FixShapes
from hvlc.passes.static.fold_shapes import FoldShapes
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run

#: A pooling head: one learned query for each image.
BEFORE = """
graph (float[1, 4, 6] x) => (float[1, 1, 6] y)
   <float[1, 1, 6] query = {0, 0, 0, 0, 0, 0}, int64[2] rest = {1, 1}> {
      images = Shape <start = 0, end = 1> (x)
      dims = Concat <axis = 0> (images, rest)
      copied = Expand (query, dims)
      y = Attention <q_num_heads = 2, kv_num_heads = 2> (copied, x, x)
}
"""
KEPT = {
    "an open dimension": BEFORE.replace("[1, 4, 6] x", "[n, 4, 6] x").replace("[1, 1, 6] y", "[n, 1, 6] y"),
    "copies that are made": BEFORE.replace("[1, 4, 6] x", "[3, 4, 6] x").replace("[1, 1, 6] y", "[3, 1, 6] y"),
}


@pytest.mark.usefixtures("checked")
def test_one_image_needs_neither_its_number_nor_a_copy() -> None:
    made, before = bundle(component(BEFORE)), bundle(component(BEFORE))
    graph = made.components["graph"].graph
    infer_shapes(graph)
    FoldShapes().run(made)
    assert lines(graph) == ["y = Attention <kv_num_heads = 2, q_num_heads = 2> (query, x, x)"]
    assert set(graph.initializers) == {"query"}
    assert made.journal[0].changed == 3
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float32)}
    expected, found = (run(one.components["graph"].model, feeds)[0] for one in (before, made))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("checked")
def test_what_is_behind_a_folded_shape_gets_its_shape() -> None:
    """Fixing shapes leaves open what ONNX cannot infer through a Concat of what a Shape says."""
    text = BEFORE.replace("[1, 4, 6] x", "[batch, 4, 6] x").replace("[1, 1, 6] y", "[batch, 6] y")
    text = text.replace("y = Attention", "pooled = Attention").replace("x, x)", "x, x)\n y = Squeeze (pooled, one)")
    made = bundle(component(text.replace("int64[2] rest", "int64[1] one = {1}, int64[2] rest"), Role.VISION_ENCODER))
    graph = made.components["graph"].graph
    FixShapes(1, 1).run(made)
    assert any(dynamic_dims(value) for node in graph for value in node.outputs)
    FoldShapes().run(made)
    assert not any(dynamic_dims(value) for node in graph for value in node.outputs)


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("why", KEPT)
def test_what_is_not_known_or_not_the_same_stays(why: str) -> None:
    made = bundle(component(KEPT[why]))
    graph = made.components["graph"].graph
    infer_shapes(graph)
    FoldShapes().run(made)
    assert "copied = Expand" in "\n".join(lines(graph))
    assert bool(made.journal[0].skipped) is (why == "an open dimension")
