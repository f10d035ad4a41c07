"""Written out, grouped-query attention computes what onnxruntime's own operator computes, in float and in int8."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.errors import TargetError
from hvlc.graphs.builder import LAST_INDEX, MICROSOFT, MOST_TOKENS, GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.passes.legalize.decompose_group_query_attention import DecomposeGroupQueryAttention
from hvlc.passes.quantize.quantize_kv_cache import QuantizeKVCache
from hvlc.targets import Target, load_target
from hvlc.weights.lazy import Constant
from tests.helpers.graphs import bundle, component, lines, signature
from tests.helpers.sessions import OPTIMIZATIONS, run
from tests.helpers.tolerances import GRAPH_FLOAT32

HEADS, KV_HEADS, ROOM, CHUNK = 4, 2, 32, 8
WIDTHS = {"query": HEADS, "key": KV_HEADS, "value": KV_HEADS}
SEEN = {"key": 3.0, "value": 0.5}  # largest magnitudes of a channel


def without(target: Target, *operators: str) -> Target:
    """A target that knows nothing of some operators."""
    groups = {
        name: group.model_copy(update={"names": tuple(n for n in group.names if n not in operators)})
        for name, group in target.operators.items()
    }
    return target.model_copy(update={"operators": groups})


TAKES = load_target("qnn-sm8750")
REFUSES = without(TAKES, "GroupQueryAttention")


def attention(tokens: int = CHUNK, size: int = 16, *, layers: int = 1, quantized: bool = False, **changes: Any):
    """Layers of attention over the same projections, each with a cache of its own, shapes fixed."""
    b = GraphBuilder("model")
    given = [b.input(n, ir.DataType.FLOAT, [1, tokens, h * size]) for n, h in WIDTHS.items()]
    lengths = [b.input(LAST_INDEX, ir.DataType.INT32, [1, 1]), b.input(MOST_TOKENS, ir.DataType.INT32, [1])]
    turned = changes.pop("turned", size)
    angles = np.outer(np.arange(ROOM), 100.0 ** (-np.arange(turned // 2) / turned))
    tables = [b.constant(f(angles).astype(np.float32), f.__name__) for f in (np.cos, np.sin)] if turned else []
    cache = [1, KV_HEADS, ROOM, size]
    for layer in range(layers):
        past = [b.input(f"past.{layer}.{n}", ir.DataType.FLOAT, cache) for n in ("key", "value")]
        asked = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": int(bool(tables)), **changes}
        reads = [*given, *past, *lengths, *tables]
        made = b.ops("GroupQueryAttention", reads, 3, domain=MICROSOFT, name=f"layer{layer}", **asked)
        b.output(made[0], f"y.{layer}", ir.DataType.FLOAT, [1, tokens, HEADS * size])
        for value, name in zip(made[1:], ("key", "value"), strict=True):
            b.output(value, f"present.{layer}.{name}", ir.DataType.FLOAT, cache)
    found = Bundle("test")
    found.add(Component("model", Role.DECODER, b.model(), "model"))
    if quantized:
        random = np.random.default_rng(size)
        names = [f"present.{layer}.{n}" for layer in range(layers) for n in SEEN]
        magnitudes = {n: SEEN[n[10:]] * random.uniform(0.3, 1, (KV_HEADS, size)) for n in names}
        QuantizeKVCache({n: Constant(m.astype(np.float32)) for n, m in magnitudes.items()}).run(found)
    return found


def written_out(made: Bundle, target: Target = REFUSES) -> Bundle:
    DecomposeGroupQueryAttention(target.takes_op, target.takes_cache("int8"), target.takes_windows()).run(made)
    return made


def graph_of(made: Bundle) -> ir.Graph:
    return next(iter(made.components.values())).graph


def feeds(made: Bundle, first: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What attention reads where `first` positions were written before; what was not written is noise."""
    random, graph = np.random.default_rng(seed), graph_of(made)
    tokens = int(str(graph.inputs[0].shape[1])) if graph.inputs[0].shape else 0
    lengths = {
        LAST_INDEX: np.array([[first + tokens - 1]], np.int32),
        MOST_TOKENS: np.array([ROOM], np.int32),
    }
    found = {}
    for value in graph.inputs:
        dims = [int(str(d)) for d in value.shape or ()]
        if value.name in lengths:
            found[value.name] = lengths[str(value.name)]
        elif value.dtype is ir.DataType.FLOAT:
            found[str(value.name)] = random.normal(size=dims).astype(np.float32)
        else:
            found[str(value.name)] = random.integers(-128, 128, dims).astype(np.int8)
    return found


def shifted(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """int8 levels as uint8 around 128."""
    return {n: (x.astype(np.int16) + 128).astype(np.uint8) if x.dtype == np.int8 else x for n, x in given.items()}


def outputs(made: Bundle, given: dict[str, np.ndarray], optimization: str = "as written") -> list[np.ndarray]:
    """Float results as they are, levels of either kind around 0."""
    found = run(next(iter(made.components.values())).model, given, optimization)
    return [x.astype(np.int16) - 128 if x.dtype == np.uint8 else x for x in found]


def same(expected: list[np.ndarray], found: list[np.ndarray], end: int) -> None:
    """Attention within rounding, and the cache up to a position; beyond, onnxruntime's operator leaves it undefined."""
    for one, other in zip(expected, found, strict=True):
        if one.ndim == 3:
            assert np.abs(one - other).max() <= GRAPH_FLOAT32
        elif one.dtype == np.float32:
            assert np.abs(one[:, :, :end] - other[:, :, :end]).max() <= GRAPH_FLOAT32
        else:
            assert np.abs(one[:, :, :end].astype(int) - other[:, :, :end]).max() <= 1  # a tie
            assert (one[:, :, :end] != other[:, :, :end]).mean() < 1e-3


# The graph.

GIVEN = """
graph (float[1, 2, 64] q, float[1, 2, 32] k, float[1, 2, 32] v, float[1, 2, 8, 16] past_key,
       float[1, 2, 8, 16] past_value, int32[1, 1] last, int32[1] most)
   => (float[1, 2, 64] y, float[1, 2, 8, 16] key, float[1, 2, 8, 16] value)
   <float[1, 8] cos = {1, 1, 1, 1, 1, 1, 1, 1}, float[1, 8] sin = {0, 0, 0, 0, 0, 0, 0, 0}> {
      [attend] %s
}
"""
PLAIN = "num_heads = 4, kv_num_heads = 2, do_rotary = 1, scale = 0.5"
INPUTS = "q, k, v, past_key, past_value, last, most, cos, sin"
NODE = f"y, key, value = com.microsoft.GroupQueryAttention <{PLAIN}> ({INPUTS})"
HEADS_FIRST = "Transpose <perm = (0, 2, 1, 3)>"
POSITIONS = [
    "attend.positions:0 = Add (last, 2_offsets)",
    "attend.rows_of_cos:0 = Gather <axis = 0> (cos, attend.positions:0)",
    "attend.rows_of_sin:0 = Gather <axis = 0> (sin, attend.positions:0)",
    "attend.q_rotary:0 = RotaryEmbedding (attend.q:0, attend.rows_of_cos:0, attend.rows_of_sin:0)",
    "attend.k_rotary:0 = RotaryEmbedding (attend.k:0, attend.rows_of_cos:0, attend.rows_of_sin:0)",
    "attend.entries:0 = Reshape (attend.positions:0, [1, 1, 2, 1])",
    "attend.cache_rows:0 = Expand (attend.entries:0, [1, 2, 2, 16])",
]
BEFORE = [
    "attend.q_heads:0 = Reshape (q, [1, 2, 4, 16])",
    f"attend.q:0 = {HEADS_FIRST} (attend.q_heads:0)",
    "attend.k_heads:0 = Reshape (k, [1, 2, 2, 16])",
    f"attend.k:0 = {HEADS_FIRST} (attend.k_heads:0)",
    "attend.v_heads:0 = Reshape (v, [1, 2, 2, 16])",
    f"attend.v:0 = {HEADS_FIRST} (attend.v_heads:0)",
    *POSITIONS,
]
WRITTEN_OUT = [
    *BEFORE,
    "key = ScatterElements <axis = 2> (past_key, attend.cache_rows:0, attend.k_rotary:0)",
    "value = ScatterElements <axis = 2> (past_value, attend.cache_rows:0, attend.v:0)",
    "attend.q_groups:0 = Reshape (attend.q_rotary:0, [1, 2, 4, 16])",
    "attend.q_scaled:0 = Mul (attend.q_groups:0, attend.scale)",
    "attend.query_positions:0 = Add (last, attend.query_offsets)",
    "attend.visible:0 = LessOrEqual (attend.key_positions, attend.query_positions:0)",
    "attend.keys:0 = Transpose <perm = (0, 1, 3, 2)> (key)",
    "attend.scores:0 = MatMul (attend.q_scaled:0, attend.keys:0)",
    "attend.masked:0 = Where (attend.visible:0, attend.scores:0, hidden_score)",
    "attend.softmax:0 = Softmax <axis = -1> (attend.masked:0)",
    "attend.attended:0 = MatMul (attend.softmax:0, value)",
    "attend.heads:0 = Reshape (attend.attended:0, [1, 4, 2, 16])",
    f"attend.tokens:0 = {HEADS_FIRST} (attend.heads:0)",
    "y = Reshape (attend.tokens:0, [1, 2, 64])",
]
GRID = "cache.scale, cache.zero_point"
CACHED = [
    "attend.k_shares:0 = Mul (attend.k_rotary:0, attend.k_divisors)",
    f"attend.k_levels:0 = QuantizeLinear (attend.k_shares:0, {GRID})",
    f"attend.k_rounded:0 = DequantizeLinear (attend.k_levels:0, {GRID})",
    f"attend.k_past:0 = DequantizeLinear (past_key, {GRID})",
    "attend.k_cache:0 = ScatterElements <axis = 2> (attend.k_past:0, attend.cache_rows:0, attend.k_rounded:0)",
    f"key = QuantizeLinear (attend.k_cache:0, {GRID})",
    f"attend.k_present_rounded:0 = DequantizeLinear (key, {GRID})",
]


@pytest.mark.usefixtures("checked")
def test_attention_is_written_out() -> None:
    made = written_out(bundle(component(GIVEN % NODE)))
    graph = graph_of(made)
    assert lines(graph) == WRITTEN_OUT
    assert (made.journal[-1].changed, made.journal[-1].skipped) == (1, ())
    assert all(REFUSES.takes_op(node.op_type, node.domain) for node in graph)
    assert signature(graph)[-3:] == ["float[1, 2, 64] y", "float[1, 2, 8, 16] key", "float[1, 2, 8, 16] value"]
    assert all(v.shape is not None and v.dtype is not None for node in graph for v in node.outputs)


@pytest.mark.usefixtures("checked")
def test_a_cache_of_levels_is_moved_between_roundings_of_one_scale() -> None:
    made = bundle(component(GIVEN % NODE))
    ones = Constant(np.ones((2, 16), np.float32))
    QuantizeKVCache({"key": ones, "value": ones}).run(made)
    written_out(made, TAKES)  # it has the operator, but for a float cache alone
    graph = graph_of(made)
    start = len(BEFORE)
    assert lines(graph)[start : start + len(CACHED)] == CACHED
    assert [str(v.dtype) for v in (*graph.inputs[3:5], *graph.outputs[1:])] == ["UINT8"] * 4
    products = [line for line in lines(graph) if "MatMul" in line or "Mul (attend.attended" in line]
    assert products == [
        "attend.scores:0 = MatMul (attend.q_scaled:0, attend.keys:0)",
        "attend.attended:0 = MatMul (attend.softmax:0, attend.v_present_rounded:0)",
        "attend.restored:0 = Mul (attend.attended:0, attend.v_magnitudes)",
    ]
    assert not [name for name in graph.initializers if name.endswith("_scale")]  # nobody reads them any more


@pytest.mark.usefixtures("checked")
def test_a_window_hides_what_lies_before_it() -> None:
    window = bundle(component(GIVEN % NODE.replace("scale = 0.5", "scale = 0.5, local_window_size = 3")))
    made = written_out(window, TAKES)  # it has the operator, but without a window alone
    at = WRITTEN_OUT.index("attend.visible:0 = LessOrEqual (attend.key_positions, attend.query_positions:0)")
    assert lines(graph_of(made)) == [
        *WRITTEN_OUT[:at],
        "attend.known:0 = LessOrEqual (attend.key_positions, attend.query_positions:0)",
        "attend.forgotten_positions:0 = Add (last, attend.forgotten_offsets)",
        "attend.near:0 = Greater (attend.key_positions, attend.forgotten_positions:0)",
        "attend.visible:0 = And (attend.known:0, attend.near:0)",
        *WRITTEN_OUT[at + 1 :],
    ]


def test_layers_share_what_follows_from_positions() -> None:
    one, three = (graph_of(written_out(attention(layers=layers))) for layers in (1, 3))
    for shared in ("LessOrEqual", "Expand", "Gather", "Add"):
        first, more = ([n for n in g if n.op_type == shared] for g in (one, three))
        assert len(first) == len(more) > 0
    assert len([n for n in three if n.op_type == "Softmax"]) == 3


# The numbers.


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "levels"])
@pytest.mark.parametrize(("tokens", "first"), [(CHUNK, 0), (CHUNK, CHUNK), (CHUNK, ROOM - CHUNK), (1, 0), (1, 21)])
def test_the_numbers_are_those_of_the_operator(tokens: int, first: int, quantized: bool, optimization: str) -> None:
    made = attention(tokens, quantized=quantized)
    given = feeds(made, first)
    expected = outputs(made, given, optimization)
    found = outputs(written_out(attention(tokens, quantized=quantized)), shifted(given), optimization)
    same(expected, found, first + tokens)
    other = outputs(made, given | {LAST_INDEX: given[LAST_INDEX] + (1 if first < ROOM - tokens else -1)})
    assert np.abs(other[0] - found[0]).max() > 100 * GRAPH_FLOAT32  # the comparison sees a wrong position


@pytest.mark.parametrize(
    "changes",
    [{"turned": 0}, {"size": 32, "turned": 16}, {"rotary_interleaved": 1}, {"scale": 0.7}, {"size": 64}, {"layers": 2}],
    ids=str,
)
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "levels"])
def test_every_form_that_is_taken_keeps_its_numbers(changes: dict[str, Any], quantized: bool) -> None:
    made = attention(quantized=quantized, **changes)
    given = feeds(made, 3)
    found = written_out(attention(quantized=quantized, **changes))
    assert found.journal[-1].skipped == ()
    same(outputs(made, given), outputs(found, shifted(given)), 3 + CHUNK)


@settings(max_examples=40)
@given(window=st.integers(1, ROOM + 1), first=st.integers(0, ROOM - CHUNK), one=st.booleans(), quantized=st.booleans())
def test_a_window_keeps_its_numbers(window: int, first: int, one: bool, quantized: bool) -> None:
    asked: dict[str, Any] = {"tokens": 1 if one else CHUNK, "quantized": quantized, "local_window_size": window}
    made, end = attention(**asked), first + asked["tokens"]
    given = feeds(made, first)
    found = written_out(attention(**asked), TAKES)
    assert found.journal[-1].skipped == ()
    same(outputs(made, given), outputs(found, shifted(given)), end)
    if window < end:  # the comparison sees a window that is longer by one
        longer = attention(**asked | {"local_window_size": window + 1})
        assert np.abs(outputs(longer, given)[0] - outputs(made, given)[0]).max() > 10 * GRAPH_FLOAT32


def test_layers_of_two_windows_and_none_do_not_share_what_they_see() -> None:
    def chosen(made: Bundle) -> Bundle:
        for node, window in zip([n for n in graph_of(made) if n.domain], (5, -1, 9, 5), strict=True):
            node.attributes.add(ir.AttrInt64("local_window_size", window))
        return made

    made, found = (chosen(attention(layers=4)) for _ in range(2))
    given = feeds(made, 20)
    same(outputs(made, given), outputs(written_out(found), given), 20 + CHUNK)
    assert [n.op_type for n in graph_of(found)].count("LessOrEqual") == 3


@settings(max_examples=25)
@given(first=st.integers(0, ROOM - CHUNK), seed=st.integers(0, 99), quantized=st.booleans())
def test_only_new_rows_are_written_and_only_seen_rows_count(first: int, seed: int, quantized: bool) -> None:
    made = written_out(attention(quantized=quantized))
    given = shifted(feeds(made, first, seed))
    attended, *presents = outputs(made, given)
    for name, present in zip(("past.0.key", "past.0.value"), presents, strict=True):
        past = given[name].astype(np.int16) - 128 if quantized else given[name]
        for rows in (slice(0, first), slice(first + CHUNK, ROOM)):
            np.testing.assert_array_equal(present[:, :, rows], past[:, :, rows])
    unseen = {n: x.copy() for n, x in given.items()}
    for name in ("past.0.key", "past.0.value"):
        unseen[name][:, :, first:] = 255 if quantized else 1e4
    np.testing.assert_array_equal(outputs(made, unseen)[0], attended)


def test_padding_at_the_end_of_a_chunk_changes_nothing_before_it() -> None:
    made = written_out(attention(quantized=True))
    given, real = shifted(feeds(made, CHUNK)), 5
    padded = {n: x.copy() for n, x in given.items()}
    for name in WIDTHS:
        padded[name][:, real:] = 7
    one, other = outputs(made, given)[0], outputs(made, padded)[0]
    np.testing.assert_array_equal(one[:, :real], other[:, :real])
    assert np.abs(one[:, real:] - other[:, real:]).max() > 0.1


def test_magnitudes_stay_in_the_range_of_float16() -> None:
    made = bundle(component(GIVEN % NODE))
    tiny = np.full((2, 16), 1e-9, np.float32)
    tiny[1] = 100
    QuantizeKVCache({"key": Constant(tiny), "value": Constant(tiny)}).run(made)
    written_out(made)
    constants = graph_of(made).initializers
    divisors, factors, magnitudes = (
        constants[f"attend.{name}"].const_value.numpy() for name in ("k_divisors", "q_factors", "v_magnitudes")
    )
    for values in (divisors, factors, magnitudes):
        assert values.shape == (1, 2, 1, 16)
        narrow = values.astype(np.float16)
        assert np.isfinite(narrow).all()
        assert (narrow > 0).all()
    np.testing.assert_allclose(divisors * factors, 0.5, rtol=1e-6)  # the scale of the scores
    np.testing.assert_allclose(divisors * magnitudes, 1, rtol=1e-6)


# What stays.


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("scale = 0.5", "softcap = 2.0", "has softcap"),
        ("scale = 0.5", "qk_output = 1", "has qk_output"),
        ("scale = 0.5", "smooth_softmax = 1", "has smooth_softmax"),
        ("scale = 0.5", "kv_cache_bit_width = 4", "its cache has other integers than 8 bits"),
        ("cos, sin)", "cos, sin, most)", "has positions of its own"),
        (", cos, sin)", ")", "rotates without tables"),
        ("(q, k, v,", "(q, , v,", "has no key of its own"),
    ],
)
def test_other_attention_stays(old: str, new: str, reason: str) -> None:
    made = bundle(component(GIVEN % NODE.replace(old, new)))
    before = lines(graph_of(made))
    written_out(made)
    assert lines(graph_of(made)) == before
    assert (made.journal[-1].changed, made.journal[-1].skipped[0].reason) == (0, reason)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "float[1, 2, 8, 16] past_key",
            "float[1, 2, past, 16] past_key",
            "the shape of its cache of keys is not fixed",
        ),
        ("int32[1, 1] last", "int32[2, 1] last", "runs several sequences at once"),
    ],
)
def test_shapes_have_to_be_fixed(old: str, new: str, reason: str) -> None:
    made = written_out(bundle(component((GIVEN % NODE).replace(old, new))))
    assert (made.journal[-1].changed, made.journal[-1].skipped[0].reason) == (0, reason)


def test_a_cache_of_levels_that_nobody_takes_is_refused_with_the_way_out() -> None:
    made = attention(quantized=True, layers=2, softcap=4.0)
    before = lines(graph_of(made))
    with pytest.raises(TargetError, match=r"target\.cache") as error:
        written_out(made, TAKES)
    assert [p.cause.split(":")[0] for p in error.value.problems] == ["layer0", "layer1"]
    assert "has softcap" in error.value.problems[0].cause
    assert "kv_cache: float" in error.value.fix
    assert lines(graph_of(made)) == before


def test_it_stays_where_it_is_taken_and_where_its_parts_are_refused() -> None:
    made = written_out(bundle(component(GIVEN % NODE)), TAKES)
    assert made.journal[-1].skipped[0].reason == "the target takes it"
    made = written_out(bundle(component(GIVEN % NODE)), without(REFUSES, "ScatterElements"))
    assert made.journal[-1].skipped[0].reason == "qnn-sm8750 does not take ScatterElements"
    made = written_out(attention(local_window_size=4), without(TAKES, "And"))
    assert made.journal[-1].skipped[0].reason == "qnn-sm8750 does not take And"
    made = written_out(attention(local_window_size=4), load_target("cpu"))
    assert made.journal[-1].skipped[0].reason == "the target takes it"
    quantized = written_out(attention(quantized=True), load_target("cpu"))
    assert [n.op_type for n in graph_of(quantized)] == ["GroupQueryAttention"]
