"""Quantized products and look-ups run on onnxruntime as numpy computes them from the same levels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.errors import HvlcError
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.solvers import SOLVERS
from hvlc.solvers.rtn import round_to_nearest
from hvlc.weights.formats import Levels, ScaleType, Stream, WeightFormat, weight_format
from hvlc.weights.lazy import Constant
from hvlc.weights.quantized import SolvedWeight, Solver
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.solvers import FLOAT_SCALES
from tests.helpers.tolerances import QUANTIZED_LOOKUP, QUANTIZED_PRODUCT

PRODUCTS = [
    weight_format(bits, block, symmetric, scale_type)
    for bits in (4, 8)
    for block in (16, 32, 64, 128)
    for symmetric in (True, False)
    for scale_type in FLOAT_SCALES
]
LOOKUPS = [f for f in PRODUCTS if f.bits == 4]


def matrix(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows + columns).normal(size=(rows, columns)).astype(np.float32)


def assignment(weight: np.ndarray, format: WeightFormat | None, **changes: Any) -> Assignment:
    settings: Mapping[str, Any] = {
        "component": "graph",
        "role": Role.DECODER,
        "node": "product",
        "weight": "w",
        "out_features": weight.shape[0],
        "in_features": weight.shape[1],
        "action": Action.QUANTIZE,
        "format": format,
        "solver": "rtn",
    }
    return Assignment(**{**settings, **changes})


def product(weight: np.ndarray) -> Bundle:
    b = GraphBuilder("graph")
    x = b.input("x", ir.DataType.FLOAT, ["n", weight.shape[1]])
    y = b.op("MatMul", x, b.constant(np.ascontiguousarray(weight.T), "w"), name="product")
    b.output(y, "y", ir.DataType.FLOAT, ["n", weight.shape[0]])
    return _bundle(b)


def lookup(weight: np.ndarray) -> Bundle:
    b = GraphBuilder("graph")
    y = b.op("Gather", b.constant(weight, "w"), b.input("x", ir.DataType.INT64, ["n"]), axis=0, name="product")
    b.output(y, "y", ir.DataType.FLOAT, ["n", weight.shape[1]])
    return _bundle(b)


def _bundle(b: GraphBuilder) -> Bundle:
    bundle = Bundle("test")
    bundle.add(Component("graph", Role.DECODER, b.model(), "graph"))
    return bundle


def quantize(bundle: Bundle, *assignments: Assignment) -> None:
    QuantizeWeights(Plan("recipe", "cpu", assignments), SOLVERS).run(bundle)


@pytest.mark.parametrize("format", PRODUCTS, ids=str)
@pytest.mark.parametrize("columns", [64, 100, 200])
@pytest.mark.usefixtures("checked")
def test_a_product_is_that_of_the_dequantized_matrix(format: WeightFormat, columns: int) -> None:
    weight = matrix(24, columns)
    bundle = product(weight)
    quantize(bundle, assignment(weight, format))
    assert [n.op_type for n in bundle.components["graph"].graph if n.domain] == ["MatMulNBits"]
    x = matrix(3, columns)
    dequantized = round_to_nearest(weight, format).dequantize(columns)
    expected = x.astype(np.float64) @ dequantized.T.astype(np.float64)
    for optimization in OPTIMIZATIONS:
        (y,) = session(bundle.components["graph"].model, optimization).run(None, {"x": x})
        assert np.abs(y - expected).max() <= QUANTIZED_PRODUCT * np.abs(expected).max()


@pytest.mark.parametrize("format", LOOKUPS, ids=str)
@pytest.mark.parametrize("columns", [128, 256, 384])
@pytest.mark.usefixtures("checked")
def test_a_look_up_is_that_of_the_dequantized_table(format: WeightFormat, columns: int) -> None:
    table, ids = matrix(10, columns), np.array([0, 9, 3, 3])
    bundle = lookup(table)
    quantize(bundle, assignment(table, format))
    assert [n.op_type for n in bundle.components["graph"].graph if n.domain] == ["GatherBlockQuantized"]
    expected = round_to_nearest(table, format).dequantize(columns)[ids]
    for optimization in OPTIMIZATIONS:
        (y,) = session(bundle.components["graph"].model, optimization).run(None, {"x": ids})
        np.testing.assert_allclose(y, expected, atol=QUANTIZED_LOOKUP * np.abs(expected).max(), rtol=0)


def test_the_comparison_sees_one_wrong_level() -> None:
    format = weight_format(4, 16)
    weight = matrix(4, 32)
    bundle = product(weight)

    def wrong(values: np.ndarray, asked: WeightFormat):
        levels = round_to_nearest(values, asked)
        levels.levels[0, 0, 0] ^= 1
        return levels

    QuantizeWeights(Plan("recipe", "cpu", (assignment(weight, format),)), {"rtn": Solver("wrong", wrong, 0)}).run(
        bundle
    )
    x = np.ones((1, 32), np.float32)
    (y,) = session(bundle.components["graph"].model).run(None, {"x": x})
    expected = x @ round_to_nearest(weight, format).dequantize(32).T
    assert np.abs(y - expected).max() > 100 * QUANTIZED_PRODUCT * np.abs(expected).max()


@pytest.mark.parametrize("float_compute", [True, False])
def test_the_plan_says_in_what_the_product_computes(float_compute: bool) -> None:
    weight = matrix(4, 32)
    bundle = product(weight)
    plan = Plan("recipe", "cpu", (assignment(weight, weight_format(4, 16)),), float_compute)
    QuantizeWeights(plan, SOLVERS).run(bundle)
    (node,) = [n for n in bundle.components["graph"].graph if n.domain]
    assert node.attributes.get_int("accuracy_level") == (1 if float_compute else 4)


def test_a_kept_weight_is_journalled_with_its_reason() -> None:
    weight = matrix(4, 32)
    bundle = product(weight)
    quantize(bundle, assignment(weight, None, action=Action.KEEP, reason="asked to"))
    (entry,) = bundle.journal
    assert (entry.changed, entry.skipped[0].where, entry.skipped[0].reason) == (0, "w", "asked to")


def test_the_float_weight_leaves_the_graph() -> None:
    weight = matrix(4, 32)
    bundle = product(weight)
    quantize(bundle, assignment(weight, weight_format(4, 16)))
    assert sorted(bundle.components["graph"].graph.initializers) == ["w.int4", "w.scales"]


def test_a_plan_without_format_is_our_bug() -> None:
    weight = matrix(4, 32)
    with pytest.raises(HvlcError, match="has no format") as error:
        quantize(product(weight), assignment(weight, None))
    assert error.value.exit_code == 1


def test_a_stream_that_no_node_reads_is_our_bug() -> None:
    weight = matrix(4, 32)
    bundle = product(weight)
    with pytest.raises(HvlcError, match=r"QuantizeWeights reads no factors, which int4 b16 sym lpbq stores") as error:
        quantize(bundle, assignment(weight, weight_format(4, 16, True, ScaleType.LPBQ, False)))
    assert (error.value.code, error.value.exit_code) == ("pass.stream", 1)
    assert [node.op_type for node in bundle.components["graph"].graph] == ["MatMul"]


ASYMMETRIC = [weight_format(bits, block, False, ScaleType.FLOAT32) for bits in (4, 8) for block in (16, 32, 128)]


def exact_levels(format: WeightFormat, rows: int, columns: int) -> Levels:
    """Levels whose products with small whole numbers are exact in float32: scales are powers of two."""
    random, shape = np.random.default_rng(format.block_size), (rows, -(-columns // format.block_size))
    levels = random.integers(0, 2**format.bits, (*shape, format.block_size)).astype(np.uint8)
    scales = np.exp2(random.integers(-6, 3, shape)).astype(np.float32)
    return Levels(levels, scales, random.integers(0, 2**format.bits, shape).astype(np.uint8), format)


def with_levels(bundle: Bundle, weight: np.ndarray, levels: Levels) -> ir.Model:
    """The only graph of a bundle, its weight replaced by given levels."""
    stored = tuple(Constant(array) for array in levels.streams.values())
    shape = (weight.shape[0], weight.shape[1])
    solved = {("graph", "product"): SolvedWeight(shape, levels.format, stored)}
    QuantizeWeights(Plan("recipe", "cpu", (assignment(weight, levels.format),)), SOLVERS, solved).run(bundle)
    return bundle.components["graph"].model


@pytest.mark.parametrize("format", ASYMMETRIC, ids=str)
@pytest.mark.parametrize("columns", [128, 384, 400])
@pytest.mark.parametrize("tokens", [1, 5])
def test_integer_zero_points_are_onnxruntimes_to_the_bit(format: WeightFormat, columns: int, tokens: int) -> None:
    weight = matrix(24, columns)
    levels = exact_levels(format, *weight.shape)
    x = np.random.default_rng(1).integers(-3, 4, (tokens, columns)).astype(np.float32)
    model = with_levels(product(weight), weight, levels)
    expected = x @ levels.dequantize(columns).T
    (node,) = (n for n in model.graph if n.op_type == "MatMulNBits")
    assert len(node.inputs) == 4
    for optimization in OPTIMIZATIONS:
        (y,) = session(model, optimization).run(None, {"x": x})
        np.testing.assert_array_equal(y, expected)
    shifted = replace(levels, zero_points=levels.zero_points ^ np.uint8(1))  # type: ignore[operator]
    assert (x @ shifted.dequantize(columns).T != expected).any()


@pytest.mark.parametrize("format", ASYMMETRIC, ids=str)
def test_a_look_up_with_integer_zero_points_is_exact_under_any_scales(format: WeightFormat) -> None:
    table, ids = matrix(10, 384), np.array([0, 9, 3, 3])
    levels = round_to_nearest(table + np.float32(0.5), format)
    model = with_levels(lookup(table), table, levels)
    for optimization in OPTIMIZATIONS:
        (y,) = session(model, optimization).run(None, {"x": ids})
        np.testing.assert_array_equal(y, levels.dequantize(384)[ids])


@pytest.mark.parametrize("block", [16, 32, 64])
def test_zero_points_are_stored_as_onnxruntimes_quantizer_stores_them(block: int) -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    weight, blocks = matrix(24, 384), 384 // block
    packed, scales = np.zeros((24, blocks, block // 2), np.uint8), np.zeros(24 * blocks, np.float32)
    zeros = np.zeros((24, (blocks + 1) // 2), np.uint8)
    quantize_matmul_4bits(packed, np.ascontiguousarray(weight.T), scales, zeros, block, 24, 384, False)
    levels = SOLVERS["minmax"](weight, weight_format(4, block, False, ScaleType.FLOAT32))
    np.testing.assert_array_equal(levels.stored(Stream.LEVELS), packed)
    np.testing.assert_array_equal(levels.stored(Stream.ZERO_POINTS), zeros)
    np.testing.assert_array_max_ulp(levels.scales.reshape(-1), scales, 2)  # two quotients here, one there
