"""What targets/cpu.toml says onnxruntime's CPU provider does with stored levels, run."""

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.graphs.builder import MICROSOFT, GraphBuilder
from hvlc.passes.quantize.add_middles import add_middles
from hvlc.weights.formats.packing import pack
from tests.helpers.sessions import OPTIMIZATIONS, run
from tests.helpers.tolerances import QUANTIZED_LOOKUP, QUANTIZED_PRODUCT

ROWS, COLUMNS, BLOCK = 40, 96, 32


def drawn(bits: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(bits)
    levels = random.integers(0, 2**bits, (ROWS, COLUMNS // BLOCK, BLOCK)).astype(np.uint8)
    return levels, random.normal(0, 0.02, levels.shape[:2]).astype(np.float32)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_look_up_of_4_and_8_bits(bits: int, zeros: bool) -> None:
    levels, scales = drawn(bits)
    points = np.random.default_rng(9).integers(0, 2**bits, (ROWS, 4)).astype(np.uint8)[:, : COLUMNS // BLOCK + 1]
    b = GraphBuilder("lookup")
    ids = b.input("ids", ir.DataType.INT64, ["n"])
    rows = b.constant(pack(levels, bits).reshape(ROWS, -1), "rows")
    inputs = [rows, ids, b.constant(scales, "scales")]
    blocks = COLUMNS // BLOCK
    if zeros:
        stored = points if bits == 4 else points[:, :blocks]
        inputs.append(b.constant(pack(np.ascontiguousarray(stored), bits), "points"))
    middle = points[:, :blocks, None].astype(np.float64) if zeros else 2 ** (bits - 1)
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK, "bits": bits}
    found = b.op("GatherBlockQuantized", *inputs, domain=MICROSOFT, **attributes)
    b.output(found, "found", ir.DataType.FLOAT, ["n", COLUMNS])
    asked = np.array([3, 0, ROWS - 1, 3])
    table = ((levels.astype(np.float64) - middle) * scales[..., None]).reshape(ROWS, -1)
    (values,) = run(b.model(), {"ids": asked})
    assert np.abs(values - table[asked]).max() <= QUANTIZED_LOOKUP * np.abs(table).max()


def product(bits: int) -> tuple[ir.Model, np.ndarray]:
    """A product with float zero points, and the matrix that it is of."""
    levels, scales = drawn(bits)
    zeros = np.random.default_rng(5).normal(2 ** (bits - 1), 4, scales.shape)
    b = GraphBuilder("product")
    x = b.input("x", ir.DataType.FLOAT, ["b", "s", COLUMNS])
    inputs = [x, b.constant(pack(levels, bits), "levels"), b.constant(scales.reshape(-1), "scales")]
    attributes = {"K": COLUMNS, "N": ROWS, "bits": bits, "block_size": BLOCK, "accuracy_level": 1}
    b.output(b.op("MatMulNBits", *inputs, domain=MICROSOFT, name="dense", **attributes), "y", ir.DataType.FLOAT, "bsn")
    middles = b.constant(((2 ** (bits - 1) - zeros) * scales).astype(np.float32), "middles")
    model = b.model()
    add_middles(model.graph, model.graph[0], middles, BLOCK)
    return model, ((levels - zeros[..., None]) * scales[..., None].astype(np.float64)).reshape(ROWS, -1)


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_with_float_zero_points(bits: int, tokens: int, optimization: str) -> None:
    model, weight = product(bits)
    x = np.random.default_rng(0).normal(size=(2, tokens, COLUMNS)).astype(np.float32)
    (values,) = run(model, {"x": x}, optimization)
    expected = x.astype(np.float64) @ weight.T
    assert np.abs(values - expected).max() <= QUANTIZED_PRODUCT * np.abs(expected).max()
    assert np.abs(values - 1.001 * expected).max() > QUANTIZED_PRODUCT * np.abs(expected).max()
