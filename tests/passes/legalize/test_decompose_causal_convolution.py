"""Causal convolutions with a state are taken apart where the target has none, and only there."""

from collections.abc import Callable

import numpy as np
import pytest

from hvlc.passes.legalize.decompose_causal_convolution import DecomposeCausalConvolution
from hvlc.targets import Target, load_target
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.lint.texts import bundle_of, feeds, nodes_of, skips

CPU, NPU = load_target("cpu"), load_target("qnn-sm8750")
ZEROS = "{" + ", ".join("0" * 12) + "}"
GRAPH = f"""
graph (float[2, 4, 6] x, float[2, 4, 2] past) => (float[2, 4, 6] y, float[2, 4, 2] present)
   <float[4, 1, 3] kernel = {ZEROS}, float[4] bias = {{0, 0, 0, 0}}> {{
      [conv] y, present = com.microsoft.CausalConvWithState %s
}}
"""
JOINED = "[conv.with_past] conv.with_past:0 = Concat <axis = 2> (past, x)"
PRESENT = "[conv.present] present = Slice <> (conv.with_past:0, -2_dims, 9223372036854775807_dims, 2_dims)"
CASES = {
    '<activation: string = "none"> (x, kernel, bias, past)': [
        JOINED,
        "[conv] y = Conv <group = 4, kernel_shape = (3,)> (conv.with_past:0, kernel, bias)",
        PRESENT,
    ],
    '(x, kernel, "", past)': [
        JOINED,
        "[conv] y = Conv <group = 4, kernel_shape = (3,)> (conv.with_past:0, kernel)",
        PRESENT,
    ],
    '<activation: string = "silu"> (x, kernel, bias, past)': [
        JOINED,
        "[conv.convolved] conv.convolved:0 = Conv <group = 4, kernel_shape = (3,)> (conv.with_past:0, kernel, bias)",
        "[conv.sigmoid] conv.sigmoid:0 = Sigmoid <> (conv.convolved:0)",
        "[conv] y = Mul <> (conv.convolved:0, conv.sigmoid:0)",
        PRESENT,
    ],
}


@pytest.mark.parametrize("node", CASES)
@pytest.mark.usefixtures("checked")
def test_the_convolution_is_taken_apart(node: str) -> None:
    made = bundle_of(GRAPH % node)
    DecomposeCausalConvolution(NPU.takes_op).run(made)
    assert nodes_of(made) == CASES[node]
    assert made.journal[-1].changed == 1


@pytest.mark.parametrize("node", CASES)
@pytest.mark.parametrize("length", [6, 1], ids=["a prompt", "a token, shorter than the state"])
def test_the_numbers_stay(node: str, length: int) -> None:
    text = (GRAPH % node).replace("2, 4, 6", f"2, 4, {length}")
    before, after = bundle_of(text), bundle_of(text)
    DecomposeCausalConvolution(NPU.takes_op).run(after)
    models = [b.components["graph"].model for b in (before, after)]
    expected, found = (run(model, feeds(models[0])) for model in models)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=GRAPH_FLOAT32, rtol=0)


def test_the_comparison_sees_a_lost_state() -> None:
    model = bundle_of(GRAPH % next(iter(CASES))).components["graph"].model
    given = feeds(model)
    without = given | {"past": np.zeros_like(given["past"])}
    assert np.abs(run(model, given)[0] - run(model, without)[0]).max() > 100 * GRAPH_FLOAT32


Change = Callable[[str], str]
NEAR: dict[str, tuple[str, Change, str]] = {
    "no state": ("(x, kernel, bias)", str, "has no state before it"),
    "windows of states": (
        "<state_window: int = 2> (x, kernel, bias, past)",
        str,
        "has state_window",
    ),
    "another activation": (
        '<activation: string = "relu"> (x, kernel, bias, past)',
        str,
        "its activation is relu",
    ),
    "a given kernel": (
        "(x, given, bias, past)",
        lambda text: text.replace("2] past)", "2] past, float[4, 1, 3] given)"),
        "its kernel is not a constant of three dimensions",
    ),
}


@pytest.mark.parametrize("case", NEAR)
def test_a_near_miss_stays_untouched_and_is_explained(case: str) -> None:
    node, change, reason = NEAR[case]
    made = bundle_of(change(GRAPH % node))
    before = nodes_of(made)
    DecomposeCausalConvolution(NPU.takes_op).run(made)
    assert nodes_of(made) == before
    assert skips(made) == [("conv", reason)]


def test_a_target_that_takes_neither_form_keeps_the_fused_one() -> None:
    made = bundle_of(GRAPH % next(iter(CASES)))
    target = Target.model_validate(
        CPU.model_dump() | {"name": "old", "contrib_ops": ("MatMulNBits",), "operators": {}, "refused_ops": ("Conv",)}
    )
    DecomposeCausalConvolution(target.takes_op).run(made)
    assert skips(made) == [("conv", "old does not take Conv")]


def test_a_target_that_takes_it_keeps_it() -> None:
    made = bundle_of(GRAPH % next(iter(CASES)))
    DecomposeCausalConvolution(CPU.takes_op).run(made)
    assert (made.journal[-1].changed, skips(made)) == (0, [])
