"""Activations that are alive at once are found without running a graph."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.graphs.activations import Activations, peak_activations, stated_cap

HEADER = '<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>'


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


CHAIN = """
graph (float[b, 10] x) => (float[b, 10] y) {
   a = Exp (x)
   c = Exp (a)
   y = Add (a, c)
}
"""


@given(st.integers(1, 9))
def test_values_live_until_they_are_read_last(batch: int) -> None:
    """With y there are a and c; x was read before."""
    assert peak_activations(model(CHAIN), {"x": (batch, 10)}) == Activations(3 * 40 * batch, 0)


def test_an_input_that_is_read_late_stays() -> None:
    text = CHAIN.replace("y = Add (a, c)", "d = Add (a, c)\n y = Add (d, x)")
    found = peak_activations(model(text), {"x": (1, 10)})
    assert found == Activations(4 * 40, 0)


def test_weights_are_left_out_and_shapes_are_computed_on_the_way() -> None:
    text = """
    graph (float[b, 3, h, w] x) => (float[n, 5] y) <float[4, 5] weight = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> {
       four = Constant <value = int64[1] {4}> ()
       rows = Shape <start = 0, end = 1> (x)
       side = Shape <start = 2, end = 3> (x)
       count = Mul (rows, side)
       shape = Concat <axis = 0> (count, four)
       one = Constant <value = float {1}> ()
       wide = Expand (one, shape)
       y = MatMul (wide, weight)
    }
    """
    found = peak_activations(model(text), {"x": (2, 3, 7, 9)})
    assert found is not None
    assert 4 * (14 * 4 + 14 * 5) <= found.values <= 4 * (2 * 3 * 7 * 9 + 14 * 9) + 100


def test_a_shape_that_does_not_follow_has_no_peak() -> None:
    text = "graph (float[n] x) => (int64[1, m] y) { y = NonZero (x) }"
    assert peak_activations(model(text), {"x": (4,)}) is None
    assert stated_cap(model(text), {"x": (4,)}) is None


@pytest.mark.parametrize(("level", "copies"), [(1, 4 * 32 * 16), (4, 0)])
def test_a_product_unpacks_its_weights_unless_it_computes_in_integers(level: int, copies: int) -> None:
    node = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        [],
        [ir.AttrInt64(name, value) for name, value in
         {"K": 32, "N": 16, "bits": 4, "block_size": 16, "accuracy_level": level}.items()],
    )  # fmt: skip
    made = ir.to_proto(node)
    made.input.extend(["x", "q", "s"])
    made.output[:] = ["y"]
    graph = onnx.helper.make_graph(
        [made],
        "graph",
        [onnx.helper.make_tensor_value_info("x", 1, ["b", 32])],
        [onnx.helper.make_tensor_value_info("y", 1, ["b", 16])],
        [
            onnx.numpy_helper.from_array(np.zeros((16, 2, 8), np.uint8), "q"),
            onnx.numpy_helper.from_array(np.zeros((16, 2), np.float32), "s"),
        ],
    )
    versions = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    found = peak_activations(onnx.helper.make_model(graph, opset_imports=versions), {"x": (3, 32)})
    assert found == Activations(4 * 3 * (32 + 16), copies)
