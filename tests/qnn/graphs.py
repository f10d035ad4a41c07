"""Small graphs on which Qualcomm's compiler goes wrong without a word, each beside one that it gets right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, UINT8, UINT16, INT8, INT32 = (
    TensorProto.FLOAT,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.INT8,
    TensorProto.INT32,
)
_LEVELS = {UINT8: 255, UINT16: 65535}
_MICROSOFT = "com.microsoft"
_RANDOM = np.random.default_rng


class Small:
    """A graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str], dtype: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, shape: Sequence[int | str], dtype: int = FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(value, dtype, shape))

    def constant(self, name: str, array: Any, dtype: Any = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def op(self, op_type: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def rounded(self, value: str, dtype: int, scale: float, zero: int, name: str = "") -> str:
        """A value through QuantizeLinear and DequantizeLinear; the last of them is called `name`."""
        scales = self._grid(value, dtype, scale, zero)
        levels = self.op("QuantizeLinear", [value, *scales], f"{value}.levels")
        return self.op("DequantizeLinear", [levels, *scales], name or f"{value}.rounded")

    def levels_input(self, name: str, shape: Sequence[int], dtype: int, scale: float, zero: int) -> str:
        """An input of integers, dequantized."""
        return self.op(
            "DequantizeLinear", [self.input(name, shape, dtype), *self._grid(name, dtype, scale, zero)], f"{name}.float"
        )

    def levels_output(self, value: str, name: str, shape: Sequence[int], dtype: int, scale: float, zero: int) -> None:
        """An output of integers."""
        self.op("QuantizeLinear", [value, *self._grid(value, dtype, scale, zero)], name)
        self.output(name, shape, dtype)

    def _grid(self, name: str, dtype: int, scale: float, zero: int) -> list[str]:
        numpy = helper.tensor_dtype_to_np_dtype(dtype)
        return [self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero", zero, numpy)]

    def save(self, path: Path, opset: int = 21) -> Path:
        graph = helper.make_graph(self.nodes, path.stem, self.inputs, self.outputs, self.initializers)
        domains = [helper.make_opsetid("", opset), helper.make_opsetid(_MICROSOFT, 1)]
        onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=11 if opset > 22 else 10), path)
        return path


def _range(dtype: int, largest: float) -> tuple[int, float, int]:
    """Type, scale and zero point of values between -largest and largest."""
    levels = _LEVELS[dtype]
    return dtype, 2 * largest / levels, (levels + 1) // 2


def small_network(path: Path, size: int | str = 8, width: int = 32, seed: int = 0) -> Path:
    """A float product and an activation: nothing to refuse."""
    g = Small()
    x = g.input("x", [1, size, width])
    weight = g.constant("weight", _RANDOM(seed).standard_normal((width, width)) / width**0.5)
    g.op("Relu", [g.op("MatMul", [x, weight], "product")], "y")
    g.output("y", [1, size, width])
    return g.save(path)


def quantized_ends(path: Path) -> Path:
    """A quantized product whose input and output are float: quantizing them is work for the graph's ends."""
    g = Small()
    x = g.rounded(g.input("x", [1, 8, 32]), *_range(UINT16, 4))
    levels = g.constant("levels", _RANDOM(0).integers(-127, 128, (32, 32)), np.int8)
    scales = [g.constant("scale", np.full(32, 0.01)), g.constant("zero", np.zeros(32), np.int8)]
    weight = g.op("DequantizeLinear", [levels, *scales], "weight", axis=1)
    g.rounded(g.op("MatMul", [x, weight], "product"), *_range(UINT16, 20), name="y")
    g.output("y", [1, 8, 32])
    return g.save(path)


def refused_node(path: Path) -> Path:
    """A node that the compiler says it does not support, between two that it takes."""
    g = Small()
    x = g.op("Relu", [g.input("x", [1, 8, 32])], "before")
    norm = g.op("SkipSimplifiedLayerNormalization", [x, x, g.constant("gamma", np.ones(32))], "refused", _MICROSOFT)
    g.op("Relu", [norm], "y")
    g.output("y", [1, 8, 32])
    return g.save(path)


def unfinished_product(path: Path) -> Path:
    """int16 by int16 activations: the compiler's own validation takes the node, and finalization fails (T5)."""
    g, int16 = Small(), TensorProto.INT16
    x = g.levels_input("x", [1, 4, 8, 16], int16, 8 / 65535, 0)
    z = g.levels_input("z", [1, 4, 16, 8], int16, 8 / 65535, 0)
    g.levels_output(g.op("MatMul", [x, z], "product"), "y", [1, 4, 8, 8], int16, 40 / 65535, 0)
    return g.save(path)


def large_vocabulary(path: Path) -> Path:
    """A table, a norm and a head of 32,000 rows each, which finalization in mode 1 has no memory for (T6)."""
    g, rows, width, block = Small(), 32000, 576, 32
    random = _RANDOM(0)
    table = g.constant("table", random.standard_normal((rows, width), np.float32))
    x = g.op("Gather", [table, g.input("ids", [1, 1], INT32)], "embedded")
    x = g.op("SimplifiedLayerNormalization", [x, g.constant("gamma", np.ones(width))], "normed", axis=-1)
    levels = g.constant("levels", random.integers(0, 256, (rows, width // block, block // 2)), np.uint8)
    scales = g.constant("scales", np.full(rows * width // block, 0.004))
    g.op("MatMulNBits", [x, levels, scales], "y", _MICROSOFT, K=width, N=rows, bits=4, block_size=block)
    g.output("y", [1, 1, rows])
    return g.save(path)


def attention(path: Path, tokens: int = 4) -> Path:
    """A GroupQueryAttention with a static cache, which the compiler takes only when told to."""
    g, heads, groups, cache, width = Small(), 4, 2, 16, 32
    names = {"q": heads, "k": groups, "v": groups}
    ins = [g.input(name, [1, tokens, count * width]) for name, count in names.items()]
    ins += [g.input(f"past.{name}", [1, groups, cache, width]) for name in ("key", "value")]
    ins += [g.input("past_length", [1, 1], INT32), g.input("total_length", [1], INT32)]
    node = helper.make_node(
        "GroupQueryAttention", ins, ["y", "key", "value"], domain=_MICROSOFT, num_heads=heads, kv_num_heads=groups
    )
    g.nodes.append(node)
    g.output("y", [1, tokens, heads * width])
    for name in ("key", "value"):
        g.output(name, [1, groups, cache, width])
    return g.save(path)


def sigmoid(path: Path, *, wrong: bool) -> Path:
    """N1: a 16-bit Sigmoid that is an output of the graph needs the scale 1/65536."""
    g = Small()
    x = g.levels_input("x", [1, 8, 64], *_range(UINT16, 4))
    grid = _range(UINT16, 4) if wrong else (UINT16, 1 / 65536, 0)
    g.levels_output(g.op("Sigmoid", [x], "sigmoid"), "y", [1, 8, 64], *grid)
    return g.save(path)


def product_of_activations(path: Path, *, wrong: bool) -> Path:
    """N2: the second of two activations is rounded to 8 bits by the compiler, unless the graph has done it well."""
    g = Small()
    x = g.rounded(g.input("x", [1, 4, 8, 16]), *_range(UINT16, 4))
    z = g.rounded(g.input("z", [1, 4, 16, 8]), *_range(UINT16 if wrong else UINT8, 4))
    g.rounded(g.op("MatMul", [x, z], "product"), *_range(UINT16, 20), name="y")
    g.output("y", [1, 4, 8, 8])
    return g.save(path)


def block_product(path: Path, *, wrong: bool) -> Path:
    """N3: a Gemm whose 4-bit weights have integer block scales needs its weight transposed; a MatMul does not."""
    g = Small()
    operands = _block_operands(g, transposed=False)
    product = g.op("Gemm", [*operands, g.constant("bias", np.zeros(64))], "product") if wrong else ""
    g.rounded(product or g.op("MatMul", operands, "product"), *_range(UINT16, 20), name="y")
    g.output("y", [8, 64])
    return g.save(path)


def block_bias(path: Path, *, wrong: bool) -> Path:
    """N7: a Gemm whose 4-bit weights have integer block scales loses its float bias; an addition does not."""
    g = Small()
    operands, bias = _block_operands(g, transposed=wrong), g.constant("bias", _RANDOM(1).standard_normal(64))
    if wrong:
        total = g.op("Gemm", [*operands, bias], "product", transB=1)
    else:
        product = g.rounded(g.op("MatMul", operands, "product"), *_range(UINT16, 20))
        total = g.op("Add", [product, g.rounded(bias, *_range(UINT16, 4))], "sum")
    g.rounded(total, *_range(UINT16, 20), name="y")
    g.output("y", [8, 64])
    return g.save(path)


def _block_operands(
    g: Small, *, transposed: bool, depth: int = 128, block: int = 32, largest: int = 15, faintest: float = 1
) -> list[str]:
    """A quantized input and 4-bit weights whose blocks have integer scales, which have a float scale per channel."""
    width, random = 64, _RANDOM(0)
    axis = 1 if transposed else 0
    shape, blocks = [depth, width], [depth // block, width]
    if transposed:
        shape, blocks = shape[::-1], blocks[::-1]
    integers = g.constant("integers", random.integers(1, largest + 1, blocks), np.uint8)
    channels = (random.random(width) * 0.002 + 0.001) * np.where(np.arange(width) % 8, 1, faintest)
    floats = [g.constant("floats", channels), g.constant("none", np.zeros(width), np.uint8)]
    scales = g.op("DequantizeLinear", [integers, *floats], "scales", axis=1 - axis)
    levels = g.constant("levels", random.integers(-7, 8, shape), ml_dtypes.int4)
    zeros = g.constant("zeros", np.zeros(blocks), ml_dtypes.int4)
    weight = g.op("DequantizeLinear", [levels, scales, zeros], "weight", axis=axis, block_size=block)
    return [g.rounded(g.input("x", [8, depth]), *_range(UINT16, 4)), weight]


def odd_inputs(path: Path, *, wrong: bool) -> Path:
    """N11: 4-bit weights whose blocks have integer scales need a multiple of 32 inputs, whatever the block."""
    return _blocks(path, depth=48 if wrong else 96, block=16)


def faint_channels(path: Path, *, wrong: bool) -> Path:
    """N12: channels whose products are below 2**-23 of a level of the output's."""
    return _blocks(path, faintest=2**-16 if wrong else 2**-6)


def wrapped_scales(path: Path, *, wrong: bool) -> Path:
    """N13: 4-bit levels times the integer scales of their blocks are 8-bit integers, and wrap around."""
    return _blocks(path, largest=31 if wrong else 16)


def _blocks(path: Path, **options: Any) -> Path:
    """A product with weights whose blocks have integer scales."""
    g = Small()
    operands = _block_operands(g, transposed=False, **options)
    g.rounded(g.op("MatMul", operands, "product"), *_range(UINT16, 20), name="y")
    g.output("y", [8, 64])
    return g.save(path)


def large_values(path: Path, *, wrong: bool) -> Path:
    """N4: float graphs run in half precision, which ends at 65,504."""
    g = Small()
    x = g.input("x", [1, 8, 32])
    large = g.op("Mul", [x, g.constant("up", 1e5 if wrong else 1e2)], "large")
    g.op("Mul", [large, g.constant("down", 1e-5 if wrong else 1e-2)], "y")
    g.output("y", [1, 8, 32])
    return g.save(path)


def layer_norm(path: Path, *, wrong: bool) -> Path:
    """N5: the gain of a 16-bit LayerNormalization must be uint8, or uint16 around 32,768."""
    g, width = Small(), 64
    x = g.rounded(g.input("x", [1, 8, width]), *_range(UINT16, 4))
    gain = np.linspace(0.5, 2, width)
    zero, scale = (0, 2 / 65535) if wrong else (32768, 2 / 32767)
    quantization = [g.constant("gain.scale", scale), g.constant("gain.zero", zero, np.uint16)]
    levels = g.constant("gain", np.round(gain / scale) + zero, np.uint16)
    gamma = g.op("DequantizeLinear", [levels, *quantization], "gamma")
    g.rounded(g.op("LayerNormalization", [x, gamma], "normed", axis=-1), *_range(UINT16, 8), name="y")
    g.output("y", [1, 8, width])
    return g.save(path)


def sixteen_rows(path: Path, *, wrong: bool) -> Path:
    """N10: a product with 16 rows after LayerNormalization, whose weights have a scale for each channel; the same rows
    in two axes are right.
    """
    g, width = Small(), 64
    shape = [1, 16, width] if wrong else [1, 4, 4, width]
    x = g.rounded(g.input("x", shape), *_range(UINT16, 4))
    grid = [g.constant("gain.scale", 2 / 32767), g.constant("gain.zero", 32768, np.uint16)]
    gamma = g.op("DequantizeLinear", [g.constant("gain", np.full(width, 49151), np.uint16), *grid], "gamma")
    beta = g.rounded(g.constant("bias", np.linspace(-1, 1, width)), *_range(UINT16, 1))
    normed = g.rounded(g.op("LayerNormalization", [x, gamma, beta], "normed", axis=-1), *_range(UINT16, 5))
    levels = g.constant("levels", _RANDOM(0).integers(-127, 128, [width, width]), np.int8)
    scales = g.constant("scales", _RANDOM(1).uniform(0.001, 0.002, width))
    weight = g.op("DequantizeLinear", [levels, scales], "weight", axis=1)
    g.rounded(g.op("MatMul", [normed, weight], "product"), *_range(UINT16, 5), name="y")
    g.output("y", [*shape[:-1], width])
    return g.save(path)


def narrow_norm(path: Path, *, wrong: bool) -> Path:
    """N6: a norm over 32 channels or fewer whose rows lie in two axes; rows in one axis are right."""
    g, tokens, heads, width = Small(), 64, 2, 32
    shape = [1, tokens, heads, width] if wrong else [1, tokens * heads, width]
    g.op("RMSNormalization", [g.input("x", shape), g.constant("gamma", np.linspace(0.5, 2, width))], "y", axis=-1)
    g.output("y", shape)
    return g.save(path, opset=23)


def negative_scale(path: Path, *, wrong: bool) -> Path:
    """N8: integer weights with a scale for each channel, one of them negative; MatMulNBits takes those."""
    g, width = Small(), 32
    x = g.rounded(g.input("x", [1, 8, width]), *_range(UINT16, 4))
    signs = np.where(np.arange(width) % 3 == 0, -1, 1)
    levels = _RANDOM(0).integers(-127, 128, (width, width))
    levels, scales = (levels, 0.01 * signs) if wrong else (levels * signs, np.full(width, 0.01))
    constants = [g.constant("levels", levels, np.int8), g.constant("scales", scales)]
    weight = g.op("DequantizeLinear", constants, "weight", axis=1)
    g.rounded(g.op("MatMul", [x, weight], "product"), *_range(UINT16, 20), name="y")
    g.output("y", [1, 8, width])
    return g.save(path)


def missing_zero_point(path: Path, *, wrong: bool) -> Path:
    """N9: 4-bit weights with a scale for each channel must say that their zero point is 0."""
    g, width = Small(), 32
    x = g.rounded(g.input("x", [1, 8, width]), *_range(UINT16, 4))
    constants = [
        g.constant("levels", _RANDOM(0).integers(-7, 8, (width, width)), ml_dtypes.int4),
        g.constant("scales", np.full(width, 0.05)),
        *([] if wrong else [g.constant("zeros", np.zeros(width), ml_dtypes.int4)]),
    ]
    weight = g.op("DequantizeLinear", constants, "weight", axis=1)
    g.rounded(g.op("MatMul", [x, weight], "product"), *_range(UINT16, 20), name="y")
    g.output("y", [1, 8, width])
    return g.save(path)


HAZARDS: dict[str, Callable[..., Path]] = {
    "N1": sigmoid,
    "N2": product_of_activations,
    "N3": block_product,
    "N4": large_values,
    "N5": layer_norm,
    "N6": narrow_norm,
    "N7": block_bias,
    "N8": negative_scale,
    "N9": missing_zero_point,
    "N10": sixteen_rows,
    "N11": odd_inputs,
    "N12": faint_channels,
    "N13": wrapped_scales,
}
