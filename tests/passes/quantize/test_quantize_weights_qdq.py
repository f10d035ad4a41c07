"""Products and look-ups in QDQ form run as numpy computes them from the same levels, which are stored once."""

import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.errors import HvlcError, UserError
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.plan import Action, ActivationFormat, Assignment, Plan
from hvlc.package.onnx_files import write_components
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.passes.quantize.quantize_weights_qdq import QuantizeWeightsQDQ
from hvlc.solvers import SOLVERS
from hvlc.solvers.rtn import round_to_nearest
from hvlc.weights.formats import ScaleType, Stream, WeightFormat, weight_format
from hvlc.weights.formats.block import SymmetricFormat
from hvlc.weights.lazy import Box, Constant, Expression, LazyTensor
from hvlc.weights.quantized import SolvedWeight
from tests.helpers.sessions import OPTIMIZATIONS, run, session
from tests.helpers.solvers import FLOAT_SCALES, LPBQ
from tests.helpers.tolerances import QUANTIZED_LOOKUP, QUANTIZED_PRODUCT
from tests.passes.quantize.test_quantize_weights import assignment, lookup, matrix, product

COLUMNS = 96
FORMATS = [
    weight_format(bits, block, True, scale_type)
    for bits in (4, 8)
    for block in (16, 32, COLUMNS)
    for scale_type in FLOAT_SCALES
]


def quantize(
    bundle: Bundle, *assignments: Assignment, solved: dict[tuple[str, str], SolvedWeight] | None = None
) -> ir.Graph:
    QuantizeWeightsQDQ(Plan("recipe", "npu", assignments), SOLVERS, solved or {}).run(bundle)
    return bundle.components["graph"].graph


def ops(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph if node.op_type != "Cast"]


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.usefixtures("checked")
def test_a_product_is_that_of_the_dequantized_matrix(format: WeightFormat) -> None:
    weight, x = matrix(24, COLUMNS), matrix(3, COLUMNS)
    bundle = product(weight)
    graph = quantize(bundle, assignment(weight, format))
    assert ops(graph) == ["DequantizeLinear", "Transpose", "MatMul"]
    stored = graph.initializers[f"w.int{format.bits}"]
    assert (str(stored.dtype), stored.const_value.shape.numpy()) == (f"INT{format.bits}", (24, COLUMNS))
    assert stored.const_value.nbytes == 24 * COLUMNS * format.bits // 8
    exact = x.astype(np.float64) @ round_to_nearest(weight, format).dequantize(COLUMNS).T.astype(np.float64)
    y = session(bundle.components["graph"].model).run(None, {"x": x})[0]
    assert np.abs(y - exact).max() <= QUANTIZED_PRODUCT * np.abs(exact).max()
    if format.bits == 4 or format.block_size < COLUMNS:  # what is left out here: see the module's docstring
        y = session(bundle.components["graph"].model, "optimized").run(None, {"x": x})[0]
        assert np.abs(y - exact).max() <= QUANTIZED_PRODUCT * np.abs(exact).max()


@pytest.mark.parametrize("level", ["1", None])
def test_an_optimizer_rounds_the_inputs_of_rows_of_8_bits_unless_told_not_to(level: str | None) -> None:
    import onnxruntime as ort

    weight, x = matrix(24, COLUMNS), matrix(3, COLUMNS)
    format = weight_format(8, COLUMNS, True, ScaleType.FLOAT32)
    bundle = product(weight)
    quantize(bundle, assignment(weight, format))
    options = ort.SessionOptions()
    if level:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    proto = ir.to_proto(bundle.components["graph"].model).SerializeToString()
    (y,) = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    exact = x.astype(np.float64) @ round_to_nearest(weight, format).dequantize(COLUMNS).T.astype(np.float64)
    is_float = np.abs(y - exact).max() <= QUANTIZED_PRODUCT * np.abs(exact).max()
    assert is_float == (level is not None)


@pytest.mark.parametrize("form", ["lazy", "solved"])
def test_levels_are_those_of_the_weight_only_form(form: str) -> None:
    weight, format = matrix(24, COLUMNS), weight_format(4, 32)
    levels = round_to_nearest(weight, format)
    stored = tuple(Constant(levels.stored(stream)) for stream in format.streams)
    solved = {("graph", "product"): SolvedWeight((24, COLUMNS), format, stored)} if form == "solved" else {}
    graph = quantize(product(weight), assignment(weight, format), solved=solved)
    kept = graph.initializers["w.int4"].const_value.numpy().astype(np.int8)
    np.testing.assert_array_equal(kept, levels.levels.reshape(24, COLUMNS).astype(np.int8) - 8)
    np.testing.assert_array_equal(graph.initializers["w.scales"].const_value.numpy(), levels.stored(Stream.SCALES))


@pytest.mark.usefixtures("checked")
def test_a_look_up_reads_the_bytes_of_the_head(tmp_path: Path) -> None:
    table, format, ids = matrix(10, 128), weight_format(4, 32), np.array([0, 9, 3, 3])
    bundle, head = lookup(table), product(table)
    quantize(bundle, assignment(table, format))
    quantize(head, assignment(table, format))
    assert ops(bundle.components["graph"].graph) == ["GatherBlockQuantized"]
    expected = round_to_nearest(table, format).dequantize(128)[ids]
    for optimization in OPTIMIZATIONS:
        (y,) = session(bundle.components["graph"].model, optimization).run(None, {"x": ids})
        np.testing.assert_allclose(y, expected, atol=QUANTIZED_LOOKUP * np.abs(expected).max(), rtol=0)
    table_bytes, head_bytes = (
        [v.const_value.tobytes() for v in b.components["graph"].graph.initializers.values()] for b in (bundle, head)
    )
    assert table_bytes == head_bytes


@pytest.mark.parametrize("bits", [4, 8])
def test_a_package_holds_each_level_once(tmp_path: Path, bits: int) -> None:
    import onnxruntime as ort

    weight, format, x = matrix(256, COLUMNS), weight_format(bits, 32), matrix(3, COLUMNS)
    bundle = product(weight)
    quantize(bundle, assignment(weight, format))
    files, _ = write_components(bundle, tmp_path, 1, lambda done: None)
    assert (tmp_path / "graph.onnx.data").stat().st_size == 256 * COLUMNS * bits // 8 + 2 * 256 * COLUMNS // 32
    (y,) = ort.InferenceSession(str(tmp_path / files["graph"])).run(None, {"x": x})
    exact = x @ round_to_nearest(weight, format).dequantize(COLUMNS).T
    assert np.abs(y - exact).max() <= QUANTIZED_PRODUCT * np.abs(exact).max()


def shared_product(weight: np.ndarray) -> Bundle:
    """Two products with one matrix."""
    bundle = product(weight)
    graph = bundle.components["graph"].graph
    first = graph[0]
    second = ir.node("MatMul", list(first.inputs), name="again")
    second.outputs[0].name, second.outputs[0].type, second.outputs[0].shape = (
        "z",
        first.outputs[0].type,
        first.outputs[0].shape,
    )
    graph.append(second)
    graph.outputs.append(second.outputs[0])
    return bundle


@pytest.mark.parametrize("kind", [QuantizeWeights, QuantizeWeightsQDQ])
@pytest.mark.parametrize("scale_type", FLOAT_SCALES)
@pytest.mark.usefixtures("checked")
def test_a_matrix_that_two_products_read_is_stored_once(kind: Any, scale_type: ScaleType) -> None:
    weight, x = matrix(24, 64), matrix(3, 64)
    one = assignment(weight, weight_format(4, 32, True, scale_type))
    bundle = shared_product(weight)
    kind(Plan("recipe", "npu", (one, replace(one, node="again"))), SOLVERS).run(bundle)
    assert bundle.journal[-1].changed == 2
    assert len(bundle.components["graph"].graph.initializers) == 2
    y, z = session(bundle.components["graph"].model).run(None, {"x": x})
    np.testing.assert_array_equal(y, z)


@pytest.mark.parametrize(
    ("format", "complaint"),
    [
        (weight_format(4, 32, symmetric=False), "without zero points"),
        (weight_format(4, 64), "rows of 96 are not a whole number"),
    ],
)
def test_what_the_form_cannot_hold_is_refused_before_anything_changes(format: WeightFormat, complaint: str) -> None:
    weight = matrix(24, COLUMNS)
    bundle = product(weight)
    with pytest.raises(UserError, match=r"plan\.static") as error:
        quantize(bundle, assignment(weight, format))
    assert complaint in error.value.cause
    assert ops(bundle.components["graph"].graph) == ["MatMul"]


@dataclass(frozen=True)
class WithMiddles(SymmetricFormat):
    """A format whose values stay wrong unless something reads what it stores beside levels and scales."""

    extra: ClassVar[tuple[Stream, ...]] = (Stream.MIDDLES,)


def test_a_stream_that_no_node_reads_is_our_bug() -> None:
    weight = matrix(4, 32)
    bundle = product(weight)
    with pytest.raises(HvlcError, match="QuantizeWeightsQDQ reads no middles, which int4 b16 sym f16 stores") as error:
        quantize(bundle, assignment(weight, WithMiddles(4, 16)))
    assert (error.value.code, error.value.exit_code) == ("pass.stream", 1)
    assert ops(bundle.components["graph"].graph) == ["MatMul"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize(
    ("out", "scale_type"), [(24, ScaleType.FLOAT16), (24, ScaleType.FLOAT32), (7, ScaleType.FLOAT16)]
)
def test_a_direct_matrix_is_the_same_one_across(bits: int, block_size: int, out: int, scale_type: ScaleType) -> None:
    """Qualcomm's compiler wants nothing between DequantizeLinear and its product: levels are stored `[in, out]`."""
    weight = np.random.default_rng(bits).normal(size=(32, out)).astype(np.float32)
    made = []
    for direct in (False, True):
        b = GraphBuilder("model")
        x = b.input("x", ir.DataType.FLOAT, ["n", 32])
        y = b.op("MatMul", x, b.constant(weight, "w"), name="product")
        b.output(y, "y", ir.DataType.FLOAT, ["n", out])
        bundle = Bundle("test")
        bundle.add(Component("model", Role.DECODER, b.model(), "model"))
        format = weight_format(bits, block_size, scale_type=scale_type)
        names = "model", Role.DECODER, "product", "w"
        planned = Assignment(*names, out, 32, Action.QUANTIZE, "", format, "rtn")
        plan = Plan("recipe", "npu", (planned,), activations=ActivationFormat())
        QuantizeWeightsQDQ(plan, SOLVERS, direct=direct).run(bundle)
        made.append(bundle.components["model"])
    ops = [node.op_type for node in made[1].graph]
    assert ops == ["DequantizeLinear", "MatMul"]
    (dequantize, _) = made[1].graph
    levels = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8
    assert [v.dtype for v in dequantize.inputs][:2] == [levels, ir.DataType.FLOAT]
    assert tuple(dequantize.inputs[0].shape or ()) == (32, out)
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)}
    expected, found = (run(component.model, feeds)[0] for component in made)
    np.testing.assert_array_equal(found, expected)


@dataclass(frozen=True)
class Drawn(Expression):
    """A matrix whose rows are drawn when they are read, and were never all there."""

    shape: tuple[int, ...]
    dtype = np.dtype(np.float32)

    def box(self, box: Box) -> np.ndarray:
        rows = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None]
        return rows - np.arange(box[1].start, box[1].stop, dtype=np.float32)


def lpbq_component(
    weight: np.ndarray, format: WeightFormat, *, direct: bool, solved: bool = False, drawn: Drawn | None = None
) -> Component:
    b = GraphBuilder("model")
    x = b.input("x", ir.DataType.FLOAT, ["n", weight.shape[1]])
    y = b.op("MatMul", x, b.constant(np.ascontiguousarray(weight.T), "w"), name="product")
    b.output(y, "y", ir.DataType.FLOAT, ["n", weight.shape[0]])
    bundle = Bundle("test")
    bundle.add(Component("model", Role.DECODER, b.model(), "model"))
    solver = "rtn" if drawn is None else "minmax"
    planned = Assignment("model", Role.DECODER, "product", "w", *weight.shape, Action.QUANTIZE, "", format, solver)
    plan = Plan("recipe", "npu", (planned,), activations=ActivationFormat())
    known: dict[tuple[str, str], SolvedWeight] = {}
    if solved:
        levels = round_to_nearest(weight, format)
        stored = tuple(Constant(levels.stored(s)) for s in format.streams)
        known["model", "product"] = SolvedWeight(weight.shape, format, stored)
    if drawn is not None:
        bundle.components["model"].graph.initializers["w"].const_value = LazyTensor("w", drawn.transpose())
    QuantizeWeightsQDQ(plan, SOLVERS, known, direct=direct).run(bundle)
    QuantizeWeightsQDQ(plan, SOLVERS, direct=direct).run(bundle)
    assert bundle.journal[-1].changed == 0
    return bundle.components["model"]


@pytest.mark.parametrize("solved", [False, True])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("format", LPBQ, ids=str)
@pytest.mark.parametrize("out", [24, 7])
def test_an_lpbq_graph_dequantizes_to_the_solvers_matrix(
    out: int, format: WeightFormat, direct: bool, solved: bool
) -> None:
    """Exactly: an identity goes through the product, and comes out as the matrix."""
    weight = matrix(out, COLUMNS) * np.exp(matrix(out, 1))
    component = lpbq_component(weight, format, direct=direct, solved=solved)
    moved = [] if direct else ["Transpose"]
    assert [n.op_type for n in component.graph] == ["DequantizeLinear", "DequantizeLinear", *moved, "MatMul"]
    multiply, dequantize = list(component.graph)[:2]
    blocks = COLUMNS // format.block_size
    stored = {v.name: (v.dtype, tuple(v.shape or ())) for v in component.graph.initializers.values()}
    turned = (slice(None, None, -1)) if direct else slice(None)
    expected = {
        "w.int4": (ir.DataType.INT4, (out, COLUMNS)[turned]),
        "w.scales": (ir.DataType.UINT8, (out, blocks)[turned]),
        "w.factors": (ir.DataType.FLOAT, (out,)),
    }
    if direct:  # the compiler wants them
        expected["w.zero_points"] = (ir.DataType.INT4, (blocks, out))
    assert stored == expected
    assert [v.name for v in multiply.inputs if v] == ["w.scales", "w.factors"]
    assert dequantize.inputs[1] is multiply.outputs[0]
    for optimization in OPTIMIZATIONS:
        (y,) = session(component.model, optimization).run(None, {"x": np.eye(COLUMNS, dtype=np.float32)})
        np.testing.assert_array_equal(y.T, round_to_nearest(weight, format).dequantize(COLUMNS))


def test_two_products_share_an_lpbq_matrix() -> None:
    weight = matrix(24, 64)
    bundle, one = shared_product(weight), assignment(weight, LPBQ[0])
    QuantizeWeightsQDQ(Plan("recipe", "npu", (one, replace(one, node="again"))), SOLVERS, direct=True).run(bundle)
    graph = bundle.components["graph"].graph
    assert [node.op_type for node in graph] == ["DequantizeLinear", "DequantizeLinear", "MatMul", "MatMul"]
    assert len(graph.initializers) == 4


@pytest.mark.parametrize("format", [LPBQ[1], weight_format(4, 32, negative_scales=False)], ids=str)
def test_turning_a_matrix_takes_little_more_than_its_levels(format: WeightFormat) -> None:
    out, columns = 6_000, 1024
    component = lpbq_component(np.zeros((out, columns), np.float32), format, direct=True, drawn=Drawn((out, columns)))
    stored = {v.name: v.const_value.expression for v in component.graph.initializers.values()}
    SOLVERS["minmax"](matrix(1, 64), format)  # compile the kernels first
    tracemalloc.start()
    for name in ("w.int4", "w.scales", *(f"w.{stream}" for stream in format.extra)):
        stored[name].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = out * columns // 2
    assert size < peak < 3.5 * size + 8_000_000
    assert 3.5 * size + 8_000_000 < 4 * out * columns  # the float matrix alone
