"""Attention is written out where the target has none, and only there."""

import numpy as np
import pytest

from hvlc.graphs.bundle import Role
from hvlc.passes.legalize.decompose_attention import DecomposeAttention
from hvlc.targets import load_target, target_for
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.lint.texts import feeds

REFUSES, TAKES, PARTIAL = (load_target(name) for name in ("coreml-ane", "cpu", "xnnpack"))
PLAIN = "q_num_heads = 2, kv_num_heads = 2, scale = 0.5"
GRAPH = """
graph (float[2, 5, 8] q, float[2, 3, 8] k, float[2, 3, 8] v, float[5, 3] mask) => (float[2, 5, 8] y)
{ [attend] %s }
"""
ATTENTION = GRAPH % f"y = Attention <{PLAIN}> (q, k, v)"
WRITTEN_OUT = [
    "attend.scaled:0 = Mul (q, attend.scale)",
    "attend.q_heads:0 = Reshape (attend.scaled:0, [0, 0, 2, -1])",
    "attend.k_heads:0 = Reshape (k, [0, 0, 2, -1])",
    "attend.v_heads:0 = Reshape (v, [0, 0, 2, -1])",
    "attend.q:0 = Transpose <perm = (0, 2, 1, 3)> (attend.q_heads:0)",
    "attend.k:0 = Transpose <perm = (0, 2, 3, 1)> (attend.k_heads:0)",
    "attend.v:0 = Transpose <perm = (0, 2, 1, 3)> (attend.v_heads:0)",
    "attend.scores:0 = MatMul (attend.q:0, attend.k:0)",
    "attend.softmax:0 = Softmax <axis = -1> (attend.scores:0)",
    "attend.attended:0 = MatMul (attend.softmax:0, attend.v:0)",
    "attend.rows:0 = Transpose <perm = (0, 2, 1, 3)> (attend.attended:0)",
    "y = Reshape (attend.rows:0, [0, 0, -1])",
]


def encoder(text: str):
    return bundle(component(text, Role.VISION_ENCODER))


@pytest.mark.usefixtures("checked")
def test_attention_is_written_out() -> None:
    made = encoder(ATTENTION)
    DecomposeAttention(REFUSES.takes_op).run(made)
    assert lines(made.components["graph"].graph) == WRITTEN_OUT
    assert made.journal[-1].changed == 1
    assert all(REFUSES.takes_op(node.op_type) for node in made.components["graph"].graph)


def difference(text: str, other: str) -> float:
    """Largest difference between what one graph computes and what another does once it is written out."""
    models = [encoder(t).components["graph"] for t in (text, other)]
    DecomposeAttention(REFUSES.takes_op).transform(models[1])
    given = feeds(models[0].model)
    first, second = (run(m.model, given)[0] for m in models)
    return float(np.abs(first - second).max())


def test_the_numbers_stay() -> None:
    assert difference(ATTENTION, ATTENTION) <= GRAPH_FLOAT32


@pytest.mark.parametrize(("old", "new"), [("scale = 0.5", "scale = 0.6"), ("_heads = 2", "_heads = 4")])
def test_the_comparison_sees_another_attention(old: str, new: str) -> None:
    assert difference(ATTENTION, ATTENTION.replace(old, new)) > 100 * GRAPH_FLOAT32


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (f"y = Attention <{PLAIN}> (q, k, v, mask)", "has a mask or a cache"),
        (f"y = Attention <{PLAIN}, is_causal = 1> (q, k, v)", "has is_causal"),
        (f"y = Attention <{PLAIN}, softcap = 2.0> (q, k, v)", "has softcap"),
        ("y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)", "its scale is not given"),
        ("y = Attention <q_num_heads = 2, kv_num_heads = 1, scale = 0.5> (q, k, v)", "keys have other heads"),
    ],
)
@pytest.mark.usefixtures("checked")
def test_other_attention_stays(node: str, reason: str) -> None:
    made = encoder(GRAPH % node)
    before = lines(made.components["graph"].graph)
    DecomposeAttention(REFUSES.takes_op).run(made)
    assert lines(made.components["graph"].graph) == before
    assert reason in made.journal[-1].skipped[0].reason


@pytest.mark.parametrize("target", [TAKES, PARTIAL], ids=lambda target: target.name)
def test_it_stays_where_it_is_taken(target) -> None:
    made = encoder(ATTENTION)
    DecomposeAttention(target_for(Role.VISION_ENCODER, target).takes_op).run(made)
    assert [n.op_type for n in made.components["graph"].graph] == ["Attention"]
    assert made.journal[-1].skipped[0].reason == "the target takes Attention"


def test_it_stays_where_its_parts_are_refused() -> None:
    target = load_target("webgpu").model_copy(update={"refused_ops": ("Attention", "Softmax")})
    made = encoder(ATTENTION)
    DecomposeAttention(target.takes_op).run(made)
    assert (made.journal[-1].changed, made.journal[-1].skipped[0].reason) == (0, "webgpu does not take Softmax")
