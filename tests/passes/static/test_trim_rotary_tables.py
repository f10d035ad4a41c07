"""Rotary tables end where the KV cache ends."""

import numpy as np
import pytest

from hvlc.passes.static.trim_rotary_tables import TrimRotaryTables
from hvlc.weights.lazy import LazyTensor
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run

ATTENTION = "com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1, do_rotary = 1>"
ROWS, CONTEXT = 12, 6
TABLES = ", ".join(f"float[{ROWS}, 8] {name} = {{{', '.join(['0'] * ROWS * 8)}}}" for name in ("cos", "sin"))
BEFORE = f"""
graph (float[1, s, 16] x, float[1, 1, {CONTEXT}, 16] pk, float[1, 1, {CONTEXT}, 16] pv, int32[1, 1] last,
       int32[1] most)
   => (float[1, s, 16] z, float[1, 1, {CONTEXT}, 16] k1, float[1, 1, {CONTEXT}, 16] v1,
       float[1, 1, {CONTEXT}, 16] k2, float[1, 1, {CONTEXT}, 16] v2)
   <{TABLES}> {{
      y, k1, v1 = {ATTENTION} (x, x, x, pk, pv, last, most, cos, sin)
      z, k2, v2 = {ATTENTION} (y, x, x, pk, pv, last, most, cos, sin)
}}
"""
PLAIN = BEFORE.replace(", cos, sin)", ")").replace("do_rotary = 1", "do_rotary = 0").replace(f"<{TABLES}> {{", "{")


def rows(made: object, name: str) -> int:
    return int(made.components["graph"].graph.initializers[name].const_value.shape[0])  # type: ignore[attr-defined]


@pytest.mark.usefixtures("checked")
def test_tables_are_cut_once_and_the_nodes_stay() -> None:
    made, before = bundle(component(BEFORE)), bundle(component(BEFORE))
    graph = made.components["graph"].graph
    TrimRotaryTables(CONTEXT).run(made)
    assert (rows(made, "cos"), rows(made, "sin")) == (CONTEXT, CONTEXT)
    assert graph.initializers["cos"].shape == [CONTEXT, 8]
    assert lines(graph) == lines(before.components["graph"].graph)
    assert made.journal[0].changed == 2  # tables, though four inputs read them
    for name in ("cos", "sin"):
        kept = graph.initializers[name].const_value
        assert isinstance(kept, LazyTensor)  # parts that share it store it once
        whole = before.components["graph"].graph.initializers[name].const_value
        assert kept is not None
        assert whole is not None
        np.testing.assert_array_equal(kept.numpy(), whole.numpy()[:CONTEXT])


def test_the_numbers_stay_up_to_the_last_position() -> None:
    made, before = bundle(component(BEFORE)), bundle(component(BEFORE))
    TrimRotaryTables(CONTEXT).run(made)
    random = np.random.default_rng(0)
    for position in (1, CONTEXT - 1):
        feeds = {n: random.normal(size=(1, 1, CONTEXT, 16)).astype(np.float32) for n in ("pk", "pv")}
        feeds |= {"x": random.normal(size=(1, 1, 16)).astype(np.float32), "last": np.array([[position]], np.int32)}
        feeds |= {"most": np.array([CONTEXT], np.int32)}
        one, other = (run(b.components["graph"].model, feeds) for b in (before, made))
        for expected, found in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(("text", "skipped"), [(BEFORE, []), (PLAIN, ["rotates with no table"])])
def test_short_tables_and_decoders_without_any_stay(text: str, skipped: list[str]) -> None:
    made = bundle(component(text))
    TrimRotaryTables(ROWS).run(made)
    assert made.journal[0].changed == 0
    assert [skip.reason for skip in made.journal[0].skipped] == skipped
    assert all(rows(made, name) == ROWS for name in made.components["graph"].graph.initializers)
