"""An embedding stage looks tokens up and leaves the images to the host."""

import numpy as np
import pytest

from hvlc.graphs.bundle import Role, Wire
from hvlc.passes.static.split_embedding import SplitEmbedding
from tests.helpers.graphs import bundle, component, lines, signature
from tests.helpers.sessions import run

BEFORE = """
graph (int64[1, s] input_ids, float[n, 4] image_features) => (float[1, s, 4] inputs_embeds)
   <float[5, 4] table = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, int64 image = {3}> {
      tokens = Gather <axis = 0> (table, input_ids)
      mask = Equal (input_ids, image)
      found = NonZero (mask)
      places = Transpose <perm = [1, 0]> (found)
      inputs_embeds = ScatterND (tokens, places, image_features)
}
"""
VISION = "graph (float[n, 4] x) => (float[n, 4] image_features) { image_features = Identity (x) }"


@pytest.mark.usefixtures("checked")
def test_the_merge_goes_with_its_wire_and_ids_are_narrow() -> None:
    made = bundle(component(VISION, Role.VISION_MERGER, "stitch"), component(BEFORE, Role.EMBEDDING, "embedding"))
    made.wires.append(Wire("stitch.image_features", "embedding.image_features"))
    SplitEmbedding().run(made)
    graph = made.components["embedding"].graph
    assert lines(graph) == ["inputs_embeds = Gather <axis = 0> (table, input_ids)"]
    assert signature(graph) == ["int32[1, s] input_ids", "=>", "float[1, s, 4] inputs_embeds"]
    assert set(graph.initializers) == {"table"}
    assert made.wires == []
    assert made.journal[0].changed == 2


def test_the_numbers_of_a_text_stay() -> None:
    before, after = (bundle(component(BEFORE, Role.EMBEDDING)) for _ in range(2))
    SplitEmbedding().run(after)
    ids = np.array([[0, 1, 2, 4]])
    nothing = {"image_features": np.zeros((0, 4), np.float32)}
    expected = run(before.components["graph"].model, {"input_ids": ids, **nothing})[0]
    found = run(after.components["graph"].model, {"input_ids": ids.astype(np.int32)})[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("checked")
def test_a_look_up_alone_gets_narrow_ids_only() -> None:
    text = "graph (int64[1, s] input_ids) => (float[1, s, 2] y) <float[1, 2] t = {0, 0}> { y = Gather (t, input_ids) }"
    made = bundle(component(text, Role.EMBEDDING))
    SplitEmbedding().run(made)
    assert signature(made.components["graph"].graph)[0] == "int32[1, s] input_ids"
    assert made.journal[0].changed == 1


@pytest.mark.usefixtures("checked")
def test_a_bundle_without_embedding_stays_untouched() -> None:
    made = bundle(component(VISION, Role.VISION_ENCODER))
    SplitEmbedding().run(made)
    assert made.journal[0].skipped[0].reason == "the tokens are looked up elsewhere"
