"""Products of integers that round their inputs as they run are those that numpy computes, and never saturate."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.errors import HvlcError
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.plan import Plan
from hvlc.package.streaming import Layout
from hvlc.passes.quantize.multiply_integers import MultiplyIntegers
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.solvers import SOLVERS
from hvlc.solvers.paired import round_in_pairs
from hvlc.weights.formats import LARGEST_PAIR, Levels, ScaleType, Stream, WeightFormat, weight_format
from hvlc.weights.integer_matrix import IntegerMatrix, Part
from hvlc.weights.lazy import Constant
from hvlc.weights.quantized import Quantization, Solver
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.passes.quantize.test_quantize_weights import assignment, matrix, product

_INT16 = 32_767


def paired(columns: int) -> WeightFormat:
    return weight_format(8, columns, True, ScaleType.FLOAT32, False, per_channel=True, integer_product=True)


def multiplied(weight: np.ndarray) -> Component:
    bundle = product(weight)
    MultiplyIntegers(
        Plan("recipe", "cpu", (assignment(weight, paired(weight.shape[1]), solver="pairs"),)), SOLVERS
    ).run(bundle)
    return bundle.components["graph"]


def expected(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """float64 product of the inputs, rounded a row at a time, by the dequantized matrix."""
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale = np.maximum((high - low) * np.float32(1 / 255), np.float32(1e-30))
    rounded = np.clip(np.rint((x - low) / scale), 0, 255).astype(np.float64) * scale + low
    matrix = round_in_pairs(weight, paired(weight.shape[1])).dequantize(weight.shape[1])
    return np.asarray(rounded @ matrix.T.astype(np.float64))


@pytest.mark.parametrize("columns", [1, 2, 33, 96])
@pytest.mark.usefixtures("checked")
def test_a_product_is_that_of_rounded_inputs(columns: int) -> None:
    weight = matrix(24, columns)
    x = matrix(5, columns) * np.array([1, 100, 0.01, 1, 0], np.float32)[:, None]
    x[3] = 2.5  # a token of equal values
    component = multiplied(weight)
    assert "MatMul" not in [node.op_type for node in component.graph]
    wanted = expected(x, weight)
    for optimization in OPTIMIZATIONS:
        (y,) = session(component.model, optimization).run(None, {"x": x})
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


def test_a_token_does_not_depend_on_the_others() -> None:
    weight, x = matrix(24, 96), matrix(6, 96)
    x[0] *= 1000
    run = session(multiplied(weight).model, "optimized").run
    (together,) = run(None, {"x": x})
    np.testing.assert_array_equal(together[2:3], run(None, {"x": x[2:3]})[0])


def test_products_of_one_value_round_it_once() -> None:
    b, weight = GraphBuilder("graph"), matrix(8, 16)
    x = b.input("x", ir.DataType.FLOAT, ["n", 16])
    for name in ("first", "second"):
        y = b.op("MatMul", x, b.constant(np.ascontiguousarray(weight.T), f"{name}.weight"), name=name)
        b.output(y, name, ir.DataType.FLOAT, ["n", 8])
    bundle = Bundle("test")
    bundle.add(Component("graph", Role.DECODER, b.model(), "graph"))
    planned = tuple(
        replace(assignment(weight, paired(16), solver="pairs"), node=name, weight=f"{name}.weight")
        for name in ("first", "second")
    )
    MultiplyIntegers(Plan("recipe", "cpu", planned), SOLVERS).run(bundle)
    ops = [node.op_type for node in bundle.components["graph"].graph]
    assert (ops.count("QuantizeLinear"), ops.count("MatMulIntegerToFloat")) == (1, 2)


def test_other_passes_leave_it_and_it_leaves_others() -> None:
    weight = matrix(8, 32)
    bundle, plan = product(weight), Plan("recipe", "cpu", (assignment(weight, paired(32), solver="pairs"),))
    QuantizeWeights(plan, SOLVERS).run(bundle)
    assert [node.op_type for node in bundle.components["graph"].graph] == ["MatMul"]
    MultiplyIntegers(Plan("recipe", "cpu", (assignment(weight, weight_format(8, 32)),)), SOLVERS).run(bundle)
    assert [node.op_type for node in bundle.components["graph"].graph] == ["MatMul"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([1e-38, 1.0, 1e30]), st.booleans())
def test_pairs_of_levels_never_saturate(seed: int, columns: int, size: float, outlier: bool) -> None:
    random = np.random.default_rng(seed)
    weight = (random.standard_t(2, (4, columns)) * size).astype(np.float32)
    weight = np.nan_to_num(weight, posinf=size, neginf=-size)
    if outlier:
        weight[:, : 2 * (columns // 2)] = np.abs(weight[:, : 2 * (columns // 2)]) + np.float32(size)
    levels = round_in_pairs(weight, paired(columns))
    signed = levels.stored(Stream.LEVELS).astype(int).reshape(4, columns) - 128
    products = 255 * np.pad(signed, ((0, 0), (0, columns % 2))).reshape(4, -1, 2)
    assert np.abs(products.sum(-1)).max() <= _INT16
    assert np.abs(products).max() <= _INT16
    assert (levels.scales > 0).all()


def test_levels_are_as_near_as_a_scale_without_cuts_makes_them() -> None:
    weight = matrix(16, 64)
    found = round_in_pairs(weight, paired(64)).dequantize(64)
    whole = np.maximum(np.abs(weight).max(1), np.abs(weight.reshape(16, -1, 2).sum(2)).max(1)) / 127
    naive = np.rint(weight / whole[:, None]) * whole[:, None]
    assert (np.square(found - weight).sum(1) <= np.square(naive - weight).sum(1) * (1 + 1e-5)).all()


def test_levels_of_another_solver_are_an_internal_error() -> None:
    weight = np.ones((2, 16), np.float32)
    bundle = product(weight)
    MultiplyIntegers(Plan("recipe", "cpu", (assignment(weight, paired(16), solver="rtn"),)), SOLVERS).run(bundle)
    sums = bundle.components["graph"].graph.initializers["w.sums"].const_value
    assert sums is not None
    with pytest.raises(HvlcError, match=f"and {LARGEST_PAIR} are the most"):
        sums.numpy()


def test_a_matrix_is_solved_once_for_all_that_is_stored() -> None:
    asked = list[int]()

    def solve(rows: np.ndarray, format: WeightFormat) -> Levels:
        asked.append(len(rows))
        return round_in_pairs(rows, format)

    weight = matrix(600, 32)
    whole = IntegerMatrix(Quantization(Constant(weight), paired(32), Solver("pairs", solve, 0.0)))
    layout = Layout()
    places = [layout.add(whole.part(part)) for part in Part]
    (unit,) = layout.units.values()
    ((levels, scales, sums),) = (job() for job in unit.jobs())
    assert sum(asked) == 600
    assert [length for _, length in places] == [levels.nbytes, scales.nbytes, sums.nbytes] == [600 * 32, 2400, 2400]
    np.testing.assert_array_equal(levels, whole.part(Part.LEVELS).read())
    dequantized = round_in_pairs(weight, paired(32)).dequantize(32)
    np.testing.assert_array_equal(levels.T * scales[:, None], dequantized)
    np.testing.assert_allclose(sums, dequantized.sum(1), rtol=1e-5, atol=1e-6)


def test_another_format_is_refused_by_the_solver() -> None:
    with pytest.raises(ValueError, match="pairs chooses levels for products of integers"):
        round_in_pairs(matrix(2, 32), weight_format(8, 32))
