"""The head of a padded prompt computes the row of the last token; the embedding says which."""

import numpy as np
import pytest

from hvlc.graphs.bundle import Bundle, Role, Wire
from hvlc.passes.static.fix_shapes import FixShapes
from hvlc.passes.static.gather_last_token import GatherLastToken
from tests.helpers.graphs import bundle, component, lines, signature
from tests.helpers.sessions import run

CHUNK, PADDING = 4, 7
EMBEDDING = """
graph (int32[batch, sequence] input_ids) => (float[batch, sequence, 4] inputs_embeds)
   <float[8, 4] t = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> {
      inputs_embeds = Gather (t, input_ids)
}
"""
HEAD = """
graph (float[batch, sequence, 4] hidden) => (float[batch, sequence, 3] logits)
   <float[4] g = {1, 1, 1, 1}, float[4, 3] w = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> {
      normed = RMSNormalization (hidden, g)
      logits = MatMul (normed, w)
}
"""
LEVELS = """
graph (uint8[batch, sequence, 4] hidden) => (float[batch, sequence, 3] logits)
   <float scale = {0.03}, uint8 zero = {128}, float[4, 3] w = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> {
      values = DequantizeLinear (hidden, scale, zero)
      logits = MatMul (values, w)
}
"""


def model(head: str = HEAD) -> Bundle:
    source = (
        EMBEDDING if head is HEAD else EMBEDDING.replace("float[batch", "uint8[batch").replace("float[8", "uint8[8")
    )
    made = bundle(component(source, Role.EMBEDDING, "embedding"), component(head, name="head"))
    made.wires.append(Wire("embedding.inputs_embeds", "head.hidden"))
    FixShapes(CHUNK, CHUNK).run(made)
    made.journal.clear()
    return made


@pytest.mark.usefixtures("checked")
def test_the_embedding_counts_and_the_head_gathers() -> None:
    made = model()
    token = lines(made.components["head_token"].graph)
    GatherLastToken(PADDING).run(made)
    embedding, head = (made.components[name].graph for name in ("embedding", "head_prompt"))
    assert signature(embedding) == [
        "int32[batch, sequence] input_ids",
        "=>",
        "float[batch, sequence, 4] inputs_embeds",
        "int32[batch] last_row",
    ]
    assert lines(embedding)[1:] == [
        "last_row.padded:0 = Equal (input_ids, last_row.padding)",
        "last_row.real:0 = Not (last_row.padded:0)",
        "last_row.ones:0 = Cast <to = 6> (last_row.real:0)",
        "last_row.count:0 = ReduceSum <keepdims = 0> (last_row.ones:0, [1])",
        "last_row = Sub (last_row.count:0, last_row.one)",
    ]
    assert lines(head) == [
        "head_prompt.last_row:0 = Gather <axis = 1> (hidden, last_row)",
        "normed = RMSNormalization (head_prompt.last_row:0, g)",
        "logits = MatMul (normed, w)",
    ]
    assert signature(head) == ["float[1, 4, 4] hidden", "int32[1] last_row", "=>", "float[1, 1, 3] logits"]
    assert head[1].outputs[0].shape == [1, 1, 4]
    assert lines(made.components["head_token"].graph) == token
    assert Wire("embedding.last_row", "head_prompt.last_row") in made.wires


@pytest.mark.parametrize("head", [HEAD, LEVELS])
@pytest.mark.parametrize("tokens", range(1, CHUNK + 1))
def test_the_row_is_that_of_the_last_token_before_the_padding(head: str, tokens: int) -> None:
    before, after = model(head), model(head)
    GatherLastToken(PADDING).run(after)
    ids = np.array([[1, 2, 3, 4][:tokens] + [PADDING] * (CHUNK - tokens)], np.int32)
    _, row = run(after.components["embedding"].model, {"input_ids": ids})
    np.testing.assert_array_equal(row, [tokens - 1])
    random = np.random.default_rng(0)
    floats = random.normal(size=(1, CHUNK, 4)).astype(np.float32)
    hidden = floats if head is HEAD else random.integers(0, 256, (1, CHUNK, 4)).astype(np.uint8)
    (whole,) = run(before.components["head_prompt"].model, {"hidden": hidden})
    (one,) = run(after.components["head_prompt"].model, {"hidden": hidden, "last_row": row})
    np.testing.assert_allclose(one, whole[:, tokens - 1 : tokens], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("checked")
def test_rounded_states_are_picked_on_their_levels() -> None:
    made = model(LEVELS)
    GatherLastToken(PADDING).run(made)
    assert lines(made.components["head_prompt"].graph) == [
        "values = DequantizeLinear (hidden, scale, zero)",
        "head_prompt.last_row:0 = Gather <axis = 1> (values, last_row)",
        "head_prompt.last_row.QuantizeLinear:0 = QuantizeLinear (head_prompt.last_row:0, scale, zero)",
        "head_prompt.last_row.DequantizeLinear:0 = "
        "DequantizeLinear (head_prompt.last_row.QuantizeLinear:0, scale, zero)",
        "logits = MatMul (head_prompt.last_row.DequantizeLinear:0, w)",
    ]


@pytest.mark.usefixtures("checked")
def test_a_decoder_that_is_not_cut_stays() -> None:
    made = bundle(component(EMBEDDING, Role.EMBEDDING, "embedding"), component(HEAD, name="head"))
    before = lines(made.components["head"].graph)
    GatherLastToken(PADDING).run(made)
    assert lines(made.components["head"].graph) == before
    assert made.journal[0].skipped[0].reason.startswith("there is no head of its own for prompts")
