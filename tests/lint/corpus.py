"""Small models, good and bad for an NPU: one operator or one block each, made without randomness.

The rules of `hvlc/targets` were written from the compiler's verdicts on all but the last part, `later`, which is held
out (`Case.held_out`): the agreement on it says what to expect of a model that nobody looked at.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from onnx import TensorProto, helper

from tests.lint.building import blockwise, convolution, dequantized, grouped, product, unit
from tests.lint.elements import elements
from tests.lint.formed import formed
from tests.lint.fresh import fresh
from tests.lint.tape import (
    ACTIVATIONS,
    LEVELS,
    MICROSOFT,
    NARROW,
    TYPES,
    Case,
    H,
    K,
    N,
    S,
    Tape,
    X,
    absent,
    floats,
    ints,
    one,
    scalar,
)
from tests.lint.typed import typed
from tests.lint.unseen import later, unseen

UNARY = (
    "Relu Sigmoid Tanh Exp Sqrt Neg Abs Log Sin Cos Tan Floor Ceil Round Sign Softplus HardSwish HardSigmoid Elu "
    "LeakyRelu Mish Reciprocal Erf Gelu Celu Selu ThresholdedRelu Softsign Atan Asin Sinh Softmax LogSoftmax "
    "Identity Clip Hardmax MeanVarianceNormalization"
).split()
HALF_UNARY = "Relu Sigmoid Exp Erf Softmax Gelu Abs Softplus".split()


def elementwise() -> Iterator[Case]:
    for op in UNARY:
        dims = (1, 4, S, S) if op == "MeanVarianceNormalization" else X
        yield one(f"{op}-float32", op, [(dims, "float32")], dims)
    for op in HALF_UNARY:
        yield one(f"{op}-float16", op, [(X, "float16")], X)
    for op in ("IsNaN", "IsInf"):
        yield one(f"{op}-float32", op, [(X, "float32")], X, "bool")
    yield one("Not-bool", "Not", [(X, "bool")], X)
    yield one("Swish-24", "Swish", [(X, "float32")], X, opset=24)
    yield one("PRelu-float32", "PRelu", [(X, "float32"), floats(H)], X)
    for op in "Add Sub Mul Div Pow Min Max".split():
        for dtype in ("float32", "float16", "int32"):
            yield one(f"{op}-{dtype}", op, [(X, dtype), (X, dtype)], X)
    for op in ("Add", "Mul", "Sub", "Div"):
        yield one(f"{op}-int64", op, [(X, "int64"), (X, "int64")], X)
    yield one("Mod-int32", "Mod", [(X, "int32"), (X, "int32")], X)
    yield one("Mod-fmod-float32", "Mod", [(X, "float32"), (X, "float32")], X, fmod=1)
    for op in "Equal Less Greater LessOrEqual GreaterOrEqual".split():
        yield one(f"{op}-float32", op, [(X, "float32"), (X, "float32")], X, "bool")
    for op in ("And", "Or", "Xor"):
        yield one(f"{op}-bool", op, [(X, "bool"), (X, "bool")], X)
    yield one("Where-float32", "Where", [(X, "bool"), (X, "float32"), (X, "float32")], X, "float32")
    yield one("Sum-three", "Sum", [(X, "float32")] * 3, X)
    yield one("Mean-two", "Mean", [(X, "float32")] * 2, X)
    for source, to in (
        ("float32", "float16"),
        ("float16", "float32"),
        ("int64", "int32"),
        ("int64", "float32"),
        ("int32", "bool"),
    ):
        yield one(f"Cast-{source}-{to}", "Cast", [(X, source)], X, to, to=TYPES[to])
    yield one("Dropout-inference", "Dropout", [(X, "float32")], X)


def movement() -> Iterator[Case]:
    for dtype in ("float32", "int32", "int64", "bool"):
        yield one(f"Reshape-{dtype}", "Reshape", [(X, dtype), ints(1, S, 4, 16)], (1, S, 4, 16))
        yield one(f"Transpose-{dtype}", "Transpose", [(X, dtype)], (1, H, S), perm=[0, 2, 1])
    six = (1, 2, 2, 2, 8, 8)
    yield one("Reshape-rank5", "Reshape", [(X, "float32"), ints(1, 2, 4, 8, 8)], (1, 2, 4, 8, 8))
    yield one("Reshape-rank6", "Reshape", [(X, "float32"), ints(*six)], six)
    yield one("Reshape-rank7", "Reshape", [(X, "float32"), ints(1, *six)], (1, *six))
    yield one("Reshape-from-rank6", "Reshape", [(six, "float32"), ints(1, S, H)], X)
    for rank, perm in ((5, [0, 2, 1, 4, 3]), (6, [0, 2, 1, 4, 3, 5])):
        dims = tuple([1, 2, 3, 4, 5, 6][:rank])
        moved = tuple(dims[p] for p in perm)
        yield one(f"Transpose-rank{rank}", "Transpose", [(dims, "float32")], moved, perm=perm)
    for rank in (2, 4, 5, 6):
        dims = (1, 2, 2, 2, 4, 8)[-rank:]
        yield one(f"Add-rank{rank}", "Add", [(dims, "float32"), (dims, "float32")], dims)
        yield one(f"Relu-rank{rank}", "Relu", [(dims, "float32")], dims)
        twice = (*dims[:-1], 16)
        yield one(f"Concat-rank{rank}", "Concat", [(dims, "float32"), (dims, "float32")], twice, axis=-1)
    yield one("Concat-int64", "Concat", [(X, "int64"), (X, "int64")], (1, 16, H), axis=1)
    yield one("Slice-steps", "Slice", [(X, "float32"), ints(0), ints(32), ints(2), ints(2)], (1, S, 16))
    yield one("Slice-negative-step", "Slice", [(X, "float32"), ints(7), ints(-9), ints(1), ints(-1)], X)
    yield one("Slice-dynamic", "Slice", [(X, "float32"), ((1,), "int64"), ((1,), "int64")], ("a", "b", "c"))
    yield one("Split-even", "Split", [(X, "float32")], (1, S, 32), outputs=2, axis=2, num_outputs=2)
    yield one("Split-given", "Split", [(X, "float32"), ints(16, 48)], (1, S, 16), outputs=2, axis=2)
    yield one("Expand", "Expand", [((1, 1, H), "float32"), ints(1, S, H)], X)
    yield one("Tile", "Tile", [(X, "float32"), ints(1, 2, 1)], (1, 16, H))
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield one(
            f"Pad-{mode}", "Pad", [((1, 4, 8, 8), "float32"), ints(0, 0, 1, 1, 0, 0, 1, 1)], (1, 4, 10, 10), mode=mode
        )
    yield one("Squeeze", "Squeeze", [((1, S, 1, H), "float32"), ints(2)], X)
    yield one("Unsqueeze", "Unsqueeze", [(X, "float32"), ints(2)], (1, S, 1, H))
    yield one("Flatten", "Flatten", [((2, S, H), "float32")], (2, S * H), axis=1)
    for dtype in ("int64", "int32"):
        yield one(f"Gather-table-{dtype}", "Gather", [floats(100, H), ((1, S), dtype)], X, "float32")
    yield one("Gather-constant", "Gather", [(X, "float32"), ints(3)], (1, 1, H), axis=1)
    yield one("GatherND", "GatherND", [(X, "float32"), ((1, 2), "int64")], (1, H))
    yield one("GatherElements", "GatherElements", [(X, "float32"), (X, "int64")], X, axis=1)
    yield one("ScatterND", "ScatterND", [((16, 32), "float32"), ((1, 1), "int64"), ((1, 32), "float32")], (16, 32))
    for reduction in ("none", "add", "mul", "max"):
        yield one(
            f"ScatterElements-{reduction}",
            "ScatterElements",
            [((16, 32), "float32"), ((1, 32), "int64"), ((1, 32), "float32")],
            (16, 32),
            axis=0,
            reduction=reduction,
        )
    yield one(
        "TensorScatter-24",
        "TensorScatter",
        [((1, 2, 16, 16), "float32"), ((1, 2, 1, 16), "float32"), ((1,), "int64")],
        (1, 2, 16, 16),
        opset=24,
        axis=2,
    )
    yield one("TopK", "TopK", [((1, H), "float32"), ints(4)], (1, 4), outputs=2)
    yield one("TopK-smallest", "TopK", [((1, H), "float32"), ints(4)], (1, 4), outputs=2, largest=0)
    yield one("TopK-axis1", "TopK", [(X, "float32"), ints(2)], (1, 2, H), outputs=2, axis=1)
    for op in ("ArgMax", "ArgMin"):
        yield one(op, op, [(X, "float32")], (1, S, 1), "int64", axis=-1)
    yield one("ArgMax-last-index", "ArgMax", [(X, "float32")], (1, S, 1), "int64", axis=-1, select_last_index=1)
    yield one("CumSum", "CumSum", [(X, "float32"), scalar(1, "int64")], X)
    yield one("CumSum-reverse", "CumSum", [(X, "float32"), scalar(1, "int64")], X, reverse=1)
    yield one("Trilu", "Trilu", [((8, 8), "float32")], (8, 8))
    yield one("Range-dynamic", "Range", [((), "int64")] * 3, ("n",))
    yield one("NonZero", "NonZero", [(X, "float32")], (3, "n"), "int64")
    yield one(
        "OneHot",
        "OneHot",
        [((1, S), "int64"), scalar(16, "int64"), lambda t: t.constant([0, 1])],
        (1, S, 16),
        "float32",
    )
    yield one("Compress", "Compress", [((8, 4), "float32"), ((8,), "bool")], ("n", 4), axis=0)
    yield one("Unique", "Unique", [((16,), "float32")], ("n",))
    yield one("ReverseSequence", "ReverseSequence", [((4, 8), "float32"), ((8,), "int64")], (4, 8))
    yield one("EyeLike", "EyeLike", [((8, 8), "float32")], (8, 8))
    for mode in ("DCR", "CRD"):
        yield one(
            f"DepthToSpace-{mode}", "DepthToSpace", [((1, 16, 4, 4), "float32")], (1, 4, 8, 8), blocksize=2, mode=mode
        )
    yield one("SpaceToDepth", "SpaceToDepth", [((1, 4, 8, 8), "float32")], (1, 16, 4, 4), blocksize=2)


def reductions() -> Iterator[Case]:
    for op in (
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare".split()
    ):
        yield one(f"{op}-last", op, [(X, "float32"), ints(-1)], (1, S, 1))
    yield one("ReduceMean-all", "ReduceMean", [(X, "float32")], (1, 1, 1))
    yield one("ReduceSum-int32", "ReduceSum", [(X, "int32"), ints(-1)], (1, S, 1))
    yield one("ReduceMean-rank5", "ReduceMean", [((1, 2, 2, 4, 8), "float32"), ints(-1)], (1, 2, 2, 4, 1))
    yield one("Softmax-axis1", "Softmax", [(X, "float32")], X, axis=1)
    yield one("Softmax-rank5", "Softmax", [((1, 2, 2, 4, 8), "float32")], (1, 2, 2, 4, 8))


def normalizations() -> Iterator[Case]:
    image = (1, 8, 16, 16)
    for dtype in ("float32", "float16"):
        scale = floats(H, dtype=dtype)
        yield one(f"LayerNormalization-{dtype}", "LayerNormalization", [(X, dtype), scale, scale], X)
        yield one(f"RMSNormalization-{dtype}", "RMSNormalization", [(X, dtype), scale], X, opset=23)
        yield one(f"SimplifiedLayerNormalization-{dtype}", "SimplifiedLayerNormalization", [(X, dtype), scale], X)
        yield one(
            f"SkipSimplifiedLayerNormalization-{dtype}",
            "SkipSimplifiedLayerNormalization",
            [(X, dtype), (X, dtype), scale],
            X,
            domain=MICROSOFT,
        )
        yield one(
            f"SkipLayerNormalization-{dtype}",
            "SkipLayerNormalization",
            [(X, dtype)] * 2 + [scale] * 2,
            X,
            domain=MICROSOFT,
        )
    yield one("LayerNormalization-no-bias", "LayerNormalization", [(X, "float32"), floats(H)], X)
    yield one("LayerNormalization-axis1", "LayerNormalization", [(X, "float32"), floats(S, H)], X, axis=1)
    yield one("RMSNormalization-axis1", "RMSNormalization", [(X, "float32"), floats(S, H)], X, opset=23, axis=1)
    yield one("LpNormalization-2", "LpNormalization", [(X, "float32")], X, p=2)
    yield one("LpNormalization-1", "LpNormalization", [(X, "float32")], X, p=1)
    channel = [floats(8)] * 2
    yield one("InstanceNormalization", "InstanceNormalization", [(image, "float32"), *channel], image)
    yield one("GroupNormalization", "GroupNormalization", [(image, "float32"), *channel], image, num_groups=2)
    variance: Callable[[Tape], str] = lambda tape: tape.constant(np.full(8, 1.5))  # noqa: E731
    yield one("BatchNormalization", "BatchNormalization", [(image, "float32"), *channel, floats(8), variance], image)
    yield one("LRN", "LRN", [(image, "float32")], image, size=3)


def images() -> Iterator[Case]:
    image = (1, 8, 16, 16)
    for dtype in ("float32", "float16"):
        yield one(f"Conv-{dtype}", "Conv", [(image, dtype), floats(4, 8, 3, 3, dtype=dtype)], (1, 4, 14, 14))
    yield one("Conv-depthwise", "Conv", [(image, "float32"), floats(8, 1, 3, 3)], image, group=8, pads=[1] * 4)
    yield one("Conv-group2", "Conv", [(image, "float32"), floats(8, 4, 3, 3)], image, group=2, pads=[1] * 4)
    yield one("Conv-dilated", "Conv", [(image, "float32"), floats(4, 8, 3, 3)], (1, 4, 12, 12), dilations=[2, 2])
    yield one("Conv-patches", "Conv", [((1, 3, 32, 32), "float32"), floats(16, 3, 8, 8)], (1, 16, 4, 4), strides=[8, 8])
    yield one("Conv-1d", "Conv", [((1, 8, 32), "float32"), floats(4, 8, 3)], (1, 4, 30))
    yield one("Conv-3d", "Conv", [((1, 4, 8, 8, 8), "float32"), floats(4, 4, 3, 3, 3)], (1, 4, 6, 6, 6))
    yield one(
        "Conv-same-upper", "Conv", [(image, "float32"), floats(4, 8, 3, 3)], (1, 4, 16, 16), auto_pad="SAME_UPPER"
    )
    yield one("Conv-dynamic-weight", "Conv", [(image, "float32"), ((4, 8, 3, 3), "float32")], (1, 4, 14, 14))
    yield one(
        "ConvTranspose",
        "ConvTranspose",
        [((1, 8, 8, 8), "float32"), floats(8, 4, 2, 2)],
        (1, 4, 16, 16),
        strides=[2, 2],
    )
    for op in ("MaxPool", "AveragePool", "LpPool"):
        yield one(op, op, [(image, "float32")], (1, 8, 8, 8), kernel_shape=[2, 2], strides=[2, 2])
    yield one(
        "MaxPool-indices", "MaxPool", [(image, "float32")], (1, 8, 8, 8), outputs=2, kernel_shape=[2, 2], strides=[2, 2]
    )
    yield one("MaxPool-1d", "MaxPool", [((1, 8, 32), "float32")], (1, 8, 16), kernel_shape=[2], strides=[2])
    yield one(
        "MaxPool-3d", "MaxPool", [((1, 4, 8, 8, 8), "float32")], (1, 4, 4, 4, 4), kernel_shape=[2] * 3, strides=[2] * 3
    )
    yield one("MaxPool-dilated", "MaxPool", [(image, "float32")], (1, 8, 14, 14), kernel_shape=[2, 2], dilations=[2, 2])
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield one(op, op, [(image, "float32")], (1, 8, 1, 1))
    for mode in ("nearest", "linear", "cubic"):
        scales: Callable[[Tape], str] = lambda tape: tape.constant([1, 1, 2, 2])  # noqa: E731
        yield one(f"Resize-{mode}", "Resize", [(image, "float32"), absent, scales], (1, 8, 32, 32), mode=mode)
    sizes = [(image, "float32"), absent, absent, ints(1, 8, 24, 24)]
    yield one(
        "Resize-align-corners",
        "Resize",
        sizes,
        (1, 8, 24, 24),
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    yield one("Resize-antialias", "Resize", [*sizes[:3], ints(1, 8, 8, 8)], (1, 8, 8, 8), mode="linear", antialias=1)
    yield one(
        "Resize-crop",
        "Resize",
        [(image, "float32"), lambda t: t.constant([0, 0, 0, 0, 1, 1, 1, 1]), absent, ints(1, 8, 24, 24)],
        (1, 8, 24, 24),
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
    )
    for mode in ("linear", "nearest", "cubic"):
        yield one(
            f"GridSample-{mode}", "GridSample", [(image, "float32"), ((1, 4, 4, 2), "float32")], (1, 8, 4, 4), mode=mode
        )
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        yield one(
            op,
            op,
            [((4, 1, 8), "float32"), floats(1, 8 * gates, 8), floats(1, 8 * gates, 8)],
            (4, 1, 1, 8),
            hidden_size=8,
        )


def products() -> Iterator[Case]:
    for dtype in ("float32", "float16"):
        yield one(f"MatMul-{dtype}", "MatMul", [((1, S, K), dtype), floats(K, N, dtype=dtype)], (1, S, N))
        yield one(f"Gemm-{dtype}", "Gemm", [((S, K), dtype), floats(K, N, dtype=dtype), floats(N, dtype=dtype)], (S, N))
    yield one("MatMul-rank5", "MatMul", [((1, 2, 2, 8, 16), "float32"), ((1, 2, 2, 16, 8), "float32")], (1, 2, 2, 8, 8))
    yield one(
        "MatMul-rank6",
        "MatMul",
        [((1, 1, 2, 2, 8, 16), "float32"), ((1, 1, 2, 2, 16, 8), "float32")],
        (1, 1, 2, 2, 8, 8),
    )
    yield one("MatMul-batch", "MatMul", [((4, S, H), "float32"), floats(H, 32)], (4, S, 32))
    yield one("MatMul-int32", "MatMul", [((S, H), "int32"), ((H, 32), "int32")], (S, 32))
    yield one("MatMul-dynamic", "MatMul", [((1, 4, 8, 16), "float32"), ((1, 4, 16, 8), "float32")], (1, 4, 8, 8))
    for name, attributes in (
        ("transA", {"transA": 1}),
        ("alpha", {"alpha": 0.5}),
        ("beta", {"beta": 2.0}),
        ("transB", {"transB": 1}),
    ):
        first = (K, S) if name == "transA" else (S, K)
        second = floats(N, K) if name == "transB" else floats(K, N)
        yield one(f"Gemm-{name}", "Gemm", [(first, "float32"), second, floats(N)], (S, N), **attributes)
    yield one("Einsum-attention", "Einsum", [((1, 4, 8, 16), "float32")] * 2, (1, 4, 8, 8), equation="bhid,bhjd->bhij")
    yield one("Einsum-outer", "Einsum", [((8,), "float32"), ((4,), "float32")], (8, 4), equation="i,j->ij")
    yield one("Einsum-diagonal", "Einsum", [((8, 8), "float32")], (8,), equation="ii->i")
    for bits in (2, 4, 8):
        for block in (16, 32, 128):
            yield blockwise(f"MatMulNBits-{bits}-{block}", bits, block)
    yield blockwise("MatMulNBits-float16", 4, 32, dtype="float16")
    yield blockwise("MatMulNBits-zero-points", 4, 32, zero=0x73)
    yield blockwise("MatMulNBits-8-zero-points", 8, 32, zero=0x73)
    yield blockwise("MatMulNBits-bias", 4, 32, bias=True)
    for dtype in ACTIVATIONS:
        yield blockwise(f"MatMulNBits-{dtype}", 4, 32, activation=dtype)
    yield blockwise("MatMulNBits-8-uint16", 8, 32, activation="uint16")
    yield blockwise("MatMulNBits-uint16-zero-points", 4, 64, activation="uint16", zero=0x88)


def language() -> Iterator[Case]:
    for op in ("Gelu", "FastGelu", "QuickGelu"):
        yield one(f"microsoft-{op}", op, [(X, "float32")], X, domain=MICROSOFT)
    yield one("BiasGelu", "BiasGelu", [(X, "float32"), floats(H)], X, domain=MICROSOFT)
    yield one("FusedMatMul", "FusedMatMul", [(X, "float32"), floats(H, 32)], (1, S, 32), domain=MICROSOFT, alpha=0.5)
    yield one("MultiHeadAttention", "MultiHeadAttention", [(X, "float32")] * 3, X, domain=MICROSOFT, num_heads=4)
    yield one(
        "Attention-microsoft",
        "Attention",
        [(X, "float32"), floats(H, 3 * H), floats(3 * H)],
        X,
        domain=MICROSOFT,
        num_heads=4,
    )
    heads = (1, 4, S, 16)
    yield one("Attention-23", "Attention", [(heads, "float32")] * 3, heads, opset=23)
    yield one(
        "Attention-23-grouped", "Attention", [(heads, "float32"), *[((1, 2, S, 16), "float32")] * 2], heads, opset=23
    )
    yield one("Attention-23-causal", "Attention", [(heads, "float32")] * 3, heads, opset=23, is_causal=1)
    yield one("Attention-23-softcap", "Attention", [(heads, "float32")] * 3, heads, opset=23, softcap=30.0)
    yield one("Attention-23-mask", "Attention", [(heads, "float32")] * 3 + [((S, S), "float32")], heads, opset=23)
    yield one("Attention-23-rank3", "Attention", [(X, "float32")] * 3, X, opset=23, q_num_heads=4, kv_num_heads=4)
    tables = [floats(16, 8)] * 2
    for kind, dims in (("rank3", X), ("rank4", heads)):
        positions = ((1, S), "int64")
        heads_of = {"num_heads": 4} if kind == "rank3" else {}
        yield one(
            f"RotaryEmbedding-microsoft-{kind}",
            "RotaryEmbedding",
            [(dims, "float32"), positions, *tables],
            dims,
            domain=MICROSOFT,
            **heads_of,
        )
        yield one(
            f"RotaryEmbedding-23-{kind}",
            "RotaryEmbedding",
            [(dims, "float32"), *tables, positions],
            dims,
            opset=23,
            **heads_of,
        )
    yield one(
        "RotaryEmbedding-23-interleaved",
        "RotaryEmbedding",
        [(heads, "float32"), *tables, ((1, S), "int64")],
        heads,
        opset=23,
        interleaved=1,
    )
    yield one(
        "RotaryEmbedding-23-no-positions",
        "RotaryEmbedding",
        [(heads, "float32"), *[floats(1, S, 8)] * 2],
        heads,
        opset=23,
    )
    yield _looked_up()
    for dtype in ("float32", "float16"):
        yield grouped(f"GroupQueryAttention-{dtype}", dtype)
        yield grouped(f"GroupQueryAttention-{dtype}-chunk", dtype, length=8)
    yield grouped("GroupQueryAttention-no-rotary", "float32", rotary=0)
    yield grouped("GroupQueryAttention-softcap", "float32", softcap=30.0)
    yield grouped("GroupQueryAttention-window", "float32", local_window_size=8)
    yield grouped("GroupQueryAttention-scale", "float32", scale=0.3)
    yield grouped("GroupQueryAttention-interleaved", "float32", rotary_interleaved=1)
    yield _branch()
    yield _loop()


def _looked_up() -> Case:
    tape = Tape()
    levels = tape.constant(tape.random.integers(0, 256, (100, 32)), np.uint8)
    scales = tape.constant(tape.random.random((100, 2)) * 0.1 + 0.01)
    given = [levels, tape.input("x", (1, S), "int64"), scales]
    axes = {"gather_axis": 0, "quantize_axis": 1, "bits": 4, "block_size": 32}
    tape.output(tape.op("GatherBlockQuantized", *given, domain=MICROSOFT, **axes), X)
    return tape.case("GatherBlockQuantized")


def _branch() -> Case:
    tape = Tape()
    condition = tape.input("c", (), "bool")
    tape.input("x", (1, 4))
    bodies = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node(op, ["x"], [side], name=side)],
            side,
            [],
            [helper.make_tensor_value_info(side, TensorProto.FLOAT, [1, 4])],
        )
        for side, op in (("then", "Relu"), ("else", "Neg"))
    }
    tape.output(tape.op("If", condition, **bodies), (1, 4))
    return tape.case("If")


def _loop() -> Case:
    tape = Tape()
    count = tape.constant(3, np.int64)
    start = tape.input("x", (1, 4))
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "state"], ["next"]), helper.make_node("Identity", ["go_on"], ["still"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, [1, 4]),
        ],
        [value("still", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1, 4])],
    )
    tape.output(tape.op("Loop", count, "", start, body=body), (1, 4))
    return tape.case("Loop")


def quantized_products() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for weight in ("int8", "uint8", "int4", "uint4", "int16"):
            for grain in ("tensor", "channel"):
                yield product(f"MatMul-{activation}-{weight}-{grain}", activation, weight, grain)
        yield product(f"MatMul-{activation}-int4-block32", activation, "int4", "block32")
        yield product(f"MatMul-{activation}-LPBQ32", activation, "int4", "lpbq32")
    yield product("MatMul-uint16-uint16-tensor", "uint16", "uint16", "tensor")
    yield product("MatMul-uint16-int8-block32", "uint16", "int8", "block32")
    for block in (16, 64):
        yield product(f"MatMul-uint16-int4-block{block}", "uint16", "int4", f"block{block}")
        yield product(f"MatMul-uint16-LPBQ{block}", "uint16", "int4", f"lpbq{block}")
    for weight, grain in (("int8", "tensor"), ("int8", "channel"), ("int4", "channel"), ("int4", "block32")):
        yield product(f"Gemm-uint16-{weight}-{grain}", "uint16", weight, grain, op="Gemm")
    for transposed in (0, 1):
        for bias in ("none", "float", "quantized"):
            name = f"Gemm-uint16-LPBQ32-transB{transposed}-bias-{bias}"
            yield product(name, "uint16", "int4", "lpbq32", op="Gemm", transposed=transposed, bias=bias)
    yield product("Gemm-uint8-int8-bias", "uint8", "int8", "tensor", op="Gemm", bias="quantized")
    for grain in ("tensor", "channel", "block32"):
        for weight in ("int4", "int8"):
            yield product(f"MatMul-float32-{weight}-{grain}", "", weight, grain)
    for activation in ACTIVATIONS:
        for weight, grain in (("int8", "tensor"), ("int8", "channel"), ("int4", "channel"), ("int4", "block32")):
            yield convolution(f"Conv-{activation}-{weight}-{grain}", activation, weight, grain)
    for first in ACTIVATIONS:
        for second in ACTIVATIONS:
            tape = Tape()
            a = tape.quantized(tape.input("x", (1, 4, 8, 16)), first)
            b = tape.quantized(tape.input("z", (1, 4, 16, 8)), second)
            tape.output(tape.quantized(tape.op("MatMul", a, b), first, 40), (1, 4, 8, 8))
            yield tape.case(f"MatMul-dynamic-{first}-{second}")


def lessons() -> Iterator[Case]:
    """What went wrong in whole graphs."""
    for axis, name in ((1, "MatMul-straight-weight"), (0, "MatMul-transposed-weight")):
        tape = Tape()
        x = tape.quantized(tape.input("x", (1, S, K)), "uint16")
        w = dequantized(tape, (K, N) if axis else (N, K), "int8", "channel", axis)
        w = w if axis else tape.op("Transpose", w, perm=[1, 0])
        tape.output(tape.quantized(tape.op("MatMul", x, w), "uint16", 8), (1, S, N))
        yield tape.case(name)
    for first, name in (([0, -1, 16], "Reshape-chained"), ([1, 32, 16], "Reshape-chained-spelled")):
        tape = Tape()
        inner = tape.op("Reshape", tape.input("x", X), tape.constant(first, np.int64))
        shape = tape.constant([1, 16, 32], np.int64)
        tape.output(tape.op("Relu", tape.op("Reshape", inner, shape)), (1, 16, 32))
        yield tape.case(name)
    for dims in ((1, 64, 2, 32), (64, 2, 32), (1, 128, 32), (1, 64, 2, 64), (1, 4, 2, 32)):
        name = "x".join(map(str, dims))
        yield one(
            f"RMSNormalization-rows-{name}", "RMSNormalization", [(dims, "float32"), floats(dims[-1])], dims, opset=23
        )
    for op in ("Sigmoid", "Tanh"):
        for dtype in ("uint16", "int16"):
            yield _integer_output(op, dtype)
    for value in (60000.0, 70000.0):
        yield one(f"Add-{value:.0f}", "Add", [(X, "float32"), scalar(value)], X)
    tape = Tape()
    mask = tape.constant(np.where(np.arange(H) % 2, -1e9, 0))
    tape.output(tape.op("Softmax", tape.op("Add", tape.input("x", X), mask)), X)
    yield tape.case("Softmax-masked")
    yield blockwise("MatMulNBits-4-rest", 4, 32, features=48)
    yield blockwise("MatMulNBits-negative-scales", 4, 32, negative=True)
    yield one("GlobalMaxPool-3d", "GlobalMaxPool", [((1, 4, 8, 8, 8), "float32")], (1, 4, 1, 1, 1))
    yield one("GlobalAveragePool-3d", "GlobalAveragePool", [((1, 4, 8, 8, 8), "float32")], (1, 4, 1, 1, 1))
    for op in ("GatherElements", "ScatterElements"):
        updates = [((1, 16), "float32")] if op[0] == "S" else []
        dims = (8, 16) if updates else (1, 16)
        last = lambda tape: tape.constant(np.full((1, 16), -1), np.int64)  # noqa: E731
        yield one(f"{op}-negative", op, [((8, 16), "float32"), last, *updates], dims, axis=0)
    yield grouped("GroupQueryAttention-static-lengths", "float32", lengths=(1, 1))


def _integer_output(op: str, dtype: str) -> Case:
    """The integers themselves leave the graph; their scale is not the one that the NPU writes."""
    tape = Tape()
    low, high, middle = LEVELS[dtype]
    x = tape.quantized(tape.input("x", X), dtype)
    made = tape.op("QuantizeLinear", tape.op(op, x), tape.constant(8 / (high - low)), tape.constant(middle, dtype))
    tape.output(made, X, dtype)
    return tape.case(f"{op}-{dtype}-integer-output")


def weight_forms() -> Iterator[Case]:
    """Weights with negative scales, and weights that do not say that their zero point is 0."""
    formats = (
        ("uint8", "int8", ("tensor", "channel")),
        ("uint8", "int4", ("tensor", "channel", "lpbq32")),
        ("uint16", "int8", ("tensor", "channel", "block32")),
        ("uint16", "int4", ("tensor", "channel", "block32", "lpbq32")),
        ("uint16", "int16", ("tensor", "channel")),
        ("int16", "int8", ("tensor", "channel")),
        ("int16", "int4", ("channel", "block32", "lpbq32")),
        ("", "int8", ("tensor",)),
        ("", "int4", ("tensor",)),
    )
    for form in ("negative", "bare"):
        for activation, weight, grains in formats:
            for grain in grains:
                name = f"{form}-{activation or 'float32'}-{weight}-{grain}"
                yield product(f"MatMul-{name}", activation, weight, grain, **{form: True})
                if grain != "lpbq32":
                    yield product(f"Gemm-{name}", activation, weight, grain, op="Gemm", **{form: True})
                    yield convolution(f"Conv-{name}", activation, weight, grain, **{form: True})
        for op in ("Add", "Mul", "Gather", "Concat"):
            for weight in ("int8", "int4", "int16"):
                yield _constant_operand(f"{op}-{form}-{weight}", op, weight, **{form: True})


def rearranged() -> Iterator[Case]:
    """Reshape, Transpose, Reshape over six dimensions; the provider drops one of 1 that stays in place."""
    for name, dims, split, perm, out in (
        ("cells", (1, 8, 8, 16), [1, 4, 2, 4, 2, 16], [0, 1, 3, 2, 4, 5], [1, 4, 4, 64]),
        ("channels", (1, 8, 8, 16), [1, 4, 2, 4, 2, 16], [0, 3, 1, 5, 2, 4], [1, 16, 64]),
        ("unit-inside", (4, 8, 16), [4, 1, 2, 4, 2, 8], [0, 1, 3, 2, 4, 5], [4, 16, 8]),
        ("unit-moves", (4, 8, 16), [4, 1, 2, 4, 2, 8], [1, 0, 3, 2, 4, 5], [16, 4, 8]),
        ("no-unit", (2, 8, 8, 16), [2, 4, 2, 4, 2, 16], [0, 1, 3, 2, 4, 5], [2, 16, 64]),
        ("space-to-depth", (1, 8, 8, 16), [1, 4, 2, 4, 2, 16], [0, 1, 3, 5, 2, 4], [1, 16, 64]),
    ):
        tape = Tape()
        wide = tape.op("Reshape", tape.input("x", dims), tape.constant(split, np.int64))
        moved = tape.op("Transpose", wide, perm=perm)
        tape.output(tape.op("Reshape", moved, tape.constant(out, np.int64)), out)
        yield tape.case(f"rearranged-{name}")


def transposed_convolutions() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for weight in ("int8", "int4", "int16"):
            tape = Tape()
            element = NARROW.get(weight, weight)
            levels = tape.constant(tape.random.integers(-7, 8, (8, 4, 2, 2)), element)
            scaled = tape.op("DequantizeLinear", levels, tape.constant(0.02), tape.constant(0, element))
            x = tape.quantized(tape.input("x", (1, 8, 8, 8)), activation)
            y = tape.op("ConvTranspose", x, scaled, strides=[2, 2])
            tape.output(tape.quantized(y, activation), (1, 4, 16, 16))
            yield tape.case(f"ConvTranspose-{activation}-{weight}")


def lone_dequantizations() -> Iterator[Case]:
    """Dequantized constants that no product reads, or that are transposed before it."""
    for grain in ("channel", "block32", "lpbq32", "tensor"):
        weight = "int4" if grain == "lpbq32" else "int8"
        for activation in ("", "uint16"):
            tape = Tape()
            x = tape.input("x", (1, S, K))
            x = tape.quantized(x, activation) if activation else x
            turned = tape.op("Transpose", dequantized(tape, (N, K), weight, grain, 0), perm=[1, 0])
            y = tape.op("MatMul", x, turned)
            tape.output(tape.quantized(y, activation) if activation else y, (1, S, N))
            yield tape.case(f"lone-{grain}-Transpose-{activation or 'float32'}")
        tape = Tape()
        constant = dequantized(tape, (K, N), weight, grain, 1)
        tape.output(tape.op("Add", tape.input("x", (K, N)), constant), (K, N))
        yield tape.case(f"lone-{grain}-Add")
        tape = Tape()
        rows = tape.op("Gather", dequantized(tape, (K, N), weight, grain, 1), tape.input("x", (1, S), "int32"))
        tape.output(rows, (1, S, N))
        yield tape.case(f"lone-{grain}-Gather")


def _constant_operand(name: str, op: str, weight: str, **form: bool) -> Case:
    """A constant with one scale that is not a weight of a product."""
    tape = Tape()
    constant = dequantized(tape, (S, H), weight, "tensor", 1, **form)
    if op == "Gather":
        tape.output(tape.op(op, constant, tape.input("x", (1, S), "int32")), X)
    else:
        made = tape.op(op, tape.input("x", (S, H)), constant, **({"axis": 0} if op == "Concat" else {}))
        tape.output(made, (2 * S, H) if op == "Concat" else (S, H))
    return tape.case(name)


def quantized_elementwise() -> Iterator[Case]:
    for dtype in ACTIVATIONS:
        for op in "Softmax Sigmoid Tanh Gelu Relu Exp Sqrt Neg HardSwish Erf Clip Abs".split():
            yield unit(f"{op}-{dtype}", dtype, op)
        for op in ("Add", "Mul", "Sub", "Div"):
            tape = Tape()
            pair = [tape.quantized(tape.input(n, X), dtype) for n in "xz"]
            tape.output(tape.quantized(tape.op(op, *pair), dtype, 16), X)
            yield tape.case(f"{op}-{dtype}")
        tape = Tape()
        pair = [tape.quantized(tape.input(n, X), dtype) for n in "xz"]
        tape.output(tape.quantized(tape.op("Concat", *pair, axis=1), dtype), (1, 16, H))
        yield tape.case(f"Concat-{dtype}")
        tape = Tape()
        x = tape.quantized(tape.input("x", X), dtype)
        shape = tape.constant([1, S, 4, 16], np.int64)
        tape.output(tape.quantized(tape.op("Reshape", x, shape), dtype), (1, S, 4, 16))
        yield tape.case(f"Reshape-{dtype}")
        tape = Tape()
        x = tape.quantized(tape.input("x", X), dtype)
        tape.output(tape.quantized(tape.op("Transpose", x, perm=[0, 2, 1]), dtype), (1, H, S))
        yield tape.case(f"Transpose-{dtype}")
        for norm in ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization"):
            for gamma, zero in ((dtype, None), ("uint8", 0), ("uint16", 0)):
                yield _norm(
                    f"{norm}-{dtype}-gamma-{gamma}-{'middle' if zero is None else zero}", norm, dtype, gamma, zero
                )
    for op, dtype, scale, zero in (
        ("Sigmoid", "uint16", 1 / 65536, 0),
        ("Sigmoid", "int16", 1 / 32768, 0),
        ("Tanh", "uint16", 1 / 32768, 32768),
        ("Tanh", "int16", 1 / 32768, 0),
        ("Sigmoid", "uint8", 1 / 256, 0),
        ("Softmax", "uint16", 1 / 65536, 0),
    ):
        yield unit(f"{op}-{dtype}-exact", dtype, op, scale=scale, zero=zero)


def _norm(name: str, norm: str, dtype: str, gamma: str, zero: int | None) -> Case:
    tape = Tape(23 if norm == "RMSNormalization" else 21)
    low, high, middle = LEVELS[gamma]
    point = middle if zero is None else zero
    levels = tape.constant(np.linspace(max(low, point), high, H).round(), gamma)
    weight = tape.op("DequantizeLinear", levels, tape.constant(2 / (high - point)), tape.constant(point, gamma))
    x = tape.quantized(tape.input("x", X), dtype)
    tape.output(tape.quantized(tape.op(norm, x, weight, axis=-1), dtype, 16), X)
    return tape.case(name)


def dynamic() -> Iterator[Case]:
    for op in ("Relu", "Softmax", "LayerNormalization"):
        extra = [floats(H)] if op == "LayerNormalization" else []
        yield one(f"{op}-dynamic-length", op, [((1, "s", H), "float32"), *extra], (1, "s", H))
    yield one("Add-dynamic-batch", "Add", [(("b", H), "float32"), ((1, H), "float32")], ("b", H))
    yield one("MatMul-dynamic-length", "MatMul", [((1, "s", K), "float32"), floats(K, N)], (1, "s", N))
    yield one("Shape-dynamic", "Shape", [((1, "s", H), "float32")], (3,), "int64")
    yield one("Reshape-runtime-shape", "Reshape", [(X, "float32"), ((2,), "int64")], ("a", "b"))
    yield one("ConstantOfShape-runtime", "ConstantOfShape", [((2,), "int64")], ("a", "b"), "float32")
    yield one("Expand-runtime", "Expand", [((1, H), "float32"), ((2,), "int64")], ("a", "b"))


def blocks() -> Iterator[Case]:
    yield _mlp("block-mlp-silu", "")
    yield _mlp("block-mlp-nbits", "MatMulNBits")
    yield _attention("block-attention-float", quantized=False)
    yield _attention("block-attention-uint16", quantized=True)
    for fused in (False, True):
        for norm in ("rms", "layer"):
            yield _residual(f"block-residual-{norm}-{'fused' if fused else 'plain'}", norm, fused=fused)
    tape = Tape()
    x = tape.input("x", X)
    mean = tape.op("ReduceMean", tape.op("Pow", x, tape.constant(2)), tape.constant([-1], np.int64))
    root = tape.op("Sqrt", tape.op("Add", mean, tape.constant(1e-5)))
    tape.output(tape.op("Mul", tape.op("Div", x, root), tape.normal(H)), X)
    yield tape.case("block-rms-decomposed")
    tape = Tape()
    x = tape.input("x", X)
    inner = tape.op("Erf", tape.op("Div", x, tape.constant(np.sqrt(2))))
    half = tape.op("Mul", tape.op("Mul", x, tape.op("Add", inner, tape.constant(1))), tape.constant(0.5))
    tape.output(half, X)
    yield tape.case("block-gelu-erf")
    tape = Tape()
    x = tape.input("x", (1, 3, 32, 32))
    patches = tape.op("Conv", x, tape.normal(32, 3, 8, 8), strides=[8, 8])
    tokens = tape.op("Transpose", tape.op("Reshape", patches, tape.constant([1, 32, 16], np.int64)), perm=[0, 2, 1])
    tape.output(tape.op("Add", tokens, tape.normal(1, 16, 32)), (1, 16, 32))
    yield tape.case("block-patch-embedding")
    for rank in (5, 6):
        tape = Tape()
        x = tape.input("x", (1, 8, 8, 16))
        split = [1, 4, 2, 4, 32] if rank == 5 else [1, 4, 2, 4, 2, 16]
        perm = [0, 1, 3, 2, 4] if rank == 5 else [0, 1, 3, 2, 4, 5]
        moved = tape.op("Transpose", tape.op("Reshape", x, tape.constant(split, np.int64)), perm=perm)
        tape.output(tape.op("Reshape", moved, tape.constant([1, 16, 64], np.int64)), (1, 16, 64))
        yield tape.case(f"block-merge-cells-rank{rank}")
    tape = Tape()
    x = tape.input("x", X)
    half = [tape.op("Slice", x, *(tape.constant([v], np.int64) for v in (a, a + 32, 2))) for a in (0, 32)]
    turned = tape.op("Concat", tape.op("Neg", half[1]), half[0], axis=-1)
    tape.output(tape.op("Add", tape.op("Mul", x, tape.normal(S, H)), tape.op("Mul", turned, tape.normal(S, H))), X)
    yield tape.case("block-rotary-decomposed")
    tape = Tape()
    x = tape.input("x", (1, 8))
    tape.output(tape.op("Gather", tape.op("Shape", x), tape.constant(1, np.int64)), (), "int64")
    yield tape.case("block-shape-folded")
    tape = Tape()
    ids = tape.input("ids", (1, S), "int64")
    hidden = tape.op("Gather", tape.normal(100, H), ids)
    normed = tape.op("SimplifiedLayerNormalization", hidden, tape.normal(H), axis=-1)
    tape.output(tape.op("ArgMax", tape.op("MatMul", normed, tape.normal(H, 100)), axis=-1), (1, S, 1), "int64")
    yield tape.case("block-embed-head-argmax")


def _mlp(name: str, product: str) -> Case:
    tape = Tape()
    x = tape.input("x", (1, S, K))

    def linear(value: str, inputs: int, outputs: int) -> str:
        if not product:
            return tape.op("MatMul", value, tape.normal(inputs, outputs))
        levels = tape.constant(tape.random.integers(0, 256, (outputs, inputs // 32, 16)), np.uint8)
        scales = tape.constant(tape.random.random(outputs * inputs // 32) * 0.01)
        return tape.op(product, value, levels, scales, domain=MICROSOFT, K=inputs, N=outputs, bits=4, block_size=32)

    gate = linear(x, K, 2 * K)
    gated = tape.op("Mul", tape.op("Mul", gate, tape.op("Sigmoid", gate)), linear(x, K, 2 * K))
    tape.output(tape.op("Add", x, linear(gated, 2 * K, K)), (1, S, K))
    return tape.case(name)


def _attention(name: str, *, quantized: bool) -> Case:
    """Decomposed attention; in integers the second operand of both products is uint8."""
    tape = Tape()

    def q(value: str, dtype: str, reach: float = 8.0) -> str:
        return tape.quantized(value, dtype, reach) if quantized else value

    query = q(tape.input("q", (1, 4, 8, 16)), "uint16")
    key = q(tape.input("k", (1, 4, 16, 8)), "uint8")
    value = q(tape.input("v", (1, 4, 8, 16)), "uint8")
    scores = q(tape.op("MatMul", query, key), "uint16", 60)
    factor = q(tape.constant(0.25), "uint16", 1)
    scaled = q(tape.op("Mul", scores, factor), "uint16", 20)
    weights = q(tape.op("Softmax", scaled, axis=-1), "uint16", 2)
    tape.output(q(tape.op("MatMul", weights, value), "uint16", 8), (1, 4, 8, 16))
    return tape.case(name)


def _residual(name: str, norm: str, *, fused: bool) -> Case:
    tape = Tape(23)
    x, y = tape.input("x", X), tape.input("y", X)
    weights = [tape.normal(H) for _ in range(1 if norm == "rms" else 2)]
    if fused:
        op = "SkipSimplifiedLayerNormalization" if norm == "rms" else "SkipLayerNormalization"
        made = tape.op(op, x, y, *weights, domain=MICROSOFT, outputs=4, epsilon=1e-5)
        total = f"{made}_3"
    else:
        total = tape.op("Add", x, y)
        made = tape.op("RMSNormalization" if norm == "rms" else "LayerNormalization", total, *weights, epsilon=1e-5)
    tape.output(tape.op("Add", total, tape.op("MatMul", made, tape.normal(H, H))), X)
    return tape.case(name)


@cache
def corpus() -> tuple[Case, ...]:
    """Every case, names distinct."""
    parts = (
        elementwise,
        movement,
        reductions,
        normalizations,
        images,
        products,
        language,
        quantized_products,
        quantized_elementwise,
        dynamic,
        blocks,
        lessons,
        fresh,
        weight_forms,
        rearranged,
        transposed_convolutions,
        lone_dequantizations,
    )
    cases = [case for part in parts for case in part()]
    known = {case.model.SerializeToString() for case in cases}
    cases += [case for case in typed() if case.model.SerializeToString() not in known]
    cases += [*formed(), *unseen(), *elements()]
    known = {case.model.SerializeToString() for case in cases}
    cases += [replace(case, held_out=True) for case in later() if case.model.SerializeToString() not in known]
    assert len({case.name for case in cases}) == len(cases)
    return tuple(cases)
