"""A front graph computes nothing that its outputs do not depend on."""

import numpy as np
import pytest

from hvlc.graphs.bundle import Role
from hvlc.imaging.rule import PIXELS, SIZE
from hvlc.passes.vision.add_front import AddFront
from hvlc.passes.vision.drop_unread_pixels import DropUnreadPixels
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run
from tests.helpers.tiny import picture
from tests.imaging.rules import TINY

BEFORE = """
graph (uint8[h, w, 3] image, float[1] scale) => (float[1] used_scale, uint8[3, h, w] pixel_values)
   <float[1] one = {1}> {
   pixel_values = Transpose <perm = [2, 0, 1]> (image)
   pixels = Cast <to = 1> (pixel_values)
   shape = Shape (image)
   size = Cast <to = 1> (shape)
   used_scale = Identity (scale)
   unread = Add (scale, one)
}
"""


@pytest.mark.usefixtures("checked")
def test_unread_nodes_and_constants_go() -> None:
    made = bundle(component(BEFORE, Role.FRONT, "front"))
    DropUnreadPixels().run(made)
    graph = made.components["front"].graph
    assert lines(graph) == [
        "pixel_values = Transpose <perm = (2, 0, 1)> (image)",
        "used_scale = Identity (scale)",
    ]
    assert not graph.initializers
    assert made.journal[0].changed == 4


@pytest.mark.usefixtures("checked")
def test_other_components_stay() -> None:
    made = bundle(component(BEFORE, Role.VISION_ENCODER, "vision"))
    DropUnreadPixels().run(made)
    assert len(lines(made.components["vision"].graph)) == 6


@pytest.mark.parametrize("name", TINY)
def test_answers_stay_and_only_a_rule_that_reads_pixels_keeps_them(name: str) -> None:
    before, after = bundle(), bundle()
    for made in (before, after):
        AddFront(TINY[name]).run(made)
    DropUnreadPixels().run(after)
    kept = {node.name for node in after.components["front"].graph}
    assert kept & {PIXELS, SIZE} == ({PIXELS, SIZE} if name == "hypervl" else set())
    feeds = {
        "image": np.asarray(picture(90, 70)),
        "scale": np.array([0.8], np.float32),
        "max_visual_tokens": np.array([60], np.int64),
    }
    read = {value.name for value in after.components["front"].graph.inputs}
    assert read == set(feeds)
    pairs = (run(made.components["front"].model, feeds) for made in (before, after))
    for expected, found in zip(*pairs, strict=True):
        np.testing.assert_array_equal(found, expected)
