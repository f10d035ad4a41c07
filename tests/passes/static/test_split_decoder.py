"""A decoder cut at its residual stream computes what it did, part after part."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.errors import HvlcError, TargetError
from hvlc.graphs.bundle import Bundle, Role, Wire
from hvlc.graphs.facts import Facts
from hvlc.passes.static.split_decoder import SplitDecoder
from hvlc.weights.lazy import LazyTensor
from tests.helpers.facts import text_facts
from tests.helpers.graphs import bundle, component, lines, signature
from tests.helpers.sessions import run

#: Two layers that each add what a norm and a weight make of the stream, with a "cache" that is handed out.
BEFORE = """
graph (float[batch, sequence, 4] inputs_embeds, float[batch, past, 4] past_0, float[batch, past, 4] past_1)
   => (float[batch, sequence, 6] logits, float[batch, total, 4] present_0, float[batch, total, 4] present_1)
   <float[4] g0 = {0, 0, 0, 0}, float[4] g1 = {0, 0, 0, 0}, float[4] g2 = {0, 0, 0, 0}, float[4] shared = {0, 0, 0, 0},
    float[4, 6] head = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> {
      [model__layers__0__input_layernorm] n0 = RMSNormalization (inputs_embeds, g0)
      [model__layers__0__attend] present_0 = Concat <axis = 1> (past_0, n0)
      [model__layers__0__mean] m0 = ReduceMean <keepdims = 1> (present_0)
      [model__layers__0__mul] p0 = Mul (m0, shared)
      [model__layers__0__residual] x1 = Add (inputs_embeds, n0)
      [model__layers__0__mix] y1 = Add (x1, p0)
      [model__layers__1__input_layernorm] n1 = RMSNormalization (y1, g1)
      [model__layers__1__attend] present_1 = Concat <axis = 1> (past_1, n1)
      [model__layers__1__mean] m1 = ReduceMean <keepdims = 1> (present_1)
      [model__layers__1__mul] p1 = Mul (m1, shared)
      [model__layers__1__residual] x2 = Add (y1, p1)
      [model__norm] last = RMSNormalization (x2, g2)
      [lm_head] logits = MatMul (last, head)
}
"""
LAYER = 4 * 4 + 4 * 4  # bytes of one layer: its gain and the shared weight
HEAD = 4 * 4 + 4 * 24
#: The same with rounding of what goes from layer to layer.
ROUNDED = (
    BEFORE.replace("float[4] g0", "float step = {0}, uint16 zero = {32768}, float[4] g0")
    .replace(
        "[model__layers__1__input_layernorm] n1 = RMSNormalization (y1, g1)",
        "[q] levels = QuantizeLinear (y1, step, zero)\n [dq] r1 = DequantizeLinear (levels, step, zero)\n"
        "[model__layers__1__input_layernorm] n1 = RMSNormalization (r1, g1)",
    )
    .replace("Add (y1, p1)", "Add (r1, p1)")
)
#: The same with a look-up of its own.
SPEAKING = (
    BEFORE.replace("(float[batch, sequence, 4] inputs_embeds,", "(int64[batch, sequence] input_ids,")
    .replace("<float[4] g0", "<float[3, 4] table = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, float[4] g0")
    .replace("[model__layers__0__input_l", "[embed] e = Gather (table, input_ids)\n [model__layers__0__input_l")
    .replace("inputs_embeds", "e")
)
#: The same, of which the rows are multiplied.
MULTIPLIED = SPEAKING.replace(
    "[embed] e = Gather (table, input_ids)",
    "[embed_tokens__rows] rows = Gather (table, input_ids)\n [embed_tokens] e = Mul (rows, twice)",
).replace("<float[3, 4] table", "<float twice = {2}, float[3, 4] table")


def headless(text: str) -> str:
    """With a head that is smaller than a layer."""
    return text.replace("MatMul (last, head)", "Identity (last)").replace("sequence, 6]", "sequence, 4]")


def whole(text: str = BEFORE) -> Bundle:
    return bundle(component(text, name="model"), facts=Facts(text=text_facts(hidden_size=4)))


def feeds(made: Bundle, **dims: int) -> dict[str, np.ndarray]:
    random, sizes = np.random.default_rng(2), {"batch": 1, "sequence": 3, "past": 2, **dims}
    found = {}
    for value in made.components["model"].graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape or ()]
        ids = value.dtype == ir.DataType.INT64
        found[str(value.name)] = random.integers(0, 3, shape) if ids else random.normal(size=shape).astype(np.float32)
    return found


def run_parts(made: Bundle, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Component after component, each fed by name from the inputs and from those before it."""
    known = dict(given)
    for part in made.components.values():
        inputs = {str(v.name): known[str(v.name)] for v in part.graph.inputs}
        known |= dict(zip([str(v.name) for v in part.graph.outputs], run(part.model, inputs), strict=True))
    return known


@pytest.mark.usefixtures("checked")
def test_one_part_has_all_layers_and_the_head_the_last_norm() -> None:
    made = whole()
    SplitDecoder().run(made)
    assert list(made.components) == ["decoder_1", "head"]
    assert lines(made.components["head"].graph) == [
        "last = RMSNormalization (hidden_states, g2)",
        "logits = MatMul (last, head)",
    ]
    assert signature(made.components["decoder_1"].graph) == [
        "float[batch, sequence, 4] inputs_embeds",
        "float[batch, past, 4] past_0",
        "float[batch, past, 4] past_1",
        "=>",
        "float[batch, sequence, 4] hidden_states",
        "float[batch, total, 4] present_0",
        "float[batch, total, 4] present_1",
    ]
    assert made.wires == [Wire("decoder_1.hidden_states", "head.hidden_states")]
    assert {c.role for c in made.components.values()} == {Role.DECODER}


@pytest.mark.parametrize(
    ("text", "part_bytes"),
    [(text, size) for text in (BEFORE, ROUNDED, SPEAKING, MULTIPLIED) for size in (None, HEAD)]
    + [(headless(text), LAYER + 6) for text in (BEFORE, ROUNDED, SPEAKING, MULTIPLIED)],
)
def test_the_parts_compute_what_the_whole_did(text: str, part_bytes: int | None) -> None:
    made = whole(text)
    given, before = feeds(made), made.components["model"]
    expected = dict(zip([str(v.name) for v in before.graph.outputs], run(before.model, given), strict=True))
    SplitDecoder(part_bytes).run(made)
    found = run_parts(made, given)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    if "table" in text:
        assert signature(made.components["embedding"].graph) == [
            "int64[batch, sequence] input_ids", "=>", "float[batch, sequence, 4] inputs_embeds",
        ]  # fmt: skip
        assert made.components["embedding"].role is Role.EMBEDDING
        assert len(lines(made.components["embedding"].graph)) == (2 if "twice" in text else 1)


@pytest.mark.usefixtures("checked")
def test_parts_are_filled_in_order_and_hand_the_stream_on() -> None:
    made = whole(headless(BEFORE))
    SplitDecoder(LAYER).run(made)
    assert list(made.components) == ["decoder_1", "decoder_2", "head"]
    assert [str(v.name) for v in made.components["decoder_2"].graph.inputs] == ["hidden_states.1", "past_1"]
    assert made.wires[0] == Wire("decoder_1.hidden_states.1", "decoder_2.hidden_states.1")
    shared = [made.components[f"decoder_{i}"].graph.initializers["shared"].const_value for i in (1, 2)]
    assert all(isinstance(tensor, LazyTensor) for tensor in shared)
    assert shared[0] is shared[1]  # so it is stored once


@pytest.mark.usefixtures("checked")
def test_levels_go_from_part_to_part() -> None:
    made = whole(headless(ROUNDED))
    SplitDecoder(LAYER + 4 + 2).run(made)  # with scale and zero point
    first, second = (made.components[f"decoder_{i}"].graph for i in (1, 2))
    assert signature(second)[0] == "uint16[batch, sequence, 4] hidden_states.1"
    assert first.outputs[0].dtype == ir.DataType.UINT16
    assert lines(second)[0] == "r1 = DequantizeLinear (hidden_states.1, step, zero)"
    assert lines(first)[-1] == "hidden_states.1 = QuantizeLinear (y1, step, zero)"


def test_the_wires_of_the_decoder_go_to_its_first_part() -> None:
    text = "graph (float[b, s, 4] x) => (float[b, s, 4] inputs_embeds) { inputs_embeds = Identity (x) }"
    made = whole()
    made.components = {"embedding": component(text, Role.EMBEDDING, "embedding"), **made.components}
    made.wires.append(Wire("embedding.inputs_embeds", "model.inputs_embeds"))
    SplitDecoder().run(made)
    assert Wire("embedding.inputs_embeds", "decoder_1.inputs_embeds") in made.wires


@pytest.mark.parametrize(("part_bytes", "what"), [(LAYER - 1, "layer 0"), (LAYER, "the head")])
def test_what_is_too_large_alone_is_refused(part_bytes: int, what: str) -> None:
    with pytest.raises(TargetError, match=r"target\.part_size") as error:
        SplitDecoder(part_bytes).run(whole())
    assert what in error.value.cause


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BEFORE.replace("layers__1__input", "layers__2__input"), "not a whole sequence"),
        (BEFORE.replace("[model__norm]", "[final]"), "no model.norm"),
        (BEFORE.replace("inputs_embeds", "x"), "neither embeddings nor tokens"),
    ],
)
def test_a_decoder_without_a_stream_is_our_bug(text: str, said: str) -> None:
    with pytest.raises(HvlcError) as error:
        SplitDecoder().run(whole(text))
    assert said in error.value.cause
    assert error.value.exit_code == 1


@pytest.mark.usefixtures("checked")
def test_what_is_no_decoder_stays_untouched() -> None:
    made = bundle(component("graph (float[1] x) => (float[1] y) { y = Identity (x) }", Role.DECODER))
    SplitDecoder().run(made)
    assert list(made.components) == ["graph"]
    assert made.journal[0].skipped[0].reason == "there is no whole decoder"
