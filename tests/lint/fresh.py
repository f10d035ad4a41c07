"""Models that were held out once: 111 of 122 agreed, and the other eleven corrected the rules of `hvlc/targets`."""

from collections.abc import Callable, Iterator

import numpy as np

from tests.lint.building import blockwise, convolution, product, unit
from tests.lint.tape import TYPES, Case, K, N, S, Tape, absent, floats, ints, one, scalar


def fresh() -> Iterator[Case]:
    """All of them."""
    image, tokens = (1, 16, 12, 12), (1, 10, 48)
    for op in "Acos Cosh Asinh Softplus HardSigmoid Exp Neg Sqrt Floor".split():
        yield one(f"fresh-{op}-float16", op, [(tokens, "float16")], tokens)
    for op in ("Abs", "Neg", "Sign", "Relu"):
        yield one(f"fresh-{op}-int32", op, [(tokens, "int32")], tokens)
    for op in ("Add", "Mul", "Div", "Pow", "Max"):
        yield one(f"fresh-{op}-broadcast", op, [(tokens, "float32"), floats(48)], tokens)
    for op in ("Equal", "Greater", "Less"):
        yield one(f"fresh-{op}-int64", op, [(tokens, "int64"), (tokens, "int64")], tokens, "bool")
    yield one("fresh-BitShift", "BitwiseAnd", [(tokens, "int32"), (tokens, "int32")], tokens)
    yield one("fresh-Where-scalar", "Where", [(tokens, "bool"), (tokens, "float32"), scalar(-1e4)], tokens, "float32")
    yield one("fresh-Clip-bounds", "Clip", [(tokens, "float32"), scalar(-1), scalar(1)], tokens)
    yield one("fresh-Elu-alpha", "Elu", [(tokens, "float32")], tokens, alpha=0.5)
    yield one("fresh-LeakyRelu-slope", "LeakyRelu", [(tokens, "float32")], tokens, alpha=0.2)
    yield one("fresh-Cast-bool-float32", "Cast", [(tokens, "bool")], tokens, "float32", to=TYPES["float32"])
    yield one("fresh-Cast-float32-int64", "Cast", [(tokens, "float32")], tokens, "int64", to=TYPES["int64"])
    for dims, perm in (((2, 3, 4), [2, 1, 0]), ((1, 2, 3, 4, 5), [4, 3, 2, 1, 0]), ((4, 6), [1, 0])):
        moved = tuple(dims[place] for place in perm)
        yield one(f"fresh-Transpose-{len(dims)}", "Transpose", [(dims, "float16")], moved, perm=perm)
    yield one("fresh-Reshape-inferred", "Reshape", [(tokens, "float32"), ints(0, 0, 6, -1)], (1, 10, 6, 8))
    yield one("fresh-Concat-three", "Concat", [(tokens, "float32")] * 3, (1, 30, 48), axis=1)
    yield one("fresh-Concat-int32", "Concat", [(tokens, "int32")] * 2, (1, 20, 48), axis=1)
    yield one("fresh-Slice-two-axes", "Slice", [(tokens, "float32"), ints(0, 8), ints(5, 40), ints(1, 2)], (1, 5, 32))
    yield one("fresh-Slice-int64", "Slice", [((1, 64), "int64"), ints(0), ints(32), ints(1)], (1, 32))
    yield one("fresh-Split-three", "Split", [(tokens, "float16")], (1, 10, 16), outputs=3, axis=2, num_outputs=3)
    yield one("fresh-Gather-axis2", "Gather", [(tokens, "float32"), ints(1, 3, 5)], (1, 10, 3), axis=2)
    yield one("fresh-Gather-negative", "Gather", [(tokens, "float32"), ints(-1)], (1, 1, 48), axis=1)
    yield one("fresh-GatherND-deep", "GatherND", [((4, 5, 6), "float32"), ((3, 2), "int64")], (3, 6))
    yield one(
        "fresh-ScatterND-add",
        "ScatterND",
        [((16, 32), "float32"), ((2, 1), "int64"), ((2, 32), "float32")],
        (16, 32),
        reduction="add",
    )
    yield one("fresh-Pad-tokens", "Pad", [(tokens, "float32"), ints(0, 2, 0, 0, 0, 0)], (1, 12, 48))
    yield one("fresh-Tile-image", "Tile", [(image, "float32"), ints(1, 1, 2, 2)], (1, 16, 24, 24))
    yield one("fresh-Expand-heads", "Expand", [((1, 2, 1, 8, 16), "float32"), ints(1, 2, 3, 8, 16)], (1, 2, 3, 8, 16))
    yield one("fresh-Squeeze-two", "Squeeze", [((1, 10, 1, 48), "float32"), ints(0, 2)], (10, 48))
    yield one("fresh-Unsqueeze-rank6", "Unsqueeze", [((1, 2, 3, 4, 5), "float32"), ints(0)], (1, 1, 2, 3, 4, 5))
    yield one("fresh-TopK-many", "TopK", [((1, 1000), "float32"), ints(50)], (1, 50), outputs=2)
    yield one("fresh-ArgMax-axis1", "ArgMax", [(tokens, "float32")], (1, 48), "int64", axis=1, keepdims=0)
    yield one("fresh-CumSum-exclusive", "CumSum", [(tokens, "float32"), scalar(1, "int64")], tokens, exclusive=1)
    yield one("fresh-CumSum-int32", "CumSum", [((1, 32), "int32"), scalar(1, "int64")], (1, 32))
    for op in ("ReduceMax", "ReduceSum", "ReduceMean", "ReduceL2"):
        yield one(f"fresh-{op}-two", op, [(image, "float32"), ints(2, 3)], (1, 16, 1, 1))
    yield one("fresh-ReduceMean-float16", "ReduceMean", [(tokens, "float16"), ints(-1)], (1, 10, 1))
    yield one("fresh-Softmax-axis2", "Softmax", [(image, "float32")], image, axis=2)
    yield one(
        "fresh-LayerNormalization-axis2",
        "LayerNormalization",
        [(tokens, "float32"), floats(48), floats(48)],
        tokens,
        axis=2,
    )
    yield one(
        "fresh-GroupNormalization-float16",
        "GroupNormalization",
        [(image, "float16"), floats(16, dtype="float16"), floats(16, dtype="float16")],
        image,
        num_groups=4,
    )
    yield one(
        "fresh-InstanceNormalization-1d",
        "InstanceNormalization",
        [((1, 16, 40), "float32"), floats(16), floats(16)],
        (1, 16, 40),
    )
    for strides, pads, side in (([2, 2], [1] * 4, 6), ([1, 1], [0] * 4, 10)):
        weights = floats(24, 16, 3, 3)
        yield one(
            f"fresh-Conv-stride{strides[0]}",
            "Conv",
            [(image, "float32"), weights, floats(24)],
            (1, 24, side, side),
            strides=strides,
            pads=pads,
        )
    yield one("fresh-Conv-valid", "Conv", [(image, "float32"), floats(4, 16, 3, 3)], (1, 4, 10, 10), auto_pad="VALID")
    yield one(
        "fresh-ConvTranspose-1d", "ConvTranspose", [((1, 8, 16), "float32"), floats(8, 4, 2)], (1, 4, 32), strides=[2]
    )
    yield one(
        "fresh-ConvTranspose-padding",
        "ConvTranspose",
        [((1, 8, 8, 8), "float32"), floats(8, 4, 3, 3)],
        (1, 4, 16, 16),
        strides=[2, 2],
        pads=[1] * 4,
        output_padding=[1, 1],
    )
    yield one(
        "fresh-AveragePool-padding",
        "AveragePool",
        [(image, "float32")],
        image,
        kernel_shape=[3, 3],
        pads=[1] * 4,
        count_include_pad=1,
    )
    yield one(
        "fresh-MaxPool-ceil",
        "MaxPool",
        [((1, 4, 9, 9), "float32")],
        (1, 4, 5, 5),
        kernel_shape=[2, 2],
        strides=[2, 2],
        ceil_mode=1,
    )
    yield one(
        "fresh-AveragePool-3d",
        "AveragePool",
        [((1, 4, 8, 8, 8), "float32")],
        (1, 4, 4, 4, 4),
        kernel_shape=[2] * 3,
        strides=[2] * 3,
    )
    scales: Callable[[Tape], str] = lambda tape: tape.constant([1, 1, 0.5, 0.5])  # noqa: E731
    yield one("fresh-Resize-half", "Resize", [(image, "float32"), absent, scales], (1, 16, 6, 6), mode="linear")
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    yield one(
        "fresh-Resize-asymmetric",
        "Resize",
        [(image, "float32"), absent, absent, ints(1, 16, 24, 24)],
        (1, 16, 24, 24),
        **nearest,
    )
    yield one("fresh-Gemm-bias-scaled", "Gemm", [((S, K), "float32"), floats(K, N), floats(N)], (S, N), beta=0.5)
    yield one("fresh-MatMul-vector", "MatMul", [(tokens, "float32"), floats(48)], (1, 10))
    yield one("fresh-MatMul-broadcast", "MatMul", [((2, 4, 8, 16), "float32"), ((16, 8), "float32")], (2, 4, 8, 8))
    yield one("fresh-MatMul-mixed-rank", "MatMul", [((1, 4, 8, 16), "float16"), ((4, 16, 8), "float16")], (1, 4, 8, 8))
    yield one(
        "fresh-Einsum-values",
        "Einsum",
        [((1, 4, 8, 8), "float32"), ((1, 4, 8, 16), "float32")],
        (1, 4, 8, 16),
        equation="bhij,bhjd->bhid",
    )
    heads = (1, 4, 8, 16)
    yield one("fresh-Attention-scale", "Attention", [(heads, "float16")] * 3, heads, opset=23, scale=0.2)
    yield one("fresh-Attention-24", "Attention", [(heads, "float32")] * 3, heads, opset=24)
    yield one(
        "fresh-RotaryEmbedding-partial",
        "RotaryEmbedding",
        [(heads, "float32"), floats(16, 4), floats(16, 4), ((1, 8), "int64")],
        heads,
        opset=23,
        rotary_embedding_dim=8,
    )
    yield blockwise("fresh-MatMulNBits-8-int16", 8, 64, activation="int16")
    yield blockwise("fresh-MatMulNBits-2-uint16", 2, 32, activation="uint16")
    yield blockwise("fresh-MatMulNBits-float16-zero", 4, 128, dtype="float16", zero=0x88)
    for activation, weight, grain in (
        ("uint8", "int8", "channel"),
        ("uint16", "int4", "tensor"),
        ("uint16", "uint8", "channel"),
        ("int16", "uint8", "tensor"),
        ("int16", "int4", "channel"),
    ):
        yield product(f"fresh-Gemm-{activation}-{weight}-{grain}", activation, weight, grain, op="Gemm")
    for activation, weight, grain in (
        ("uint8", "int4", "tensor"),
        ("uint16", "int16", "tensor"),
        ("int16", "int16", "tensor"),
    ):
        yield convolution(f"fresh-Conv-{activation}-{weight}-{grain}", activation, weight, grain)
    yield product("fresh-MatMul-uint16-LPBQ128", "uint16", "int4", "lpbq128")
    yield product("fresh-MatMul-uint16-int4-block128", "uint16", "int4", "block128")
    for dtype in ("uint8", "uint16", "int16"):
        for op in ("Cos", "Log", "Elu", "Mish", "Floor"):
            yield unit(f"fresh-{op}-{dtype}", dtype, op)
        for op in ("MaxPool", "AveragePool", "GlobalAveragePool"):
            tape = Tape()
            x = tape.quantized(tape.input("x", image), dtype)
            sizes = {} if op.startswith("Global") else {"kernel_shape": [2, 2], "strides": [2, 2]}
            side = 6 if sizes else 1
            tape.output(tape.quantized(tape.op(op, x, **sizes), dtype), (1, 16, side, side))
            yield tape.case(f"fresh-{op}-{dtype}")
        tape = Tape()
        x = tape.quantized(tape.input("x", tokens), dtype)
        mean = tape.op("ReduceMean", x, tape.constant([-1], np.int64))
        tape.output(tape.quantized(mean, dtype), (1, 10, 1))
        yield tape.case(f"fresh-ReduceMean-{dtype}")
    for dtype in ("float32", "float16"):
        tape = Tape(23)
        x = tape.input("x", (1, 16, 64), dtype)
        normed = tape.op("RMSNormalization", x, tape.normal(64, dtype=dtype), epsilon=1e-5)
        packed = tape.op("MatMul", normed, tape.normal(64, 192, dtype=dtype))
        parts = [
            tape.op("Slice", packed, *(tape.constant([v], np.int64) for v in (a, a + 64, 2))) for a in (0, 64, 128)
        ]
        made = tape.op("Attention", *parts, q_num_heads=4, kv_num_heads=4)
        tape.output(tape.op("Add", x, tape.op("MatMul", made, tape.normal(64, 64, dtype=dtype))), (1, 16, 64), dtype)
        yield tape.case(f"fresh-block-attention-{dtype}")
    yield _mobile("fresh-block-mobile", "HardSwish")
    yield _mobile("fresh-block-mobile-celu", "Celu")
    tape = Tape()
    x = tape.input("x", (1, "h", "w", 3))
    tape.output(tape.op("Transpose", tape.op("Mul", x, tape.constant(1 / 255)), perm=[0, 3, 1, 2]), (1, 3, "h", "w"))
    yield tape.case("fresh-block-dynamic-image")


def _mobile(name: str, activation: str) -> Case:
    """An inverted bottleneck: wide, depth-wise, narrow, with a residual."""
    tape = Tape()
    x = tape.input("x", (1, 8, 16, 16))
    wide = tape.op(activation, tape.op("Conv", x, tape.normal(32, 8, 1, 1)))
    deep = tape.op(activation, tape.op("Conv", wide, tape.normal(32, 1, 3, 3), group=32, pads=[1] * 4))
    pooled = tape.op("GlobalAveragePool", deep)
    gated = tape.op("Mul", deep, tape.op("Sigmoid", tape.op("Conv", pooled, tape.normal(32, 32, 1, 1))))
    tape.output(tape.op("Add", x, tape.op("Conv", gated, tape.normal(8, 32, 1, 1))), (1, 8, 16, 16))
    return tape.case(name)
