"""Joined projections: the same numbers from one product; what differs in format stays apart, with the reason."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.builder import MICROSOFT, GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.package.streaming import QuantizedUnit, unit_of
from hvlc.passes.fuse import pack_projections
from hvlc.passes.fuse.pack_projections import PackProjections
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.solvers import SOLVERS
from hvlc.weights.formats import ScaleType, WeightFormat, weight_format
from hvlc.weights.lazy import concat
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tolerances import QUANTIZED_PRODUCT

HIDDEN, HEADS, KV_HEADS, HEAD = 48, 4, 2, 16
WIDTHS = {"q_proj": HEADS * HEAD, "k_proj": KV_HEADS * HEAD, "v_proj": KV_HEADS * HEAD}
FORMAT = weight_format(4, 16)


def attention(*, norms: bool = False, biases: bool = False, seed: int = 0) -> Bundle:
    """Three projections and a grouped-query attention over a cache."""
    random = np.random.default_rng(seed)
    b = GraphBuilder("model")
    x = b.input("x", ir.DataType.FLOAT, ["batch", "sequence", HIDDEN])
    lengths = b.input("lengths", ir.DataType.INT32, ["batch"])
    total = b.input("total", ir.DataType.INT32, [])
    past = [b.input(f"past.{n}", ir.DataType.FLOAT, ["batch", KV_HEADS, "past", HEAD]) for n in ("key", "value")]
    found = []
    for name, width in WIDTHS.items():
        weight = b.constant(random.normal(size=(HIDDEN, width)).astype(np.float32), f"attn.{name}.weight")
        y = b.op("MatMul", x, weight, name=f"attn.{name}")
        if biases:
            bias = b.constant(random.normal(size=width).astype(np.float32), f"attn.{name}.bias")
            y = b.op("Add", y, bias, name=f"attn.{name}.bias_add")
        if norms and name != "v_proj":
            gamma = b.constant(random.normal(size=HEAD).astype(np.float32), f"attn.{name}.norm")
            y = b.op("Reshape", y, b.ints(0, 0, width // HEAD, HEAD))
            y = b.op("Reshape", b.op("RMSNormalization", y, gamma, axis=-1, epsilon=1e-6), b.ints(0, 0, width))
        found.append(y)
    outputs = b.ops(
        "GroupQueryAttention",
        [*found, *past, lengths, total],
        3,
        domain=MICROSOFT,
        name="attn",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
    )
    b.output(outputs[0], "y", ir.DataType.FLOAT, ["batch", "sequence", HEADS * HEAD])
    for value, name in zip(outputs[1:], ("key", "value"), strict=True):
        b.output(value, f"present.{name}", ir.DataType.FLOAT, ["batch", KV_HEADS, "all", HEAD])
    bundle = Bundle("test")
    bundle.add(Component("model", Role.DECODER, b.model(), "model"))
    return bundle


def quantize(bundle: Bundle, formats: dict[str, WeightFormat]) -> None:
    assignments = tuple(
        Assignment(
            "model", Role.DECODER, f"attn.{n}", f"attn.{n}.weight", WIDTHS[n], HIDDEN, Action.QUANTIZE, "", f, "rtn"
        )
        for n, f in formats.items()
    )
    QuantizeWeights(Plan("recipe", "cpu", assignments), SOLVERS).run(bundle)


def outputs(bundle: Bundle, optimization: str) -> list[np.ndarray]:
    random = np.random.default_rng(9)
    cache = random.normal(size=(2, 1, KV_HEADS, 3, HEAD)).astype(np.float32)
    feeds = {
        "x": random.normal(size=(1, 1, HIDDEN)).astype(np.float32),
        "lengths": np.array([3], np.int32),
        "total": np.array(4, np.int32),
        "past.key": cache[0],
        "past.value": cache[1],
    }
    return session(bundle.components["model"].model, optimization).run(None, feeds)


def operators(bundle: Bundle) -> list[str]:
    return [node.op_type for node in bundle.components["model"].graph]


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("norms", [False, True], ids=["no norms", "norms"])
@pytest.mark.parametrize("biases", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize("format", [None, FORMAT, weight_format(8, 32, False, ScaleType.FLOAT32)], ids=str)
@pytest.mark.usefixtures("checked")
def test_the_numbers_stay(format: WeightFormat | None, biases: bool, norms: bool, optimization: str) -> None:
    plain, packed = attention(norms=norms, biases=biases), attention(norms=norms, biases=biases)
    for bundle in (plain, packed):
        quantize(bundle, dict.fromkeys(WIDTHS, format) if format else {})
    PackProjections().run(packed)
    assert packed.journal[-1].changed == 1
    product = "MatMulNBits" if format else "MatMul"
    assert operators(packed).count(product) == 1
    assert operators(packed).count("Split") == int(norms)
    assert operators(packed).count("Add") == int(biases)
    for one, other in zip(outputs(plain, optimization), outputs(packed, optimization), strict=True):
        assert np.abs(one - other).max() <= QUANTIZED_PRODUCT * np.abs(one).max()


def test_the_comparison_sees_swapped_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = attention(), attention()
    monkeypatch.setattr(pack_projections, "concat", lambda parts, axis: concat(parts[::-1], axis))
    PackProjections().run(packed)
    one, other = outputs(plain, "as written")[0], outputs(packed, "as written")[0]
    assert np.abs(one - other).max() > 100 * QUANTIZED_PRODUCT * np.abs(one).max()


def test_without_norms_the_attention_takes_the_packed_result() -> None:
    bundle = attention()
    PackProjections().run(bundle)
    (node,) = [n for n in bundle.components["model"].graph if n.op_type == "GroupQueryAttention"]
    assert node.inputs[0] is not None
    assert node.inputs[1] is None
    assert node.inputs[2] is None


def test_the_joined_weights_are_stacked_when_they_are_written() -> None:
    bundle = attention()
    quantize(bundle, dict.fromkeys(WIDTHS, FORMAT))
    PackProjections().run(bundle)
    graph = bundle.components["model"].graph
    assert sorted(graph.initializers) == [f"attn.q_proj+k_proj+v_proj.weight.{part}" for part in ("int4", "scales")]
    units = {unit_of(value.const_value.expression)[0] for value in graph.initializers.values()}
    (unit,) = units
    assert isinstance(unit, QuantizedUnit)
    assert [matrix.weight.shape[0] for matrix in unit.matrices] == list(WIDTHS.values())


@pytest.mark.parametrize(
    "formats",
    [
        {"q_proj": FORMAT, "k_proj": FORMAT},
        {"q_proj": FORMAT, "k_proj": FORMAT, "v_proj": weight_format(8, 16)},
        {"q_proj": FORMAT, "k_proj": FORMAT, "v_proj": weight_format(4, 32)},
        {"q_proj": FORMAT, "k_proj": FORMAT, "v_proj": weight_format(4, 16, False)},
        {"q_proj": FORMAT, "k_proj": FORMAT, "v_proj": weight_format(4, 16, True, ScaleType.FLOAT32)},
    ],
    ids=["one in float", "other bits", "other blocks", "with zero points", "other scales"],
)
def test_different_formats_stay_apart_with_the_reason(formats: dict[str, WeightFormat]) -> None:
    bundle = attention()
    quantize(bundle, formats)
    before = operators(bundle)
    PackProjections().run(bundle)
    assert operators(bundle) == before
    assert bundle.journal[-1].changed == 0
    assert bundle.journal[-1].skipped[0].reason == "query, key and value have different inputs or formats"


def test_an_attention_without_products_before_it_is_left_alone() -> None:
    bundle = attention()
    graph = bundle.components["model"].graph
    (node,) = [n for n in graph if n.op_type == "GroupQueryAttention"]
    query = node.inputs[0]
    assert query is not None
    doubled = ir.node("Add", [query, query], name="doubled")
    doubled.outputs[0].name = "doubled:0"
    graph.insert_before(node, doubled)
    node.replace_input_with(0, doubled.outputs[0])
    PackProjections().run(bundle)
    assert bundle.journal[-1].skipped[0].reason == "query, key and value come from no three products"
