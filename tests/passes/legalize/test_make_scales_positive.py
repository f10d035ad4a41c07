"""Signs of scales and levels are turned together, where every level has a twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.passes.legalize.make_scales_positive import MakeScalesPositive
from tests.helpers.sessions import run
from tests.lint.texts import bundle_of, feeds, nodes_of, skips, with_int4

GRAPH = """
graph (float[3, 2] x) => (float[3, 4] y)
   <%s[2, 4] q = {%s}, float%s s = {%s}, %s z = {%s}> {
      [weight] w = DequantizeLinear <axis = 1> (q, s, z)
      [product] y = MatMul (x, w)
}
"""
PASS = MakeScalesPositive(frozenset({"product"}))


def text(levels: str, scales: str, dtype: str = "int8", zero: str = "0") -> str:
    vector = "," in scales
    zeros = ", ".join([zero] * 4) if vector else zero
    return GRAPH % (dtype, levels, "[4]" if vector else "", scales, dtype + ("[4]" if vector else ""), zeros)


@pytest.mark.parametrize("dtype", ["int8", "int4", "int16"])
@pytest.mark.usefixtures("checked")
def test_channels_are_turned(dtype: str) -> None:
    narrow = dtype == "int4"
    made = bundle_of(text("1, -2, 3, -8, 5, -6, 7, 4", "0.5, -1, -2, 3", "int8" if narrow else dtype))
    made = with_int4(made) if narrow else made
    PASS.run(made)
    assert nodes_of(made)[0] == "[weight] w = DequantizeLinear <axis = 1> (w.levels, w.scales, z)"
    constants = made.components["graph"].graph.initializers
    assert constants["w.levels"].const_value.numpy().astype(int).tolist() == [[1, 2, -3, -8], [5, 6, -7, 4]]
    assert constants["w.scales"].const_value.numpy().tolist() == [0.5, 1, 2, 3]
    assert set(constants) == {"w.levels", "w.scales", "z"}


@given(
    st.lists(st.integers(-127, 127), min_size=8, max_size=8),
    st.lists(st.sampled_from([-2.0, -0.25, 0.5, 3.0]), min_size=4, max_size=4),
)
def test_the_numbers_stay(levels: list[int], scales: list[float]) -> None:
    written = text(", ".join(map(str, levels)), ", ".join(map(str, scales)))
    models = [bundle_of(written) for _ in range(2)]
    PASS.run(models[1])
    before, after = (made.components["graph"].model for made in models)
    np.testing.assert_array_equal(*(run(model, feeds(before))[0] for model in (before, after)))


def test_the_comparison_sees_a_lost_sign() -> None:
    one, other = (bundle_of(text("1, 2, 3, 4, 5, 6, 7, 8", scales)) for scales in ("1, -1, 1, 1", "1, 1, 1, 1"))
    model = one.components["graph"].model
    assert not np.array_equal(run(model, feeds(model))[0], run(other.components["graph"].model, feeds(model))[0])


def test_one_scale_of_the_whole_matrix_is_turned_too() -> None:
    made = bundle_of(text("1, -2, 3, -4, 5, -6, 7, 8", "-0.5"))
    PASS.run(made)
    constants = made.components["graph"].graph.initializers
    assert constants["w.scales"].const_value.numpy().tolist() == 0.5
    assert constants["w.levels"].const_value.numpy().tolist() == [[-1, 2, -3, 4], [-5, 6, -7, -8]]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (text("1, -128, 3, 4, 5, 6, 7, 8", "1, -1, 1, 1"), "a level is the lowest, which has no positive twin"),
        (text("1, 2, 3, 4, 5, 6, 7, 8", "1, -1, 1, 1", "uint8"), "its integers have no sign"),
        (text("1, 2, 3, 4, 5, 6, 7, 8", "1, -1, 1, 1", zero="3"), "its zero point is not 0"),
        (
            text("1, 2, 3, 4, 5, 6, 7, 8", "1, -1, 1, 1")
            .replace("(float[3, 2] x)", "(float[3, 2] x, int8[2, 4] p)")
            .replace("(q, s, z)", "(p, s, z)"),
            "its integers are not constant",
        ),
        (
            text("1, 2, 3, 4, 5, 6, 7, 8", "1, -1, 1, 1")
            .replace("float[4] s", "float[1, 4] s")
            .replace("int8[4] z", "int8[1, 4] z")
            .replace("<axis = 1>", "<axis = 0, block_size = 2>"),
            "its scales are those of blocks",
        ),
    ],
)
@pytest.mark.usefixtures("checked")
def test_a_near_miss_stays_untouched_and_is_explained(written: str, reason: str) -> None:
    made = bundle_of(written)
    before = nodes_of(made)
    PASS.run(made)
    assert (nodes_of(made), skips(made)) == (before, [("weight", reason)])


def test_the_lowest_level_is_that_of_the_type() -> None:
    made = with_int4(bundle_of(text("1, -8, 3, 4, 5, 6, 7, 7", "1, -1, 1, 1")))
    PASS.run(made)
    assert skips(made) == [("weight", "a level is the lowest, which has no positive twin")]


@pytest.mark.parametrize("nodes", [{"product"}, {"other"}])
def test_others_stay(nodes: set[str]) -> None:
    scales = "1, 1, 1, 1" if "product" in nodes else "1, -1, 1, 1"
    made = bundle_of(text("1, 2, 3, 4, 5, 6, 7, 8", scales))
    before = nodes_of(made)
    MakeScalesPositive(frozenset(nodes)).run(made)
    assert (nodes_of(made), skips(made)) == (before, [])
