"""A window that the whole KV cache fits into goes; a shorter one stays, and says so."""

import numpy as np
import pytest

from hvlc.passes.static.drop_windows import DropWindows
from tests.helpers.graphs import bundle, component, lines
from tests.helpers.sessions import run

CONTEXT, WINDOW = 6, 4
BEFORE = f"""
graph (float[1, s, 16] x, float[1, 1, {CONTEXT}, 16] pk, float[1, 1, {CONTEXT}, 16] pv, int32[1, 1] last,
       int32[1] most)
   => (float[1, s, 16] y, float[1, 1, {CONTEXT}, 16] k, float[1, 1, {CONTEXT}, 16] v) {{
      y, k, v = com.microsoft.GroupQueryAttention
         <num_heads = 1, kv_num_heads = 1, do_rotary = 0, local_window_size = {WINDOW}>
         (x, x, x, pk, pv, last, most)
}}
"""


def answers(model: object, last: int) -> np.ndarray:
    random = np.random.default_rng(last)
    feeds = {n: random.normal(size=(1, 1, CONTEXT, 16)).astype(np.float32) for n in ("pk", "pv")}
    feeds |= {"x": random.normal(size=(1, 1, 16)).astype(np.float32), "last": np.array([[last]], np.int32)}
    return run(model.components["graph"].model, feeds | {"most": np.array([CONTEXT], np.int32)})[0]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("checked")
def test_a_window_no_shorter_than_the_cache_goes() -> None:
    made = bundle(component(BEFORE))
    DropWindows(WINDOW).run(made)
    assert lines(made.components["graph"].graph) == [
        "y, k, v = com.microsoft.GroupQueryAttention <do_rotary = 0, kv_num_heads = 1, num_heads = 1> "
        "(x, x, x, pk, pv, last, most)"
    ]


def test_positions_inside_the_window_see_the_same_without_it_and_one_more_does_not() -> None:
    before, after = bundle(component(BEFORE)), bundle(component(BEFORE))
    DropWindows(WINDOW).run(after)
    for last in range(WINDOW):  # every position of a cache of that length
        np.testing.assert_array_equal(answers(after, last), answers(before, last))
    assert np.abs(answers(after, WINDOW) - answers(before, WINDOW)).max() > 1e-3


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        (BEFORE, [f"sees {WINDOW} of {CONTEXT} positions"]),
        (BEFORE.replace(f", local_window_size = {WINDOW}", ""), []),
    ],
)
def test_a_shorter_window_and_none_stay(text: str, skipped: list[str]) -> None:
    made = bundle(component(text))
    before = lines(made.components["graph"].graph)
    DropWindows(CONTEXT).run(made)
    assert lines(made.components["graph"].graph) == before
    assert [skip.reason for skip in made.journal[0].skipped] == skipped
