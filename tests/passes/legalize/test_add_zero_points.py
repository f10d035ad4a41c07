"""A zero point of 0 is written down where it is left out, of the weights of the nodes that were named."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.passes.legalize.add_zero_points import AddZeroPoints
from tests.helpers.sessions import run
from tests.lint.texts import bundle_of, feeds, nodes_of, skips, with_int4

GRAPH = """
graph (float[3, 2] x) => (float[3, 4] y)
   <%s[2, 4] q = {1, -2, 3, -4, 5, -6, 7, -8}, float%s s = {%s}, %s[4] z = {1, 1, 1, 1}> {
      [weight] w = DequantizeLinear <axis = 1> (q, s%s)
      [product] y = MatMul (x, w)
}
"""
CHANNELS = GRAPH % ("int8", "[4]", "0.5, 1, 2, 3", "int8", "")
MATRIX = GRAPH % ("int8", "", "0.5", "int8", "")
PASS = AddZeroPoints(frozenset({"product"}))
FORMS = pytest.mark.parametrize("text", [CHANNELS, MATRIX], ids=["channels", "matrix"])


@FORMS
@pytest.mark.usefixtures("checked")
def test_it_is_stated(text: str) -> None:
    made = with_int4(bundle_of(text))
    PASS.run(made)
    assert nodes_of(made)[0] == "[weight] w = DequantizeLinear <axis = 1> (q, s, w.zeros)"
    graph = made.components["graph"].graph
    q, s, zeros = (graph.initializers[name].const_value for name in ("q", "s", "w.zeros"))
    assert q.dtype == ir.DataType.INT4
    assert (zeros.dtype, zeros.shape, zeros.numpy().astype(int).any()) == (q.dtype, s.shape, False)


@FORMS
def test_the_numbers_stay(text: str) -> None:
    wide = text.replace("int8", "int8")  # ONNX's text does not pack what onnxruntime wants packed
    models = [bundle_of(wide) for _ in range(2)]
    PASS.run(models[1])
    before, after = (made.components["graph"].model for made in models)
    np.testing.assert_array_equal(*(run(model, feeds(before))[0] for model in (before, after)))


@pytest.mark.parametrize(
    ("text", "nodes"),
    [(GRAPH % ("int8", "[4]", "0.5, 1, 2, 3", "int8", ", z"), {"product"}), (CHANNELS, {"other"})],
    ids=["given", "not named"],
)
@pytest.mark.usefixtures("checked")
def test_others_stay(text: str, nodes: set[str]) -> None:
    made = bundle_of(text)
    before = nodes_of(made)
    AddZeroPoints(frozenset(nodes)).run(made)
    assert (nodes_of(made), skips(made)) == (before, [])


def test_scales_of_an_unknown_shape_are_declined() -> None:
    text = CHANNELS.replace("(float[3, 2] x)", "(float[3, 2] x, float[n] t)")
    made = bundle_of(text.replace("(q, s)", "(q, t)"))
    made.components["graph"].graph.inputs[1].shape = None
    PASS.run(made)
    assert skips(made) == [("weight", "the type of its integers or the shape of its scales is not known")]
