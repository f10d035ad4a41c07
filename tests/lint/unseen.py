"""Models drawn by a seed, and blocks as users' models have them, fixed before any verdict on them was seen.

The draws are from what ONNX allows, not from what the rules or the compiler take. Of `unseen` 187 of 196 agreed, and
the other nine corrected the rules; `later` was drawn after that and is held out.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from tests.lint.building import blockwise, convolution, product
from tests.lint.tape import MICROSOFT, TYPES, Case, Tape, may_have

_T = TypeVar("_T")
_SEED, _LATER = 20261123, 20261124
_QUANTIZED = ("q-uint8", "q-uint16", "q-int16")
#: Float types come up as often as users' models have them.
_KINDS = ("float32",) * 4 + ("float16",) * 2 + ("int32", "int64", "uint8", "bool", *_QUANTIZED)


class _Draw:
    """Choices; `random.random` gives the same numbers for a seed in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, options: Sequence[_T]) -> _T:
        return options[int(self._random.random() * len(options))]

    def dims(self, rank: int) -> tuple[int, ...]:
        return (1, *(self.one((3, 4, 6, 8, 12)) for _ in range(rank - 2)), self.one((16, 20, 32, 48)))[-rank:]

    def rank(self) -> int:
        return self.one((1, 2, 3, 3, 4, 4, 5))

    def kind(self, op_type: str, opset: int = 21) -> str:
        """An element type that ONNX lets the operator have; quantized ones stand for a float in between."""
        return self.one([kind for kind in _KINDS if may_have(op_type, _plain(kind), opset)])


def _plain(kind: str) -> str:
    return "float32" if kind.startswith("q-") else kind


def _input(tape: Tape, name: str, dims: Sequence[int], kind: str) -> str:
    x = tape.input(name, dims, _plain(kind))
    return tape.quantized(x, kind[2:]) if kind.startswith("q-") else x


def _constant(tape: Tape, dims: Sequence[int], kind: str) -> str:
    if kind.startswith("q-"):
        return tape.quantized(tape.normal(*dims), kind[2:], 4.0)
    values = tape.random.standard_normal(dims) if "float" in kind else tape.random.integers(1, 4, dims)
    return tape.constant(values, kind)


def _output(tape: Tape, name: str, dims: Sequence[int], kind: str) -> None:
    made = tape.quantized(name, kind[2:]) if kind.startswith("q-") else name
    tape.output(made, dims, _plain(kind))


def _ints(tape: Tape, *values: int) -> str:
    return tape.constant(values, np.int64)


def _unary(draw: _Draw, tape: Tape) -> str:
    op = draw.one(
        "Relu Sigmoid Tanh Exp Sqrt Neg Abs Log Sin Cos Floor Ceil Round Sign Softplus HardSwish HardSigmoid Elu "
        "LeakyRelu Mish Reciprocal Gelu Selu Atan Identity Clip Erf Celu Softsign Asin Sinh Asinh Shrink".split()
    )
    kind, dims = draw.kind(op), draw.dims(draw.rank())
    _output(tape, tape.op(op, _input(tape, "x", dims, kind)), dims, kind)
    return f"{op}-{kind}-rank{len(dims)}"


def _binary(draw: _Draw, tape: Tape) -> str:
    op = draw.one("Add Add Sub Mul Mul Div Pow Min Max Mod PRelu".split())
    kind, dims = draw.kind(op), draw.dims(draw.rank())
    form = draw.one(("same", "last", "scalar", "row", "constant"))
    other = {"last": dims[-1:], "scalar": (), "row": (*dims[:-1], 1)}.get(form, dims)
    x = _input(tape, "x", dims, kind)
    constant = form == "constant" or (op == "PRelu" and form != "same")
    z = _constant(tape, other, kind) if constant else _input(tape, "z", other, kind)
    extra = {"fmod": 1} if op == "Mod" and "float" in _plain(kind) else {}
    _output(tape, tape.op(op, x, z, **extra), dims, kind)
    return f"{op}-{kind}-{form}-rank{len(dims)}"


def _comparison(draw: _Draw, tape: Tape) -> str:
    op = draw.one("Equal Less Greater GreaterOrEqual LessOrEqual And Or Xor Where Where".split())
    dims = draw.dims(draw.rank())
    kind = "bool" if op in ("And", "Or", "Xor") else draw.one(_KINDS) if op == "Where" else draw.kind(op)
    x, z = _input(tape, "x", dims, kind), _input(tape, "z", dims, kind)
    if op == "Where":
        _output(tape, tape.op(op, tape.input("c", (*dims[:-1], 1), "bool"), x, z), dims, kind)
    else:
        tape.output(tape.op(op, x, z), dims, "bool")
    return f"{op}-{kind}-rank{len(dims)}"


def _cast(draw: _Draw, tape: Tape) -> str:
    plain = ("float32", "float16", "int32", "int64", "uint8", "bool")
    source, to, dims = draw.one(plain), draw.one(plain), draw.dims(draw.rank())
    x = tape.input("x", dims, source)
    if draw.one((True, False)):  # between two operators that are taken
        x = tape.op("Concat", x, x, axis=-1)
        dims = (*dims[:-1], 2 * dims[-1])
    tape.output(tape.op("Cast", x, to=TYPES[to]), dims, to)
    return f"Cast-{source}-{to}-rank{len(dims)}"


def _move(draw: _Draw, tape: Tape) -> str:
    op = draw.one("Reshape Transpose Concat Slice Split Expand Tile Pad Squeeze Unsqueeze Flatten".split())
    kind, rank = draw.kind(op), draw.one((2, 3, 4, 4, 5))
    dims = draw.dims(rank)
    x = _input(tape, "x", (*dims[:-1], 1) if op == "Expand" else dims, kind)
    axis = draw.one(range(rank))
    if op == "Reshape":
        made, out = tape.op(op, x, _ints(tape, *dims[:-1], dims[-1] // 4, 4)), (*dims[:-1], dims[-1] // 4, 4)
    elif op == "Transpose":
        perm = list(range(rank))
        perm[axis], perm[-1] = perm[-1], perm[axis]
        made, out = tape.op(op, x, perm=perm), tuple(dims[p] for p in perm)
    elif op == "Concat":
        out = tuple(3 * d if a == axis else d for a, d in enumerate(dims))
        made = tape.op(op, x, x, _input(tape, "z", dims, kind), axis=axis)
    elif op == "Slice":
        step, out = draw.one((1, 2, 4)), ()
        made = tape.op(op, x, *(_ints(tape, v) for v in (0, 12, rank - 1, step)))
        out = (*dims[:-1], 12 // step)
    elif op == "Split":
        made, out = tape.op(op, x, axis=-1, num_outputs=2, outputs=2), (*dims[:-1], dims[-1] // 2)
        second = tape.quantized(f"{made}_1", kind[2:]) if kind.startswith("q-") else f"{made}_1"
        tape.output(second, out, _plain(kind))
    elif op == "Expand":
        made, out = tape.op(op, x, _ints(tape, *dims)), dims
    elif op == "Tile":
        out = tuple(2 * d if a == axis else d for a, d in enumerate(dims))
        made = tape.op(op, x, _ints(tape, *(2 if a == axis else 1 for a in range(rank))))
    elif op == "Pad":
        out = tuple(d + 3 if a == axis else d for a, d in enumerate(dims))
        mode = draw.one(("constant", "reflect")) if dims[axis] > 2 else "constant"
        made = tape.op(op, x, _ints(tape, *(int(a == axis) * side for side in (1, 2) for a in range(rank))), mode=mode)
    elif op == "Squeeze":
        made, out = tape.op(op, x, _ints(tape, 0)), dims[1:]
        if dims[0] != 1:
            made, out = tape.op("Squeeze", tape.op("Unsqueeze", x, _ints(tape, 0)), _ints(tape, 0)), dims
    elif op == "Unsqueeze":
        made, out = tape.op(op, x, _ints(tape, axis)), (*dims[:axis], 1, *dims[axis:])
    else:
        made, out = tape.op(op, x, axis=axis), (int(np.prod(dims[:axis])), int(np.prod(dims[axis:])))
    _output(tape, made, out, kind)
    return f"{op}-{kind}-rank{rank}-axis{axis}"


def _lookup(draw: _Draw, tape: Tape) -> str:
    op = draw.one("Gather Gather GatherElements GatherND ScatterND ScatterElements TopK ArgMax ArgMin CumSum".split())
    kind, dims = draw.kind(op), (8, draw.one((16, 24, 32)))
    x = _input(tape, "x", dims, kind)
    index, constant = draw.one(("int32", "int64")), draw.one((True, False))
    reduction = draw.one(("none", "none", "add", "mul", "max"))
    if op in ("GatherND", "ScatterND", "CumSum", "TopK"):
        index = "int64"

    def places(*shape: int) -> str:
        made = np.arange(int(np.prod(shape))).reshape(shape) % 5
        return tape.constant(made, index) if constant else tape.input("i", shape, index)

    if op == "Gather":
        axis = draw.one((0, 1))
        _output(tape, tape.op(op, x, places(2, 3), axis=axis), (2, 3, dims[1]) if axis == 0 else (8, 2, 3), kind)
    elif op == "GatherElements":
        _output(tape, tape.op(op, x, places(4, dims[1]), axis=0), (4, dims[1]), kind)
    elif op == "GatherND":
        _output(tape, tape.op(op, x, places(3, 1)), (3, dims[1]), kind)
    elif op == "ScatterND":
        moved = tape.op(op, x, places(3, 1), _input(tape, "u", (3, dims[1]), kind), reduction=reduction)
        _output(tape, moved, dims, kind)
    elif op == "ScatterElements":
        updates = _input(tape, "u", (1, dims[1]), kind)
        _output(tape, tape.op(op, x, places(1, dims[1]), updates, axis=0, reduction=reduction), dims, kind)
    elif op == "TopK":
        made = tape.op(op, x, _ints(tape, 3), outputs=2, axis=-1)
        tape.output(f"{made}_1", (8, 3), "int64")
        _output(tape, made, (8, 3), kind)
    elif op == "CumSum":
        _output(tape, tape.op(op, x, tape.constant(1, np.int32)), dims, kind)
    else:
        keep = draw.one((0, 1))
        tape.output(tape.op(op, x, axis=1, keepdims=keep), (8, 1) if keep else (8,), "int64")
    return f"{op}-{kind}-{index}-{'constant' if constant else 'runtime'}-{reduction}"


def _reduction(draw: _Draw, tape: Tape) -> str:
    op = draw.one("ReduceMean ReduceMean ReduceSum ReduceSum ReduceMax ReduceMin ReduceL2 ReduceL1 ReduceProd".split())
    kind, rank = draw.kind(op), draw.one((2, 3, 4, 5))
    dims, keep = draw.dims(rank), draw.one((0, 1))
    axes = draw.one(((rank - 1,), (rank - 2,), (rank - 2, rank - 1), (-1,)))
    at = {axis % rank for axis in axes}
    out = [1 if a in at else d for a, d in enumerate(dims) if keep or a not in at]
    _output(tape, tape.op(op, _input(tape, "x", dims, kind), _ints(tape, *axes), keepdims=keep), out, kind)
    return f"{op}-{kind}-rank{rank}-{len(axes)}axes-keep{keep}"


def _norm(draw: _Draw, tape: Tape) -> str:
    op = draw.one(
        "LayerNormalization LayerNormalization RMSNormalization Softmax Softmax LogSoftmax LpNormalization "
        "InstanceNormalization GroupNormalization BatchNormalization".split()
    )
    kind = draw.kind(op, 23)
    image = op[0] in "IGB"
    dims = (1, 12, 10, 10) if image else (*draw.dims(draw.one((2, 3, 4)))[:-1], draw.one((48, 64, 80)))
    width = 12 if image else dims[-1]
    count = {"L": 2 if op == "LayerNormalization" else 0, "R": 1, "I": 2, "G": 2, "B": 4}.get(op[0], 0)
    x = _input(tape, "x", dims, kind)
    weights = [_constant(tape, (width,), kind) for _ in range(count)]
    if op == "BatchNormalization":
        weights[3] = tape.constant(np.full(width, 1.5), _plain(kind))
    axis = {"axis": draw.one((-1, -1, 1))} if "Softmax" in op else {}
    extra = {"num_groups": 3} if op == "GroupNormalization" else axis
    _output(tape, tape.op(op, x, *weights, **extra), dims, kind)
    return f"{op}-{kind}-rank{len(dims)}"


def _convolution(draw: _Draw, tape: Tape) -> str:
    op = draw.one(("Conv", "Conv", "Conv", "ConvTranspose"))
    kind, axes = draw.kind(op), draw.one((1, 2, 2, 2, 3))
    group, kernel, stride = draw.one((1, 1, 2, 8)), draw.one((1, 2, 3)), draw.one((1, 2))
    side = 12
    dims = (draw.one((1, 1, 2)), 8, *[side] * axes)
    shape = (8, 8 // group, *[kernel] * axes)
    given = [_input(tape, "x", dims, kind), _constant(tape, shape, kind)]
    if draw.one((True, False)) and not kind.startswith("q-"):
        given.append(_constant(tape, (8,), kind))
    dilation = draw.one((1, 1, 2))
    reach = dilation * (kernel - 1) + 1
    length = (side - 1) * stride + reach if op == "ConvTranspose" else (side - reach) // stride + 1
    made = tape.op(op, *given, group=group, strides=[stride] * axes, dilations=[dilation] * axes)
    _output(tape, made, (dims[0], 8, *[length] * axes), kind)
    return f"{op}-{kind}-{axes}d-group{group}-kernel{kernel}-stride{stride}-dilation{dilation}"


def _pool(draw: _Draw, tape: Tape) -> str:
    op = draw.one("MaxPool AveragePool AveragePool GlobalAveragePool GlobalMaxPool LpPool".split())
    kind, axes = draw.kind(op), draw.one((1, 2, 2, 3))
    dims = (1, 6, *[12] * axes)
    attributes: dict[str, object] = {}
    if not op.startswith("Global"):
        attributes = {"kernel_shape": [3] * axes, "strides": [3] * axes, "ceil_mode": draw.one((0, 1))}
    side = 4 if attributes else 1
    _output(tape, tape.op(op, _input(tape, "x", dims, kind), **attributes), (1, 6, *[side] * axes), kind)
    return f"{op}-{kind}-{axes}d"


def _resize(draw: _Draw, tape: Tape) -> str:
    kind, mode = (
        draw.one(("float32", "float32", "float16", "uint8", *_QUANTIZED)),
        draw.one(("nearest", "linear", "cubic")),
    )
    where = draw.one(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    dims = draw.one(((1, 4, 10, 10), (1, 4, 10, 10), (1, 4, 10)))
    factor = draw.one((2, 3, 0.5))
    out = (*dims[:2], *(int(d * factor) for d in dims[2:]))
    x = _input(tape, "x", dims, kind)
    given = [x, "", "", _ints(tape, *out)]
    if draw.one((True, False)):
        given = [x, "", tape.constant([1, 1, *[factor] * (len(dims) - 2)])]
    made = tape.op("Resize", *given, mode=mode, coordinate_transformation_mode=where)
    _output(tape, made, out, kind)
    return f"Resize-{kind}-{mode}-{where}-rank{len(dims)}-{factor:g}"


def _product(draw: _Draw, tape: Tape) -> str:
    op, kind = draw.one(("MatMul", "MatMul", "Gemm")), draw.one(_KINDS[:7] + _QUANTIZED)
    constant = draw.one((True, False))
    lead = () if op == "Gemm" else draw.one(((), (1,), (2, 3), (1, 2, 3)))
    x = _input(tape, "x", (*lead, 6, 24), kind)
    flipped = op == "Gemm" and draw.one((True, False))
    shape = (16, 24) if flipped else (24, 16)
    shape = shape if op == "Gemm" or draw.one((True, False)) else (*lead, *shape)
    z = _constant(tape, shape, kind) if constant else _input(tape, "z", shape, kind)
    extra = {"transB": 1} if flipped else {}
    _output(tape, tape.op(op, x, z, **extra), (*lead, 6, 16), kind)
    return f"{op}-{kind}-rank{len(lead) + 2}-{'constant' if constant else 'runtime'}{'-transB' if flipped else ''}"


#: Families and how many models are drawn of each.
_FAMILIES: tuple[tuple[Callable[[_Draw, Tape], str], int], ...] = (
    (_unary, 20),
    (_binary, 18),
    (_comparison, 10),
    (_cast, 8),
    (_move, 24),
    (_lookup, 14),
    (_reduction, 12),
    (_norm, 12),
    (_convolution, 12),
    (_pool, 8),
    (_resize, 10),
    (_product, 12),
)


def drawn(seed: int, prefix: str) -> Iterator[Case]:
    """Models of the families, each once.

    Args:
        seed: of the draws.
        prefix: of their names.
    """
    draw, made = _Draw(seed), set[bytes]()
    for family, models in _FAMILIES:
        for _ in range(models):
            tape = Tape(23)
            name = family(draw, tape)
            case = tape.case(f"{prefix}-{len(made) + 1:03d}-{name}")
            graph = case.model.SerializeToString()
            if graph not in made:
                made.add(graph)
                yield case


def later() -> Iterator[Case]:
    """A second draw."""
    yield from drawn(_LATER, "later")


def unseen() -> Iterator[Case]:
    """The first draw, weights and blocks."""
    yield from drawn(_SEED, "unseen")
    yield from _weights()
    yield from _blocks()


def _weights() -> Iterator[Case]:
    yield product("unseen-Gemm-uint16-int8-block16", "uint16", "int8", "block16", op="Gemm")
    yield product("unseen-Gemm-uint8-uint4-tensor-transB", "uint8", "uint4", "tensor", op="Gemm", transposed=1)
    yield product("unseen-MatMul-int16-LPBQ16", "int16", "int4", "lpbq16")
    yield convolution("unseen-Conv-uint16-int8-block16", "uint16", "int8", "block16")
    yield blockwise("unseen-MatMulNBits-2-16-zero", 2, 16, zero=0x55)
    yield blockwise("unseen-MatMulNBits-8-32-float16", 8, 32, dtype="float16")
    yield blockwise("unseen-MatMulNBits-4-64-rest", 4, 64, features=96)


def _blocks() -> Iterator[Case]:
    for kind in ("float32", "float16", "q-uint16", "q-uint8"):
        yield _vision(kind)
        yield _mobile(kind)
    for kind in ("float32", "float16", "q-uint16"):
        yield _decoder(kind)
        yield _pyramid(kind)
    yield _windows(5)
    yield _windows(6)
    yield _masked("Where")
    yield _masked("Trilu")
    yield _mask_from_positions()
    yield _cached()
    yield _experts()
    yield _interpolated("linear")
    yield _interpolated("cubic")
    yield _pixels()
    yield _rope_on_the_fly()
    yield _gelu_tanh()
    yield _patches_as_product()
    yield _sampled()
    yield _class_token()
    yield _normalized_heads()


def _rounded(tape: Tape, name: str, kind: str) -> str:
    return tape.quantized(name, kind[2:], 16) if kind.startswith("q-") else name


def _linear(tape: Tape, x: str, inputs: int, outputs: int, kind: str) -> str:
    """Product and bias; quantized weights are int8 per channel."""
    if not kind.startswith("q-"):
        made = tape.op("MatMul", x, tape.normal(inputs, outputs, dtype=kind))
        return tape.op("Add", made, tape.normal(outputs, dtype=kind))
    levels = tape.constant(tape.random.integers(-100, 101, (inputs, outputs)), np.int8)
    scales = tape.constant(np.full(outputs, 0.002))
    weight = tape.op("DequantizeLinear", levels, scales, tape.constant(np.zeros(outputs), np.int8), axis=1)
    made = _rounded(tape, tape.op("MatMul", x, weight), kind)
    return _rounded(tape, tape.op("Add", made, tape.quantized(tape.normal(outputs), kind[2:])), kind)


def _vision(kind: str) -> Case:
    """A vision layer, attention written out, the second operand of its products in 8 bits."""
    tape, plain, width, heads, tokens = Tape(23), _plain(kind), 48, 4, 12
    x = _input(tape, "x", (1, tokens, width), kind)
    weights = [_constant(tape, (width,), kind if kind in ("float16", "q-uint8") else "float32") for _ in range(2)]
    normed = _rounded(tape, tape.op("LayerNormalization", x, *weights, epsilon=1e-6), kind)
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        shape = _ints(tape, 1, tokens, heads, width // heads)
        split = _rounded(tape, tape.op("Reshape", _linear(tape, normed, width, width, kind), shape), kind)
        parts.append(_rounded(tape, tape.op("Transpose", split, perm=perm), kind))
    narrow = "q-uint8" if kind.startswith("q-") else kind
    scores = _rounded(tape, tape.op("MatMul", parts[0], _rounded(tape, parts[1], narrow)), kind)
    shares = _rounded(tape, tape.op("Softmax", scores, axis=-1), kind)
    mixed = _rounded(tape, tape.op("MatMul", shares, _rounded(tape, parts[2], narrow)), kind)
    joined = tape.op("Reshape", tape.op("Transpose", mixed, perm=[0, 2, 1, 3]), _ints(tape, 1, tokens, width))
    total = _rounded(tape, tape.op("Add", x, _linear(tape, _rounded(tape, joined, kind), width, width, kind)), kind)
    tape.output(total, (1, tokens, width), plain)
    return tape.case(f"unseen-block-vision-{kind}")


def _mobile(kind: str) -> Case:
    """A convolution, a depth-wise one and a gate of squeeze and excitation."""
    tape, plain = Tape(), _plain(kind)
    x = _input(tape, "x", (1, 8, 14, 14), kind)

    def conv(value: str, outputs: int, inputs: int, kernel: int, group: int = 1) -> str:
        shape = (outputs, inputs // group, kernel, kernel)
        if kind.startswith("q-"):
            levels = tape.constant(tape.random.integers(-100, 101, shape), np.int8)
            weight = tape.op("DequantizeLinear", levels, tape.constant(0.004), tape.constant(0, np.int8))
        else:
            weight = tape.normal(*shape, dtype=plain)
        return _rounded(tape, tape.op("Conv", value, weight, group=group, pads=[kernel // 2] * 4), kind)

    wide = _rounded(tape, tape.op("HardSwish", conv(x, 16, 8, 1)), kind)
    deep = _rounded(tape, tape.op("Relu", conv(wide, 16, 16, 3, 16)), kind)
    pooled = _rounded(tape, tape.op("ReduceMean", deep, _ints(tape, 2, 3)), kind)
    gate = _rounded(tape, tape.op("HardSigmoid", conv(pooled, 16, 16, 1)), kind)
    gated = _rounded(tape, tape.op("Mul", deep, gate), kind)
    tape.output(_rounded(tape, tape.op("Add", x, conv(gated, 8, 16, 1)), kind), (1, 8, 14, 14), plain)
    return tape.case(f"unseen-block-mobile-{kind}")


def _decoder(kind: str) -> Case:
    """A gated unit behind a norm that is written out, as exporters leave it."""
    tape, plain, width = Tape(), _plain(kind), 64
    x = _input(tape, "x", (1, 6, width), kind)
    two, epsilon = (_constant(tape, (), kind) if kind.startswith("q-") else tape.constant(v, plain) for v in (2, 1e-3))
    squared = _rounded(tape, tape.op("Pow", x, two), kind)
    mean = _rounded(tape, tape.op("ReduceMean", squared, _ints(tape, -1)), kind)
    root = _rounded(tape, tape.op("Sqrt", _rounded(tape, tape.op("Add", mean, epsilon), kind)), kind)
    normed = _rounded(tape, tape.op("Mul", x, _rounded(tape, tape.op("Reciprocal", root), kind)), kind)
    gate = _linear(tape, normed, width, 96, kind)
    opened = _rounded(tape, tape.op("Mul", gate, _rounded(tape, tape.op("Sigmoid", gate), kind)), kind)
    gated = _rounded(tape, tape.op("Mul", opened, _linear(tape, normed, width, 96, kind)), kind)
    total = _rounded(tape, tape.op("Add", x, _linear(tape, gated, 96, width, kind)), kind)
    tape.output(total, (1, 6, width), plain)
    return tape.case(f"unseen-block-decoder-{kind}")


def _pyramid(kind: str) -> Case:
    """Two scales of an image joined: pool, convolution, enlarge, concatenate."""
    tape, plain = Tape(), _plain(kind)
    x = _input(tape, "x", (1, 8, 16, 16), kind)
    small = _rounded(tape, tape.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), kind)
    mixed = _rounded(tape, tape.op("Conv", small, _constant(tape, (8, 8, 3, 3), kind), pads=[1] * 4), kind)
    leaky = _rounded(tape, tape.op("LeakyRelu", mixed, alpha=0.1), kind)
    large = tape.op("Resize", leaky, "", tape.constant([1, 1, 2, 2]), mode="nearest", nearest_mode="floor",
                    coordinate_transformation_mode="asymmetric")  # fmt: skip
    tape.output(_rounded(tape, tape.op("Concat", x, _rounded(tape, large, kind), axis=1), kind), (1, 16, 16, 16), plain)
    return tape.case(f"unseen-block-pyramid-{kind}")


def _windows(rank: int) -> Case:
    """Tokens of a grid in windows; with six dimensions as most code has it, with five one row of windows at a time."""
    tape = Tape()
    x = tape.input("x", (1, 8, 8, 24))
    split, perm = ([1, 2, 4, 2, 4, 24], [0, 1, 3, 2, 4, 5]) if rank == 6 else ([2, 4, 2, 4, 24], [0, 2, 1, 3, 4])
    moved = tape.op("Transpose", tape.op("Reshape", x, _ints(tape, *split)), perm=perm)
    tape.output(tape.op("Reshape", moved, _ints(tape, 4, 16, 24)), (4, 16, 24))
    return tape.case(f"unseen-block-windows-rank{rank}")


def _masked(how: str) -> Case:
    """Scores with a causal mask, as a constant or made by Trilu."""
    tape = Tape()
    scores = tape.input("x", (1, 4, 10, 10))
    if how == "Where":
        keep = tape.constant(np.tril(np.ones((10, 10))), bool)
        masked = tape.op("Where", keep, scores, tape.constant(-1e4))
    else:
        low = tape.op("Trilu", tape.op("Exp", scores), upper=0)
        masked = tape.op("Div", low, tape.op("ReduceSum", low, _ints(tape, -1)))
    tape.output(tape.op("Softmax", masked, axis=-1), (1, 4, 10, 10))
    return tape.case(f"unseen-block-mask-{how.lower()}")


def _mask_from_positions() -> Case:
    """A mask from the number of tokens so far, as static graphs make it."""
    tape = Tape()
    length = tape.input("length", (1, 1), "int32")
    places = tape.constant(np.arange(24)[None], np.int32)
    seen = tape.op("Less", places, length)
    mask = tape.op("Where", seen, tape.constant(0.0), tape.constant(-1e4))
    tape.output(tape.op("Add", tape.input("x", (1, 4, 1, 24)), mask), (1, 4, 1, 24))
    return tape.case("unseen-block-mask-positions")


def _cached() -> Case:
    """Keys of shared heads appended to a cache and repeated for every head."""
    tape = Tape()
    past, key = tape.input("past", (1, 2, 15, 16)), tape.input("key", (1, 2, 1, 16))
    present = tape.op("Concat", past, key, axis=2)
    wide = tape.op("Expand", tape.op("Unsqueeze", present, _ints(tape, 2)), _ints(tape, 1, 2, 3, 16, 16))
    keys = tape.op("Reshape", wide, _ints(tape, 1, 6, 16, 16))
    scores = tape.op("MatMul", tape.input("query", (1, 6, 1, 16)), tape.op("Transpose", keys, perm=[0, 1, 3, 2]))
    capped = tape.op("Mul", tape.op("Tanh", tape.op("Div", scores, tape.constant(30.0))), tape.constant(30.0))
    tape.output(tape.op("Softmax", capped), (1, 6, 1, 16))
    tape.output(present, (1, 2, 16, 16))
    return tape.case("unseen-block-cache-repeat")


def _experts() -> Case:
    """The gate of a mixture of experts: the largest scores, normalized, scattered back."""
    tape = Tape()
    scores = tape.op("Softmax", tape.op("MatMul", tape.input("x", (6, 32)), tape.normal(32, 8)))
    best = tape.op("TopK", scores, _ints(tape, 2), outputs=2, axis=-1)
    shares = tape.op("Div", best, tape.op("ReduceSum", best, _ints(tape, -1)))
    empty = tape.constant(np.zeros((6, 8)))
    tape.output(tape.op("ScatterElements", empty, f"{best}_1", shares, axis=1), (6, 8))
    return tape.case("unseen-block-experts")


def _interpolated(mode: str) -> Case:
    """Position embeddings brought to another grid."""
    tape = Tape()
    grid = tape.op("Transpose", tape.input("table", (1, 6, 6, 16)), perm=[0, 3, 1, 2])
    resized = tape.op("Resize", grid, "", "", _ints(tape, 1, 16, 9, 9), mode=mode, cubic_coeff_a=-0.5)
    tokens = tape.op("Reshape", tape.op("Transpose", resized, perm=[0, 2, 3, 1]), _ints(tape, 1, 81, 16))
    tape.output(tape.op("Add", tape.input("x", (1, 81, 16)), tokens), (1, 81, 16))
    return tape.case(f"unseen-block-positions-{mode}")


def _pixels() -> Case:
    """Pixels of an image made floats and normalized on the NPU."""
    tape = Tape()
    floats = tape.op("Cast", tape.input("x", (1, 12, 12, 3), "uint8"), to=TYPES["float32"])
    scaled = tape.op("Sub", tape.op("Mul", floats, tape.constant(1 / 127.5)), tape.constant([0.9, 1.0, 1.1]))
    tape.output(tape.op("Transpose", scaled, perm=[0, 3, 1, 2]), (1, 3, 12, 12))
    return tape.case("unseen-block-pixels")


def _rope_on_the_fly() -> Case:
    """Angles of rotary embeddings from positions at run time, applied to halves."""
    tape = Tape()
    positions = tape.op("Cast", tape.input("p", (1, 6, 1), "int32"), to=TYPES["float32"])
    angles = tape.op("Mul", positions, tape.constant(1.0 / 100 ** (np.arange(8) / 8)))
    both = tape.op("Concat", angles, angles, axis=-1)
    x = tape.input("x", (1, 6, 16))
    halves = tape.op("Split", x, axis=-1, num_outputs=2, outputs=2)
    turned = tape.op("Concat", tape.op("Neg", f"{halves}_1"), halves, axis=-1)
    turns = tape.op("Mul", turned, tape.op("Sin", both))
    tape.output(tape.op("Add", tape.op("Mul", x, tape.op("Cos", both)), turns), (1, 6, 16))
    return tape.case("unseen-block-rope")


def _gelu_tanh() -> Case:
    """Gelu by tanh, written out."""
    tape = Tape()
    x = tape.input("x", (1, 8, 40))
    cube = tape.op("Mul", tape.op("Pow", x, tape.constant(3.0)), tape.constant(0.044715))
    inner = tape.op("Tanh", tape.op("Mul", tape.op("Add", x, cube), tape.constant(0.7978845608)))
    half = tape.op("Mul", x, tape.constant(0.5))
    tape.output(tape.op("Mul", half, tape.op("Add", inner, tape.constant(1.0))), (1, 8, 40))
    return tape.case("unseen-block-gelu-tanh")


def _patches_as_product() -> Case:
    """Patches cut by Reshape and Transpose over six dimensions, then a product."""
    tape = Tape()
    x = tape.input("x", (1, 3, 16, 16))
    cut = tape.op("Reshape", x, _ints(tape, 1, 3, 4, 4, 4, 4))
    rows = tape.op("Reshape", tape.op("Transpose", cut, perm=[0, 2, 4, 1, 3, 5]), _ints(tape, 16, 48))
    tape.output(tape.op("Gemm", rows, tape.normal(48, 20), tape.normal(20)), (16, 20))
    return tape.case("unseen-block-patches-product")


def _sampled() -> Case:
    """A feature map sampled where a small network says."""
    tape = Tape()
    x = tape.input("x", (1, 6, 10, 10))
    shifts = tape.op("Tanh", tape.op("Conv", x, tape.normal(2, 6, 1, 1)))
    grid = tape.op("Transpose", shifts, perm=[0, 2, 3, 1])
    tape.output(tape.op("GridSample", x, grid, mode="linear", padding_mode="zeros"), (1, 6, 10, 10))
    return tape.case("unseen-block-sampled")


def _class_token() -> Case:
    """A class token before the others, read back by its place at the end."""
    tape = Tape()
    x = tape.input("x", (2, 9, 16))
    token = tape.op("Expand", tape.normal(1, 1, 16), _ints(tape, 2, 1, 16))
    both = tape.op("Concat", token, x, axis=1)
    first = tape.op("Gather", both, tape.constant(0, np.int64), axis=1)
    length = tape.op("Sqrt", tape.op("ReduceSum", tape.op("Mul", first, first), _ints(tape, -1)))
    tape.output(tape.op("Div", first, tape.op("Clip", length, tape.constant(1e-6))), (2, 16))
    return tape.case("unseen-block-class-token")


def _normalized_heads() -> Case:
    """Norms of queries before com.microsoft's rotary embedding."""
    tape = Tape(23)
    x = tape.input("x", (1, 4, 6, 64))
    normed = tape.op("RMSNormalization", x, tape.normal(64))
    positions = tape.constant(np.arange(6)[None], np.int64)
    tables = [tape.normal(12, 32) for _ in range(2)]
    tape.output(tape.op("RotaryEmbedding", normed, positions, *tables, domain=MICROSOFT), (1, 4, 6, 64))
    return tape.case("unseen-block-normalized-heads")
