"""Gemm becomes MatMul and Add where nothing is transposed or scaled, and only in the nodes that were named."""

import numpy as np
import pytest

from hvlc.passes.legalize.gemm_to_matmul_add import GemmToMatMulAdd
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.lint.texts import bundle_of, feeds, nodes_of, skips

GRAPH = """
graph (float[4, 2] x) => (float[4, 3] y) <float[2, 3] w = {0, 0, 0, 0, 0, 0}, float[3] c = {0, 0, 0}> {
      [gemm] y = Gemm %s
}
"""
PLAIN, BIASED = GRAPH % "<alpha = 1.0> (x, w)", GRAPH % "(x, w, c)"
EXPECTED = {
    PLAIN: ["[gemm] y = MatMul <> (x, w)"],
    BIASED: ["[gemm] gemm.product = MatMul <> (x, w)", "[gemm.bias] y = Add <> (gemm.product, c)"],
}
PASS = GemmToMatMulAdd(frozenset({"gemm"}))
FORMS = pytest.mark.parametrize("text", EXPECTED, ids=["plain", "biased"])


@FORMS
@pytest.mark.usefixtures("checked")
def test_it_is_spelled_out(text: str) -> None:
    made = bundle_of(text)
    PASS.run(made)
    assert nodes_of(made) == EXPECTED[text]


@FORMS
def test_the_numbers_stay(text: str) -> None:
    models = [bundle_of(text) for _ in range(2)]
    PASS.run(models[1])
    before, after = (made.components["graph"].model for made in models)
    given = feeds(before)
    np.testing.assert_allclose(run(after, given)[0], run(before, given)[0], atol=GRAPH_FLOAT32, rtol=0)


def test_the_comparison_sees_a_lost_bias() -> None:
    one, other = (bundle_of(text).components["graph"].model for text in (PLAIN, BIASED))
    assert np.abs(run(one, feeds(one))[0] - run(other, feeds(one))[0]).max() > 100 * GRAPH_FLOAT32


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GRAPH % "<alpha = 0.5> (x, w)", "it scales the product or the bias"),
        (GRAPH % "<beta = 2.0> (x, w, c)", "it scales the product or the bias"),
        ((GRAPH % "<transB = 1> (x, w)").replace("float[2, 3]", "float[3, 2]"), "it transposes a matrix"),
        ((GRAPH % "<transA = 1> (x, w)").replace("float[4, 2]", "float[2, 4]"), "it transposes a matrix"),
    ],
)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(text: str, reason: str) -> None:
    made = bundle_of(text)
    before = nodes_of(made)
    PASS.run(made)
    assert (nodes_of(made), skips(made)) == (before, [("gemm", reason)])


def test_other_nodes_are_left_alone() -> None:
    made = bundle_of(PLAIN)
    GemmToMatMulAdd(frozenset({"another"})).run(made)
    assert (made.journal[-1].changed, skips(made)) == (0, [])
