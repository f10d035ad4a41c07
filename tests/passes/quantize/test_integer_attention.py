"""Attention over uint8 with queries of uint16: integer products that cut nothing off."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.graphs.bundle import Bundle
from hvlc.graphs.editing import register
from hvlc.passes.quantize.integer_attention import IntegerAttention
from tests.helpers.sessions import run
from tests.passes.legalize.test_decompose_group_query_attention import (
    CHUNK,
    ROOM,
    attention,
    feeds,
    graph_of,
    outputs,
    shifted,
    written_out,
)

SCALE, ZERO = 8 / 65535, 20000  # of queries: from -2.4 to 5.6
PRODUCTS = [
    "layer0.q_scaled.quantize",
    "layer0.scores.quantize",
    "layer0.softmax.quantize",
    "layer0.attended.quantize",
]


def rounded(made: Bundle, dtype: type[np.generic] = np.uint16) -> Bundle:
    """The same with queries that are dequantized from levels."""
    graph, query = graph_of(made), graph_of(made).inputs[0]
    constants = [
        register(graph, ir.tensor(np.array(SCALE, np.float32), name="query.scale")),
        register(graph, ir.tensor(np.array(ZERO if dtype is np.uint16 else 0, dtype), name="query.zero_point")),
    ]
    uses, value = list(query.uses()), query
    for kind, of in (("QuantizeLinear", dtype), ("DequantizeLinear", np.float32)):
        node = ir.node(kind, [value, *constants], name=f"query.{kind}")
        graph.insert_before(graph[0] if kind == "QuantizeLinear" else uses[0].node, node)
        value, node.outputs[0].name = node.outputs[0], f"query.{kind}:0"
        value.shape, value.type = query.shape, ir.TensorType(ir.DataType.from_numpy(np.dtype(of)))
    for use in uses:
        use.node.replace_input_with(use.idx, value)
    return made


def integers(tokens: int = CHUNK, size: int = 16, **changes: object) -> Bundle:
    """Products in integers."""
    made = rounded(written_out(attention(tokens, size, quantized=True, **changes)))
    IntegerAttention().run(made)
    return made


def constant(made: Bundle, name: str) -> np.ndarray:
    tensor = graph_of(made).initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.usefixtures("checked")
def test_four_values_are_rounded() -> None:
    made = integers(layers=2)
    assert (made.journal[-1].changed, made.journal[-1].skipped) == (2, ())
    graph = graph_of(made)
    roundings = [
        str(n.name) for n in graph if n.op_type == "QuantizeLinear" and n.outputs[0].dtype == ir.DataType.UINT16
    ]
    assert roundings == ["query.QuantizeLinear", *PRODUCTS, *(name.replace("0", "1") for name in PRODUCTS)]
    for product in (n for n in graph if n.op_type == "MatMul"):
        left, right = (_levels(value) for value in product.inputs)
        assert (left, right) == (ir.DataType.UINT16, ir.DataType.UINT8)
        assert [n.op_type for n in product.outputs[0].consumers()] == ["QuantizeLinear"]


def _levels(value: ir.Value | None) -> ir.DataType | None:
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Transpose":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node.inputs[0].dtype if node is not None and node.op_type == "DequantizeLinear" and node.inputs[0] else None


def test_weights_and_means_have_the_scales_that_follow_from_what_they_are() -> None:
    made = integers()
    assert constant(made, "layer0.softmax.scale") == np.float32(1 / 65536)
    assert constant(made, "layer0.softmax.zero_point") == 0
    low, high = (
        (level - int(constant(made, "layer0.attended.zero_point"))) * constant(made, "layer0.attended.scale")
        for level in (0, 65535)
    )
    np.testing.assert_allclose([low, high], [-128 / 127, 1], rtol=1e-6)  # where values lie


def test_steps_are_what_channels_can_reach() -> None:
    made = integers()
    factors = constant(made, "layer0.q_factors").astype(np.float64)
    reach = 2**0.5 * factors * SCALE * (65535 - ZERO)  # a channel of a turned query
    assert constant(made, "layer0.q_scaled.scale") == pytest.approx(reach.max() / 32767, rel=1e-6)
    scores = (reach.sum(-1) * 128 / 127).max() / 32767
    assert constant(made, "layer0.scores.scale") == pytest.approx(scores, rel=1e-6)
    straight = integers(turned=0)
    assert constant(straight, "layer0.q_scaled.scale") == pytest.approx(reach.max() / 2**0.5 / 32767, rel=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 99), st.integers(0, ROOM - CHUNK), st.floats(0.1, 30))
def test_nothing_is_cut_off_whatever_comes(seed: int, first: int, size: float) -> None:
    """Queries at both ends of their levels and keys at both ends of theirs."""
    made = integers()
    graph, given = graph_of(made), shifted(feeds(made, first, seed))
    given = {n: x * np.float32(size) if n in ("query", "key") else x for n, x in given.items()}
    seen = {n: next(node for node in graph if node.name == n) for n in PRODUCTS}
    values = [seen[n].inputs[0] for n in PRODUCTS]
    graph.outputs.extend([*values, *(value.uses()[0].node.outputs[0].uses()[0].node.outputs[0] for value in values)])
    found = run(next(iter(made.components.values())).model, given)[3:]
    for name, exact, kept in zip(PRODUCTS, found[:4], found[4:], strict=True):
        step = constant(made, name.replace("quantize", "scale"))
        assert np.abs(exact - kept).max() <= step * 1.01  # weights of 1 are half a step more than the last level


@pytest.mark.parametrize("tokens", [CHUNK, 1])
@pytest.mark.parametrize("first", [0, ROOM - CHUNK])
def test_the_numbers_stay_within_steps_of_16_bits(tokens: int, first: int) -> None:
    plain, made = rounded(written_out(attention(tokens, quantized=True))), integers(tokens)
    given = shifted(feeds(made, first))
    (one, *kept), (other, *caches) = outputs(plain, given), outputs(made, given)
    error = np.abs(one - other).max() / np.abs(one).max()
    assert 0 < error < 1e-3
    for levels, again in zip(kept, caches, strict=True):
        np.testing.assert_array_equal(levels, again)


def test_what_is_not_in_integers_stays() -> None:
    for made, reason in (
        (written_out(attention(quantized=True)), "its queries are not uint16"),
        (rounded(written_out(attention(quantized=True)), np.int16), "its queries are not uint16"),
        (rounded(written_out(attention())), "its cache is not uint8"),
    ):
        count = len(list(graph_of(made)))
        IntegerAttention().run(made)
        assert len(list(graph_of(made))) == count
        assert (made.journal[-1].changed, made.journal[-1].skipped[0].reason) == (0, reason)
    again = integers()
    IntegerAttention().run(again)
    assert again.journal[-1].changed == 0
