"""onnxruntime's rotary embedding becomes the standard one where that says the same."""

import numpy as np
import pytest

from hvlc.passes.legalize.replace_contrib_rotary import ReplaceContribRotary
from hvlc.targets import load_target
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.lint.texts import bundle_of, feeds, nodes_of, skips

CPU, NPU = load_target("cpu"), load_target("qnn-sm8750")
GRAPH = """
graph (float[1, 5, 16] x, int64[1, 5] positions) => (float[1, 5, 16] turned)
   <float[8, 2] cosines = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
    float[8, 2] sines = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> {
      [rotary] turned = com.microsoft.RotaryEmbedding <NONE> (x, positions, cosines, sines)
}
"""
FLAT = GRAPH.replace("<NONE> ", "")
NAMED = GRAPH.replace("NONE", "num_heads = 4, interleaved = 1")
HEADS = FLAT.replace("float[1, 5, 16]", "float[1, 4, 5, 4]")
PARTIAL = GRAPH.replace("NONE", "num_heads = 2, rotary_embedding_dim = 4")
INPUTS = "(x, cosines, sines, positions)"
EXPECTED = {
    FLAT: f"RotaryEmbedding <interleaved = 0, rotary_embedding_dim = 0, num_heads = 4> {INPUTS}",
    NAMED: f"RotaryEmbedding <interleaved = 1, rotary_embedding_dim = 0, num_heads = 4> {INPUTS}",
    HEADS: f"RotaryEmbedding <interleaved = 0, rotary_embedding_dim = 0> {INPUTS}",
    PARTIAL: f"RotaryEmbedding <interleaved = 0, rotary_embedding_dim = 4, num_heads = 2> {INPUTS}",
}
FIXED = FLAT.replace(", int64[1, 5] positions", "").replace("   <", "   <int64[1, 5] positions = {3, 0, 7, 1, 2}, ")
EXPECTED[FIXED] = EXPECTED[FLAT].replace(INPUTS, "(x, rotary.cosines, rotary.sines)")
NAMES = pytest.mark.parametrize("text", EXPECTED, ids=["flat", "named", "heads", "partial", "fixed positions"])


@NAMES
@pytest.mark.usefixtures("checked")
def test_the_standard_operator_takes_its_place(text: str) -> None:
    made = bundle_of(text)
    ReplaceContribRotary(NPU.takes_op).run(made)
    assert nodes_of(made) == [f"[rotary] turned = {EXPECTED[text]}"]


@NAMES
def test_the_numbers_stay(text: str) -> None:
    models = [bundle_of(text) for _ in range(2)]
    ReplaceContribRotary(NPU.takes_op).run(models[1])
    before, after = (made.components["graph"].model for made in models)
    given = feeds(before)
    np.testing.assert_allclose(run(after, given)[0], run(before, given)[0], atol=GRAPH_FLOAT32, rtol=0)


def test_the_comparison_sees_swapped_tables() -> None:
    one, other = (
        bundle_of(text).components["graph"].model for text in (FLAT, FLAT.replace("cosines, sines)", "sines, cosines)"))
    )
    given = feeds(one)
    assert np.abs(run(one, given)[0] - run(other, given)[0]).max() > 100 * GRAPH_FLOAT32


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        (FLAT, 21, "RotaryEmbedding needs opset 23, the model has 21"),
        (GRAPH.replace("NONE", "scale = 0.5"), 23, "it scales or packs batches"),
        (FLAT.replace("int64[1, 5]", "int64[1]"), 23, "its positions are one offset, not a position for each token"),
        (GRAPH.replace("NONE", "rotary_embedding_dim = 4"), 23, "its number of heads is unknown"),
    ],
    ids=["old opset", "scaled", "offset", "heads unknown"],
)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(text: str, opset: int, reason: str) -> None:
    made = bundle_of(text, opset)
    before = nodes_of(made)
    ReplaceContribRotary(NPU.takes_op).run(made)
    assert (nodes_of(made), skips(made)) == (before, [("rotary", reason)])


def test_the_standard_operator_is_left_alone() -> None:
    made = bundle_of(FLAT)
    ReplaceContribRotary(NPU.takes_op).run(made)
    ReplaceContribRotary(CPU.takes_op).run(made)
    assert made.journal[-1].changed == 0
