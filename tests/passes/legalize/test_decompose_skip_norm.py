"""onnxruntime's residual norms are taken apart where the target has none, and only there."""

import numpy as np
import pytest

from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from hvlc.passes.legalize.decompose_skip_norm import DecomposeSkipNorm
from hvlc.targets import Target, load_target
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.lint.texts import bundle_of, feeds, nodes_of, skips

CPU, NPU = load_target("cpu"), load_target("qnn-sm8750")
ZEROS = "{" + ", ".join("0" * 8) + "}"
GRAPH = f"""
graph (float[1, 4, 8] x, float[1, 4, 8] y) => (float[1, 4, 8] normed, float[1, 4, 8] total)
   <float[8] scale = {ZEROS}, float[8] shift = {ZEROS}, float[8] bias = {ZEROS}> {{
      [norm] normed, "", "", total = com.microsoft.%s
}}
"""
CASES = {
    "SkipSimplifiedLayerNormalization <epsilon = 0.001> (x, y, scale)": [
        "[norm.add] total = Add <> (x, y)",
        "[norm] normed = RMSNormalization <axis = -1, epsilon = 0.001> (total, scale)",
    ],
    "SkipSimplifiedLayerNormalization <epsilon = 0.001> (x, y, scale, bias)": [
        "[norm.add] norm.add.sum = Add <> (x, y)",
        "[norm.add_1] total = Add <> (norm.add.sum, bias)",
        "[norm] normed = RMSNormalization <axis = -1, epsilon = 0.001> (total, scale)",
    ],
    "SkipLayerNormalization (x, y, scale, shift)": [
        "[norm.add] total = Add <> (x, y)",
        "[norm] normed = LayerNormalization <axis = -1, epsilon = 0.0> (total, scale, shift)",
    ],
    'SkipLayerNormalization <epsilon = 0.001> (x, y, scale, "", bias)': [
        "[norm.add] norm.add.sum = Add <> (x, y)",
        "[norm.add_1] total = Add <> (norm.add.sum, bias)",
        "[norm] normed = LayerNormalization <axis = -1, epsilon = 0.001> (total, scale)",
    ],
}


@pytest.mark.parametrize("node", CASES)
@pytest.mark.usefixtures("checked")
def test_the_norm_is_taken_apart(node: str) -> None:
    made = bundle_of(GRAPH % node)
    DecomposeSkipNorm(NPU.takes_op).run(made)
    assert nodes_of(made) == CASES[node]
    assert made.journal[-1].changed == 1


@pytest.mark.parametrize("node", CASES)
def test_the_numbers_stay(node: str) -> None:
    before, after = bundle_of(GRAPH % node), bundle_of(GRAPH % node)
    DecomposeSkipNorm(NPU.takes_op).run(after)
    models = [b.components["graph"].model for b in (before, after)]
    expected, found = (run(model, feeds(models[0])) for model in models)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=GRAPH_FLOAT32, rtol=0)


def test_the_comparison_sees_a_lost_bias() -> None:
    with_bias, without = [n for n in CASES if n.startswith("SkipSimplified")][::-1]
    models = [bundle_of(GRAPH % node).components["graph"].model for node in (with_bias, without)]
    expected, found = (run(model, feeds(models[0]))[0] for model in models)
    assert np.abs(expected - found).max() > 100 * GRAPH_FLOAT32


def test_it_undoes_the_fusion() -> None:
    made = bundle_of(GRAPH % next(iter(CASES)))
    DecomposeSkipNorm(NPU.takes_op).run(made)
    apart = nodes_of(made)
    FuseSkipNorm(lambda role: CPU.takes_op).run(made)
    assert [n.split("=")[1].split()[0] for n in nodes_of(made)] == ["com.microsoft.SkipSimplifiedLayerNormalization"]
    DecomposeSkipNorm(NPU.takes_op).run(made)
    assert [n.rpartition("]")[2] for n in nodes_of(made)] == [n.rpartition("]")[2] for n in apart]


@pytest.mark.parametrize(
    ("change", "opset", "reason"),
    [
        (lambda text: text, 21, "RMSNormalization needs opset 23, the model has 21"),
        (
            lambda text: text.replace('normed, "", ""', 'normed, mean, ""').replace(
                "total)\n", "total, float[1, 4, 1] mean)\n"
            ),
            23,
            "its mean or variance is read",
        ),
    ],
)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(change, opset: int, reason: str) -> None:
    made = bundle_of(change(GRAPH % next(iter(CASES))), opset)
    before = nodes_of(made)
    DecomposeSkipNorm(NPU.takes_op).run(made)
    assert nodes_of(made) == before
    assert skips(made) == [("norm", reason)]


def test_a_target_that_takes_neither_form_keeps_the_fused_one() -> None:
    made = bundle_of(GRAPH % next(iter(CASES)))
    target = Target.model_validate(
        CPU.model_dump() | {"name": "old", "contrib_ops": ("MatMulNBits",), "refused_ops": ("Add",)}
    )
    DecomposeSkipNorm(target.takes_op).run(made)
    assert skips(made) == [("norm", "old does not take Add")]


def test_a_target_that_takes_it_keeps_it() -> None:
    made = bundle_of(GRAPH % next(iter(CASES)))
    DecomposeSkipNorm(CPU.takes_op).run(made)
    assert (made.journal[-1].changed, skips(made)) == (0, [])
