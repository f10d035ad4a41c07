"""Every dimension gets one number; a decoder's parts become one graph for the prompt and one for a token."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.bundle import Bundle, Role, Wire
from hvlc.graphs.placement import Phase
from hvlc.passes.static.fix_shapes import FixShapes, Piece
from tests.helpers.graphs import bundle, component, lines, signature
from tests.helpers.sessions import run

ENCODER = """
graph (float[tiles, 2, 6] pixel_values) => (float[tiles, 3, 4] tile_features)
   <int64[3] dims = {-1, 3, 4}> { tile_features = Reshape (pixel_values, dims) }
"""
EMBEDDING = """
graph (int32[batch, sequence] input_ids) => (float[batch, sequence, 4] inputs_embeds)
   <float[1, 4] t = {0, 0, 0, 0}> { inputs_embeds = Gather (t, input_ids) }
"""
PART = """
graph (float[batch, sequence, 4] inputs_embeds, float[batch, 1, past, 4] past_key)
   => (float[batch, sequence, 4] hidden, float[batch, 1, total, 4] key)
   <float[4, 4] w = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> {
      key = Identity (past_key)
      made = MatMul (inputs_embeds, w)
      hidden = Add (inputs_embeds, made)
}
"""
HEAD = "graph (float[batch, sequence, 4] hidden) => (float[batch, sequence, 4] logits) { logits = Identity (hidden) }"


def model() -> Bundle:
    made = bundle(
        component(ENCODER, Role.VISION_ENCODER, "vision"),
        component(EMBEDDING, Role.EMBEDDING, "embedding"),
        component(PART, name="decoder_1"),
        component(HEAD, name="head"),
    )
    made.wires += [
        Wire("embedding.inputs_embeds", "decoder_1.inputs_embeds"),
        Wire("decoder_1.hidden", "head.hidden"),
    ]
    return made


@pytest.mark.usefixtures("checked")
def test_every_dimension_is_a_number_where_an_npu_may_run() -> None:
    made = model()
    FixShapes(8, 32).run(made)
    names = ["vision", "embedding", "decoder_1_prompt", "decoder_1_token", "head_prompt", "head_token"]
    assert list(made.components) == names
    found = {name: signature(component.graph) for name, component in made.components.items()}
    assert found["vision"] == ["float[1, 2, 6] pixel_values", "=>", "float[1, 3, 4] tile_features"]
    assert found["decoder_1_prompt"] == [
        "float[1, 8, 4] inputs_embeds",
        "float[1, 1, 32, 4] past_key",
        "=>",
        "float[1, 8, 4] hidden",
        "float[1, 1, 32, 4] key",
    ]
    assert found["decoder_1_token"][0] == "float[1, 1, 4] inputs_embeds"
    assert found["embedding"][0] == "int32[batch, sequence] input_ids"
    phases = [component.phase for component in made.components.values()]
    assert phases == [Phase.ALWAYS, Phase.ALWAYS, *[Phase.PROMPT, Phase.TOKEN] * 2]
    (entry,) = made.journal
    assert (entry.changed, [skip.where for skip in entry.skipped]) == (3, ["embedding"])


def test_values_between_say_their_shapes() -> None:
    made = model()
    FixShapes(8, 32).run(made)
    node = next(n for n in made.components["decoder_1_prompt"].graph if n.op_type == "MatMul")
    assert (node.outputs[0].shape, node.outputs[0].dtype) == (ir.Shape([1, 8, 4]), ir.DataType.FLOAT)


def test_copies_share_their_weights_and_their_wires() -> None:
    made = model()
    FixShapes(8, 32).run(made)
    weights = [made.components[f"decoder_1_{phase}"].graph.initializers["w"] for phase in ("prompt", "token")]
    assert weights[0].const_value is weights[1].const_value
    assert {(wire.source.split(".")[0], wire.target.split(".")[0]) for wire in made.wires} == {
        ("embedding", "decoder_1_prompt"),
        ("embedding", "decoder_1_token"),
        ("decoder_1_prompt", "head_prompt"),
        ("decoder_1_token", "head_token"),
    }


def test_the_numbers_stay() -> None:
    before, after = model(), model()
    FixShapes(3, 6).run(after)
    random = np.random.default_rng(1)
    past = {"past_key": random.normal(size=(1, 1, 6, 4)).astype(np.float32)}
    for name, tokens in (("decoder_1_prompt", 3), ("decoder_1_token", 1)):
        feeds = {"inputs_embeds": random.normal(size=(1, tokens, 4)).astype(np.float32), **past}
        one, other = (run(m.components[n].model, feeds) for m, n in ((before, "decoder_1"), (after, name)))
        for expected, found in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert lines(after.components["decoder_1_token"].graph) == lines(before.components["decoder_1"].graph)


@pytest.mark.usefixtures("checked")
def test_what_is_fixed_already_stays() -> None:
    made = bundle(component(ENCODER.replace("tiles", "1"), Role.VISION_ENCODER))
    FixShapes(8, 32).run(made)
    assert made.journal[0].changed == 0


@pytest.mark.parametrize(("chunk", "context"), [(0, 8), (8, 4), (8, 20)])
def test_a_context_is_whole_chunks(chunk: int, context: int) -> None:
    with pytest.raises(ValueError, match="not a whole number of chunks"):
        FixShapes(chunk, context)


PIECES = """
graph (float[1, 2, piece_height, piece_width] pixel_values) => (float[1, tokens, 2] tile_features)
   <int64[3] dims = {1, 2, -1}> {
      flat = Reshape (pixel_values, dims)
      tile_features = Transpose <perm = [0, 2, 1]> (flat)
}
"""


@pytest.mark.usefixtures("checked")
def test_an_encoder_of_any_shape_becomes_one_for_each_piece() -> None:
    made = bundle(
        component(
            "graph (float[n] x) => (float[1, 2, h, w] pixel_values) <int64[4] d = {1, 2, 2, -1}> "
            "{ pixel_values = Reshape (x, d) }",
            Role.FRONT,
            "front",
        ),
        component(PIECES, Role.VISION_ENCODER, "vision_main"),
    )
    made.wires.append(Wire("front.pixel_values", "vision_main.pixel_values"))
    before = made.components["vision_main"].model
    FixShapes(8, 8, pieces=(Piece(4, 6, 24), Piece(2, 2, 4))).run(made)
    assert list(made.components) == ["front", "vision_main_4x6", "vision_main_2x2"]
    assert [wire.target for wire in made.wires] == ["vision_main_4x6.pixel_values", "vision_main_2x2.pixel_values"]
    found = made.components["vision_main_4x6"]
    assert signature(found.graph) == ["float[1, 2, 4, 6] pixel_values", "=>", "float[1, 24, 2] tile_features"]
    assert found.data_group == made.components["vision_main_2x2"].data_group
    pixels = {"pixel_values": np.random.default_rng(0).normal(size=(1, 2, 4, 6)).astype(np.float32)}
    np.testing.assert_array_equal(run(found.model, pixels)[0], run(before, pixels)[0])
