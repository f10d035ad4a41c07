"""What does not depend on an encoder's input becomes constants, of weights lazily; idle borders and masks go."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.static.fold_constants import FoldConstants
from hvlc.weights.lazy import Constant, LazyTensor
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run

#: Angles by rows, a table of positions that is resized by a matrix, and a Shape that says how many rows there are.
POSITIONS = """
graph (float[1, 4, 6] x) => (float[1, 4, 6] y)
   <int64 zero = {0}, int64 one = {1}, float[1, 6] frequencies = {0, 0, 0, 0, 0, 0}, int64[1] last = {1},
    float[3, 6] table = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, int64[2] flat = {3, 6},
    float[1, 3] places = {0, 1, 2}, float[1] edge = {0}> {
      count = Shape <start = 1, end = 2> (x)
      rows = Squeeze (count)
      numbers = Range (zero, rows, one)
      floats = Cast <to = 1> (numbers)
      column = Unsqueeze (floats, last)
      angles = Mul (column, frequencies)
      turned = Cos (angles)
      away = Sub (column, places)
      shares = Max (away, edge)
      tall = Reshape (table, flat)
      positions = MatMul (shares, tall)
      placed = Add (x, positions)
      y = Mul (placed, turned)
}
"""

#: A grid of 4 x 4 in windows of 2, which needs no border, and one in windows of 3, which does.
WINDOWS = """
graph (float[1, 16, 4] x) => (float[1, 16, 4] y)
   <int64[3] grid = {4, 4, 4}, int64[6] pads = {0, 0, 0, 0, 0, 0}, int64[2] starts = {0, 0}, int64[2] ends = {4, 4},
    int64[2] axes = {0, 1}, int64[3] rows = {1, 16, 4}, bool[1, 1, 16, 16] mask = {MASK}> {
      square = Reshape (x, grid)
      padded = Pad (square, pads)
      cut = Slice (padded, starts, ends, axes)
      flat = Reshape (cut, rows)
      y = Attention <q_num_heads = 2, kv_num_heads = 2> (flat, flat, flat, mask)
}
""".replace("MASK", ", ".join(["1"] * 256))


def encoder(text: str, lazy: tuple[str, ...] = ()) -> Bundle:
    """A vision encoder, some of whose initializers are weights that are read when it is written."""
    made = bundle(component(text, Role.VISION_ENCODER))
    graph = made.components["graph"].graph
    for name in lazy:
        value = graph.initializers[name]
        assert value.const_value is not None
        value.const_value = LazyTensor(name, Constant(value.const_value.numpy()))
    infer_shapes(graph)
    return made


def assert_same(before: Bundle, after: Bundle, *shape: int) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    expected, found = (run(one.components["graph"].model, feeds)[0] for one in (before, after))
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("lazy", [(), ("table",)])
def test_positions_become_numbers_and_what_weights_make_of_them(lazy: tuple[str, ...]) -> None:
    before, made = encoder(POSITIONS), encoder(POSITIONS, lazy)
    FoldConstants().run(made)
    graph = made.components["graph"].graph
    assert lines(graph) == ["placed = Add (x, positions.folded)", "y = Mul (placed, turned.folded)"]
    assert set(graph.initializers) == {"positions.folded", "turned.folded"}
    folded = graph.initializers["positions.folded"].const_value
    assert isinstance(folded, LazyTensor) is bool(lazy)
    assert_same(before, made, 1, 4, 6)


@pytest.mark.usefixtures("checked")
def test_what_follows_from_an_open_shape_stays() -> None:
    made = encoder(POSITIONS.replace("[1, 4, 6] x", "[1, n, 6] x").replace("[1, 4, 6] y", "[1, n, 6] y"))
    FoldConstants().run(made)
    assert {"Shape", "Range", "Cos", "MatMul"} <= {node.op_type for node in made.components["graph"].graph}


STORED = """
graph (float[1, 6] x) => (float[1, 2] y)
   <float16[12] scales = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, int64[2] dims = {6, 2}, int8[6, 2] levels =
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, float step = {0.5}> {
      wide = Cast <to = 1> (scales)
      matrix = Reshape (wide, dims)
      weight = DequantizeLinear (levels, step)
      sum = Add (weight, matrix)
      y = MatMul (x, sum)
}
"""


@pytest.mark.usefixtures("checked")
def test_how_weights_are_stored_stays() -> None:
    made = encoder(STORED, ("scales", "levels", "step"))
    expected = lines(made.components["graph"].graph)
    FoldConstants().run(made)
    assert lines(made.components["graph"].graph) == expected
    assert made.journal[-1].changed == 0


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("mask", ["bits", "addends"])
def test_a_border_of_nothing_and_a_mask_that_hides_nothing_go(mask: str) -> None:
    text = WINDOWS if mask == "bits" else WINDOWS.replace("bool[", "int32[")
    before, made = encoder(text), encoder(text)
    for one in (before, made) if mask == "addends" else ():
        value = one.components["graph"].graph.initializers["mask"]
        value.const_value = ir.tensor(np.zeros((1, 1, 16, 16), np.float32), name="mask")
        value.dtype = ir.DataType.FLOAT
    FoldConstants().run(made)
    graph = made.components["graph"].graph
    assert [node.op_type for node in graph] == ["Reshape", "Reshape", "Attention"]
    assert len(graph[2].inputs) == 3
    assert_same(before, made, 1, 16, 4)


KEPT = {
    "a border": ("pads = {0, 0, 0, 0, 0, 0}", "pads = {0, 0, 0, 1, 0, 0}", "Pad"),
    "a part": ("starts = {0, 0}", "starts = {1, 0}", "Slice"),
    "an end before the last": ("ends = {4, 4}", "ends = {4, 3}", "Slice"),
    "a mask": ("mask = {1", "mask = {0", "Attention"),
}


@pytest.mark.parametrize("why", KEPT)
def test_what_changes_something_stays(why: str) -> None:
    old, new, kept = KEPT[why]
    text = WINDOWS.replace(old, new).replace("float[1, 16, 4] y", "float[1, n, 4] y")
    text = text.replace("rows = {1, 16, 4}", "rows = {1, -1, 4}") if kept == "Slice" else text
    made = encoder(text)
    FoldConstants().run(made)
    node = next(node for node in made.components["graph"].graph if node.op_type == kept)
    assert kept != "Attention" or len(node.inputs) == 4


def test_numbers_that_are_outputs_stay() -> None:
    text = "graph (float[1, 4] x) => (int64[2] y) { y = Shape (x) }"
    made = encoder(text)
    FoldConstants().run(made)
    assert [node.op_type for node in made.components["graph"].graph] == ["Shape"]
