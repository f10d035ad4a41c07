"""Attention is told its lengths instead of counting them in a mask."""

import numpy as np
import pytest

from hvlc.passes.static.replace_mask_with_lengths import ReplaceMaskWithLengths
from tests.helpers.graphs import bundle, component, lines, signature
from tests.helpers.sessions import run

ATTENTION = "<num_heads = 2, kv_num_heads = 1, do_rotary = 0>"
BEFORE = f"""
graph (float[1, s, 32] q, float[1, s, 16] k, float[1, s, 16] v, int64[1, total] attention_mask,
       float[1, 1, past, 16] past_key, float[1, 1, past, 16] past_value)
   => (float[1, s, 32] y, float[1, 1, total, 16] key, float[1, 1, total, 16] value)
   <int64[1] one = {{1}}, int64 last = {{1}}> {{
      counted = ReduceSum <keepdims = 0> (attention_mask, one)
      index = Sub (counted, one)
      lengths = Cast <to = 6> (index)
      shape = Shape (attention_mask)
      most = Gather <axis = 0> (shape, last)
      total32 = Cast <to = 6> (most)
      y, key, value = com.microsoft.GroupQueryAttention {ATTENTION} (q, k, v, past_key, past_value, lengths, total32)
}}
"""
AFTER = [
    "y, key, value = com.microsoft.GroupQueryAttention <do_rotary = 0, kv_num_heads = 1, num_heads = 2> "
    "(q, k, v, past_key, past_value, past_seq_len, total_seq_len)"
]


@pytest.mark.usefixtures("checked")
def test_the_mask_and_all_that_counts_in_it_goes() -> None:
    made = bundle(component(BEFORE))
    ReplaceMaskWithLengths().run(made)
    graph = made.components["graph"].graph
    assert lines(graph) == AFTER
    assert signature(graph)[3:7] == [
        "float[1, 1, past, 16] past_key",
        "float[1, 1, past, 16] past_value",
        "int32[1, 1] past_seq_len",
        "int32[1] total_seq_len",
    ]
    assert [(e.changed, e.skipped) for e in made.journal] == [(1, ())]


def test_the_numbers_stay() -> None:
    random, past, new = np.random.default_rng(0), 3, 2
    widths = {"q": (1, new, 32), "k": (1, new, 16), "v": (1, new, 16)}
    feeds = {name: random.normal(size=dims).astype(np.float32) for name, dims in widths.items()}
    feeds |= {n: random.normal(size=(1, 1, past, 16)).astype(np.float32) for n in ("past_key", "past_value")}
    before, after = bundle(component(BEFORE)), bundle(component(BEFORE))
    ReplaceMaskWithLengths().run(after)
    mask = {"attention_mask": np.ones((1, past + new), np.int64)}
    lengths = {
        "past_seq_len": np.array([[past + new - 1]], np.int32),
        "total_seq_len": np.array([past + new], np.int32),
    }
    expected = run(before.components["graph"].model, feeds | mask)
    for one, other in zip(expected, run(after.components["graph"].model, feeds | lengths), strict=True):
        np.testing.assert_array_equal(one, other)
    shorter = lengths | {"past_seq_len": np.array([[past + new - 2]], np.int32)}
    assert np.abs(run(after.components["graph"].model, feeds | shorter)[0] - expected[0]).max() > 1e-3


@pytest.mark.usefixtures("checked")
def test_a_mask_that_others_read_stays() -> None:
    text = BEFORE.replace("=> (", "=> (int64[1, total] seen, ").replace(
        "counted =", "seen = Identity (attention_mask)\n counted ="
    )
    made = bundle(component(text))
    ReplaceMaskWithLengths().run(made)
    assert "attention_mask" in [v.name for v in made.components["graph"].graph.inputs]
    assert made.journal[0].skipped[0].reason == "other nodes read it too"


@pytest.mark.usefixtures("checked")
def test_a_decoder_without_mask_stays_untouched() -> None:
    made = bundle(component("graph (float[1, 4] x) => (float[1, 4] y) { y = Identity (x) }"))
    ReplaceMaskWithLengths().run(made)
    assert made.journal[0].skipped[0].reason == "has no attention_mask"
