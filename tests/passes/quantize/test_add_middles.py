"""Float zero points become a thin product by the sums of each block's inputs, which all products of a value share."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.builder import MICROSOFT, GraphBuilder
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.passes.quantize.add_middles import add_middles
from hvlc.passes.quantize.quantize_weights import QuantizeWeights
from hvlc.weights.formats import Levels, ScaleType, WeightFormat, ZeroType, weight_format
from hvlc.weights.lazy import Constant
from hvlc.weights.quantized import Quantization, SolvedWeight, Solver
from tests.helpers.checks import check_model
from tests.helpers.sessions import run
from tests.helpers.solvers import FLOAT_SCALES
from tests.helpers.tolerances import QUANTIZED_PRODUCT

WIDTH, OUT, BLOCK = 64, 8, 16


def products(count: int) -> tuple[ir.Model, list[np.ndarray], list[np.ndarray]]:
    """Products of one value, each with its middles, before the pass has seen them."""
    random = np.random.default_rng(0)
    b = GraphBuilder("products")
    x = b.input("x", ir.DataType.FLOAT, ["b", "s", WIDTH])
    weights, middles = [], []
    for index in range(count):
        levels = random.integers(0, 256, (OUT, WIDTH // BLOCK, BLOCK // 2)).astype(np.uint8)
        scales = random.normal(0, 0.1, (OUT, WIDTH // BLOCK)).astype(np.float32)
        inputs = [x, b.constant(levels, f"levels{index}"), b.constant(scales.reshape(-1), f"scales{index}")]
        attributes = {"K": WIDTH, "N": OUT, "bits": 4, "block_size": BLOCK, "accuracy_level": 1}
        y = b.op("MatMulNBits", *inputs, domain=MICROSOFT, name=f"product{index}", **attributes)
        b.output(y, f"y{index}", ir.DataType.FLOAT, ["b", "s", OUT])
        unpacked = np.stack([levels & 15, levels >> 4], -1).reshape(OUT, -1, BLOCK).astype(np.float64)
        middles.append(random.normal(0, 1, scales.shape).astype(np.float32))
        weights.append(((unpacked - 8) * scales[..., None] + middles[-1][..., None]).reshape(OUT, WIDTH))
    return b.model(), weights, middles


def added(count: int) -> tuple[ir.Model, list[np.ndarray]]:
    model, weights, middles = products(count)
    for index, node in enumerate(list(model.graph)):
        tensor = ir.tensor(middles[index], name=f"middles{index}")
        value = ir.Value(
            name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape)
        )
        model.graph.register_initializer(value)
        add_middles(model.graph, node, value, BLOCK)
    return model, weights


def test_the_products_are_those_of_the_whole_matrices() -> None:
    model, weights = added(2)
    check_model(model)
    x = np.random.default_rng(1).normal(size=(2, 3, WIDTH)).astype(np.float32)
    for found, weight in zip(run(model, {"x": x}), weights, strict=True):
        expected = x.astype(np.float64) @ weight.T
        assert np.abs(found - expected).max() <= QUANTIZED_PRODUCT * np.abs(expected).max()


def test_the_sums_are_shared_and_names_of_results_stay() -> None:
    model, _ = added(3)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("ReduceSum") == kinds.count("Reshape") == 1
    assert [kinds.count(kind) for kind in ("MatMulNBits", "Transpose", "MatMul", "Add")] == [3, 3, 3, 3]
    assert [value.name for value in model.graph.outputs] == ["y0", "y1", "y2"]


def test_without_the_middles_the_products_are_others() -> None:
    model, weights, _ = products(1)
    x = np.ones((1, 1, WIDTH), np.float32)
    (found,) = run(model, {"x": x})
    assert np.abs(found - x @ weights[0].T.astype(np.float32)).max() > 0.1


def between(rows: np.ndarray, format: WeightFormat) -> Levels:
    """A solver whose zero points lie between levels."""
    blocks = rows.reshape(len(rows), -1, format.block_size)
    least, most = blocks.min(-1), blocks.max(-1)
    scales = (most - least) / (2**format.bits - 1)
    scales = scales.astype(np.float16 if format.scale_type is ScaleType.FLOAT16 else np.float32).astype(np.float32)
    levels = np.clip(np.rint((blocks - least[..., None]) / scales[..., None]), 0, 2**format.bits - 1)
    return Levels(levels.astype(np.uint8), scales, (-least / scales).astype(np.float32), format)


@pytest.mark.parametrize("scale_type", FLOAT_SCALES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_solver_may_choose_float_zero_points(checked: None, bits: int, scale_type: ScaleType) -> None:
    weight = np.random.default_rng(0).normal(0.3, 1, (OUT, WIDTH)).astype(np.float32)
    format = weight_format(bits, BLOCK, False, scale_type, zero_type=ZeroType.FLOAT)
    b = GraphBuilder("graph")
    x = b.input("x", ir.DataType.FLOAT, ["n", WIDTH])
    b.output(b.op("MatMul", x, b.constant(weight.T.copy(), "w"), name="product"), "y", ir.DataType.FLOAT, ["n", OUT])
    bundle = Bundle("test")
    bundle.add(Component("graph", Role.DECODER, b.model(), "graph"))
    assignment = Assignment("graph", Role.DECODER, "product", "w", OUT, WIDTH, Action.QUANTIZE, "", format, "between")
    solver = Solver("between", between, 0)
    QuantizeWeights(Plan("recipe", "cpu", (assignment,)), {"between": solver}).run(bundle)
    feed = np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)
    (found,) = run(bundle.components["graph"].model, {"x": feed})
    dequantized = between(weight, format).dequantize(WIDTH)
    expected = feed.astype(np.float64) @ dequantized.T
    assert np.abs(found - expected).max() <= QUANTIZED_PRODUCT * np.abs(expected).max()
    quantization = Quantization(Constant(weight), format, solver)
    stored = tuple(quantization.stream(stream) for stream in quantization.streams)
    assert np.allclose(SolvedWeight(weight.shape, format, stored).dequantize(), dequantized, rtol=1e-5, atol=1e-6)
    assert sum(np.asarray(part.read()).nbytes for part in stored) == format.bytes(OUT, WIDTH)
