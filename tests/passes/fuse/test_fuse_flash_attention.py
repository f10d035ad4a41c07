"""Attention without a mask becomes the operator whose kernel holds no scores, and only where the target takes it."""

import numpy as np
import pytest

from hvlc.graphs.bundle import Role
from hvlc.passes.fuse.fuse_flash_attention import FuseFlashAttention
from hvlc.targets import load_target
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.lint.texts import feeds

TAKES, REFUSES = (load_target(name).takes_op for name in ("cpu", "qnn-sm8750"))
PLAIN = "q_num_heads = 2, kv_num_heads = 2, scale = 0.5"
GRAPH = """
graph (float[2, 5, 8] q, float[2, 3, 8] k, float[2, 3, 8] v, float[5, 3] mask) => (float[2, 5, 8] y)
{ [attend] %s }
"""
ATTENTION = GRAPH % f"y = Attention <{PLAIN}> (q, k, v)"


def encoder(text: str):
    return bundle(component(text, Role.VISION_ENCODER))


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("settings", [PLAIN, "q_num_heads = 2, kv_num_heads = 2"], ids=["scale", "no scale"])
def test_the_operator_is_another_and_the_numbers_stay(settings: str) -> None:
    text = GRAPH % f"y = Attention <{settings}> (q, k, v)"
    before, made = encoder(text), encoder(text)
    FuseFlashAttention(TAKES).run(made)
    (node,) = made.components["graph"].graph
    assert (node.domain, node.op_type, node.name) == ("com.microsoft", "MultiHeadAttention", "attend")
    assert made.journal[-1].changed == 1
    models = [b.components["graph"].model for b in (before, made)]
    given = feeds(models[0])
    wanted, found = (run(model, given)[0] for model in models)
    np.testing.assert_allclose(found, wanted, atol=GRAPH_FLOAT32)


def test_other_scales_and_heads_would_be_seen() -> None:
    first = encoder(ATTENTION).components["graph"].model
    for old, new in (("scale = 0.5", "scale = 0.6"), ("_heads = 2", "_heads = 4")):
        other = encoder(ATTENTION.replace(old, new))
        FuseFlashAttention(TAKES).run(other)
        given = feeds(first)
        assert np.abs(run(first, given)[0] - run(other.components["graph"].model, given)[0]).max() > 100 * GRAPH_FLOAT32


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (f"y = Attention <{PLAIN}> (q, k, v, mask)", "has a mask or a cache"),
        (f"y = Attention <{PLAIN}, is_causal = 1> (q, k, v)", "has is_causal"),
        ("y = Attention <q_num_heads = 2, kv_num_heads = 1, scale = 0.5> (q, k, v)", "has 2 heads of queries and 1"),
        ("y = Attention <scale = 0.5> (q, k, v)", "has 0 heads"),
    ],
)
def test_other_attention_stays(node: str, reason: str) -> None:
    made = encoder(GRAPH % node)
    before = lines(made.components["graph"].graph)
    FuseFlashAttention(TAKES).run(made)
    assert lines(made.components["graph"].graph) == before
    assert reason in made.journal[-1].skipped[0].reason


def test_it_stays_where_the_target_has_no_such_operator() -> None:
    made = encoder(ATTENTION)
    FuseFlashAttention(REFUSES).run(made)
    assert [n.op_type for n in made.components["graph"].graph] == ["Attention"]
    assert made.journal[-1].skipped[0].reason
