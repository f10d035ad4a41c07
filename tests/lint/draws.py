"""Rows drawn by a seed, fixed before any verdict on them was seen.

The draws are from what ONNX allows, not from what the rules or the compiler take. Of `unseen` 187 of 196 agreed (with
the weights and blocks of `tables/unseen.yaml`), and the other nine corrected the rules; `later` was drawn after that
and is held out.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TypeVar

from tests.lint.notation import plain
from tests.lint.tables import Row
from tests.lint.tape import may_have

_T = TypeVar("_T")
_SEED, _LATER = 20261123, 20261124
_QUANTIZED = ("q_uint8", "q_uint16", "q_int16")
#: Float types come up as often as users' models have them.
_KINDS = ("float32",) * 4 + ("float16",) * 2 + ("int32", "int64", "uint8", "bool", *_QUANTIZED)
_OPSET = 23


class _Draw:
    """Choices; `random.random` gives the same numbers for a seed in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, options: Sequence[_T]) -> _T:
        return options[int(self._random.random() * len(options))]

    def flag(self) -> bool:
        return self.one((True, False))

    def dims(self, rank: int) -> tuple[int, ...]:
        return (1, *(self.one((3, 4, 6, 8, 12)) for _ in range(rank - 2)), self.one((16, 20, 32, 48)))[-rank:]

    def rank(self) -> int:
        return self.one((1, 2, 3, 3, 4, 4, 5))

    def kind(self, op_type: str, opset: int = 21) -> str:
        """An element type that ONNX lets the operator have; quantized ones stand for a float in between."""
        return self.one([kind for kind in _KINDS if may_have(op_type, plain(kind), opset)])


#: What a family draws: the end of a row's id, and its graph.
_Drawn = tuple[str, str]


def _typed(kind: str, dims: Sequence[int]) -> str:
    """An input or output in the notation."""
    return f"{kind}[{','.join(map(str, dims)) or '()'}]"


def _constant(kind: str, dims: Sequence[int]) -> str:
    if kind.startswith("q_"):
        return f"{kind}({_typed('normal', dims)}, 4.0)"
    return f"{kind}({_typed('standard' if 'float' in kind else 'small', dims)})"


def _unary(draw: _Draw) -> _Drawn:
    op = draw.one(
        "Relu Sigmoid Tanh Exp Sqrt Neg Abs Log Sin Cos Floor Ceil Round Sign Softplus HardSwish HardSigmoid Elu "
        "LeakyRelu Mish Reciprocal Gelu Selu Atan Identity Clip Erf Celu Softsign Asin Sinh Asinh Shrink".split()
    )
    kind, dims = draw.kind(op), draw.dims(draw.rank())
    return f"{op}-{kind}-rank{len(dims)}", f"{_typed(kind, dims)} = {op}(x := {_typed(kind, dims)})"


def _binary(draw: _Draw) -> _Drawn:
    op = draw.one("Add Add Sub Mul Mul Div Pow Min Max Mod PRelu".split())
    kind, dims = draw.kind(op), draw.dims(draw.rank())
    form = draw.one(("same", "last", "scalar", "row", "constant"))
    other = {"last": dims[-1:], "scalar": (), "row": (*dims[:-1], 1)}.get(form, dims)
    constant = form == "constant" or (op == "PRelu" and form != "same")
    z = _constant(kind, other) if constant else f"z := {_typed(kind, other)}"
    extra = ", fmod=1" if op == "Mod" and "float" in plain(kind) else ""
    text = f"{_typed(kind, dims)} = {op}(x := {_typed(kind, dims)}, {z}{extra})"
    return f"{op}-{kind}-{form}-rank{len(dims)}", text


def _comparison(draw: _Draw) -> _Drawn:
    op = draw.one("Equal Less Greater GreaterOrEqual LessOrEqual And Or Xor Where Where".split())
    dims = draw.dims(draw.rank())
    kind = "bool" if op in ("And", "Or", "Xor") else draw.one(_KINDS) if op == "Where" else draw.kind(op)
    x = _typed(kind, dims)
    text = f"{_typed('bool', dims)} = {op}(x := {x}, z := {x})"
    if op == "Where":
        text = f"x, z = {x}, {x}; {x} = Where(c := {_typed('bool', (*dims[:-1], 1))}, x, z)"
    return f"{op}-{kind}-rank{len(dims)}", text


def _cast(draw: _Draw) -> _Drawn:
    types = ("float32", "float16", "int32", "int64", "uint8", "bool")
    source, to, dims = draw.one(types), draw.one(types), draw.dims(draw.rank())
    given, out = f"x := {_typed(source, dims)}", dims
    if draw.flag():  # between two operators that are taken
        given, out = f"Concat({given}, x, axis=-1)", (*dims[:-1], 2 * dims[-1])
    return f"Cast-{source}-{to}-rank{len(dims)}", f"{_typed(to, out)} = Cast({given}, to={to})"


def _move(draw: _Draw) -> _Drawn:
    op = draw.one("Reshape Transpose Concat Slice Split Expand Tile Pad Squeeze Unsqueeze Flatten".split())
    kind, rank = draw.kind(op), draw.one((2, 3, 4, 4, 5))
    dims = draw.dims(rank)
    axis = draw.one(range(rank))
    x = f"x := {_typed(kind, (*dims[:-1], 1) if op == 'Expand' else dims)}"
    out, rest = _moved(draw, op, kind, dims, axis)
    made = _typed(kind, out)
    text = f"first, {made} = {op}({x}{rest}); {made} = first" if op == "Split" else f"{made} = {op}({x}{rest})"
    return f"{op}-{kind}-rank{rank}-axis{axis}", text


def _moved(draw: _Draw, op: str, kind: str, dims: tuple[int, ...], axis: int) -> tuple[tuple[int, ...], str]:
    """Dimensions of the output, and further arguments."""
    places = range(len(dims))
    if op == "Reshape":
        out = (*dims[:-1], dims[-1] // 4, 4)
        return out, f", int64({list(out)})"
    if op == "Transpose":
        perm = list(places)
        perm[axis], perm[-1] = perm[-1], perm[axis]
        return tuple(dims[p] for p in perm), f", perm={perm}"
    if op == "Concat":
        out = tuple(3 * d if a == axis else d for a, d in enumerate(dims))
        return out, f", x, z := {_typed(kind, dims)}, axis={axis}"
    if op == "Slice":
        step = draw.one((1, 2, 4))
        return (*dims[:-1], 12 // step), f", int64([0]), int64([12]), int64([{len(dims) - 1}]), int64([{step}])"
    if op == "Split":
        return (*dims[:-1], dims[-1] // 2), ", axis=-1, num_outputs=2"
    if op == "Expand":
        return dims, f", int64({list(dims)})"
    if op == "Tile":
        times = [2 if a == axis else 1 for a in places]
        return tuple(d * n for d, n in zip(dims, times, strict=True)), f", int64({times})"
    if op == "Pad":
        mode = draw.one(("constant", "reflect")) if dims[axis] > 2 else "constant"
        pads = [int(a == axis) * side for side in (1, 2) for a in places]
        return tuple(d + 3 if a == axis else d for a, d in enumerate(dims)), f', int64({pads}), mode="{mode}"'
    if op == "Squeeze":  # the first dimension is 1
        return dims[1:], ", int64([0])"
    if op == "Unsqueeze":
        return (*dims[:axis], 1, *dims[axis:]), f", int64([{axis}])"
    return (prod(dims[:axis]), prod(dims[axis:])), f", axis={axis}"


def _lookup(draw: _Draw) -> _Drawn:
    op = draw.one("Gather Gather GatherElements GatherND ScatterND ScatterElements TopK ArgMax ArgMin CumSum".split())
    kind, width = draw.kind(op), draw.one((16, 24, 32))
    index, constant = draw.one(("int32", "int64")), draw.flag()
    reduction = draw.one(("none", "none", "add", "mul", "max"))
    if op in ("GatherND", "ScatterND", "CumSum", "TopK"):
        index = "int64"

    def places(*dims: int) -> str:
        return f"{index}({_typed('counted', dims)} % 5)" if constant else f"i := {_typed(index, dims)}"

    out = _typed(kind, (8, width))
    x = f"x := {out}"
    if op == "Gather":
        axis = draw.one((0, 1))
        text = f"{_typed(kind, (8, 2, 3) if axis else (2, 3, width))} = {op}({x}, {places(2, 3)}, axis={axis})"
    elif op == "GatherElements":
        text = f"{_typed(kind, (4, width))} = {op}({x}, {places(4, width)}, axis=0)"
    elif op == "GatherND":
        text = f"{_typed(kind, (3, width))} = {op}({x}, {places(3, 1)})"
    elif op == "ScatterND":
        text = f'{out} = {op}({x}, {places(3, 1)}, u := {_typed(kind, (3, width))}, reduction="{reduction}")'
    elif op == "ScatterElements":
        text = f"x, u = {out}, {_typed(kind, (1, width))}; "
        text += f'{out} = {op}(x, {places(1, width)}, u, axis=0, reduction="{reduction}")'
    elif op == "TopK":
        text = f"best, int64[8,3] = {op}({x}, int64([3]), axis=-1); {_typed(kind, (8, 3))} = best"
    elif op == "CumSum":
        text = f"{out} = {op}({x}, int32(1))"
    else:
        keep = draw.one((0, 1))
        text = f"{_typed('int64', (8, 1) if keep else (8,))} = {op}({x}, axis=1, keepdims={keep})"
    return f"{op}-{kind}-{index}-{'constant' if constant else 'runtime'}-{reduction}", text


def _reduction(draw: _Draw) -> _Drawn:
    op = draw.one("ReduceMean ReduceMean ReduceSum ReduceSum ReduceMax ReduceMin ReduceL2 ReduceL1 ReduceProd".split())
    kind, rank = draw.kind(op), draw.one((2, 3, 4, 5))
    dims, keep = draw.dims(rank), draw.one((0, 1))
    axes = draw.one(((rank - 1,), (rank - 2,), (rank - 2, rank - 1), (-1,)))
    at = {axis % rank for axis in axes}
    out = [1 if a in at else d for a, d in enumerate(dims) if keep or a not in at]
    text = f"{_typed(kind, out)} = {op}(x := {_typed(kind, dims)}, int64({list(axes)}), keepdims={keep})"
    return f"{op}-{kind}-rank{rank}-{len(axes)}axes-keep{keep}", text


def _norm(draw: _Draw) -> _Drawn:
    op = draw.one(
        "LayerNormalization LayerNormalization RMSNormalization Softmax Softmax LogSoftmax LpNormalization "
        "InstanceNormalization GroupNormalization BatchNormalization".split()
    )
    kind = draw.kind(op, _OPSET)
    image = op[0] in "IGB"
    dims = (1, 12, 10, 10) if image else (*draw.dims(draw.one((2, 3, 4)))[:-1], draw.one((48, 64, 80)))
    width = 12 if image else dims[-1]
    count = {"L": 2 if op == "LayerNormalization" else 0, "R": 1, "I": 2, "G": 2, "B": 4}.get(op[0], 0)
    weights = [_constant(kind, (width,))] * count
    extra = f", axis={draw.one((-1, -1, 1))}" if "Softmax" in op else ""
    extra = ", num_groups=3" if op == "GroupNormalization" else extra
    x = _typed(kind, dims)
    text = f"{x} = {op}({', '.join([f'x := {x}', *weights])}{extra})"
    if op == "BatchNormalization":  # a variance is positive
        text = f"x, scale, bias, mean, drawn = {', '.join([x, *weights])}; variance = {plain(kind)}([1.5] * {width}); "
        text += f"{x} = {op}(x, scale, bias, mean, variance)"
    return f"{op}-{kind}-rank{len(dims)}", text


def _convolution(draw: _Draw) -> _Drawn:
    op = draw.one(("Conv", "Conv", "Conv", "ConvTranspose"))
    kind, axes = draw.kind(op), draw.one((1, 2, 2, 2, 3))
    group, kernel, stride = draw.one((1, 1, 2, 8)), draw.one((1, 2, 3)), draw.one((1, 2))
    side, batch = 12, draw.one((1, 1, 2))
    given = [f"x := {_typed(kind, (batch, 8, *[side] * axes))}", _constant(kind, (8, 8 // group, *[kernel] * axes))]
    if draw.flag() and not kind.startswith("q_"):
        given.append(_constant(kind, (8,)))
    dilation = draw.one((1, 1, 2))
    reach = dilation * (kernel - 1) + 1
    length = (side - 1) * stride + reach if op == "ConvTranspose" else (side - reach) // stride + 1
    extra = f"group={group}, strides={[stride] * axes}, dilations={[dilation] * axes}"
    text = f"{_typed(kind, (batch, 8, *[length] * axes))} = {op}({', '.join(given)}, {extra})"
    return f"{op}-{kind}-{axes}d-group{group}-kernel{kernel}-stride{stride}-dilation{dilation}", text


def _pool(draw: _Draw) -> _Drawn:
    op = draw.one("MaxPool AveragePool AveragePool GlobalAveragePool GlobalMaxPool LpPool".split())
    kind, axes = draw.kind(op), draw.one((1, 2, 2, 3))
    side, extra = 1, ""
    if not op.startswith("Global"):
        side, window = 4, [3] * axes
        extra = f", kernel_shape={window}, strides={window}, ceil_mode={draw.one((0, 1))}"
    text = f"{_typed(kind, (1, 6, *[side] * axes))} = {op}(x := {_typed(kind, (1, 6, *[12] * axes))}{extra})"
    return f"{op}-{kind}-{axes}d", text


def _resize(draw: _Draw) -> _Drawn:
    kind = draw.one(("float32", "float32", "float16", "uint8", *_QUANTIZED))
    mode = draw.one(("nearest", "linear", "cubic"))
    where = draw.one(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    dims = draw.one(((1, 4, 10, 10), (1, 4, 10, 10), (1, 4, 10)))
    factor = draw.one((2, 3, 0.5))
    out = (*dims[:2], *(int(d * factor) for d in dims[2:]))
    size = f"none, float32({[1, 1, *[factor] * (len(dims) - 2)]})" if draw.flag() else "none, none, sizes"
    text = f"x, sizes = {_typed(kind, dims)}, int64({list(out)}); {_typed(kind, out)} = "
    text += f'Resize(x, {size}, mode="{mode}", coordinate_transformation_mode="{where}")'
    return f"Resize-{kind}-{mode}-{where}-rank{len(dims)}-{factor:g}", text


def _product(draw: _Draw) -> _Drawn:
    op, kind = draw.one(("MatMul", "MatMul", "Gemm")), draw.one(_KINDS[:7] + _QUANTIZED)
    constant = draw.flag()
    lead = () if op == "Gemm" else draw.one(((), (1,), (2, 3), (1, 2, 3)))
    flipped = op == "Gemm" and draw.flag()
    shape = (16, 24) if flipped else (24, 16)
    shape = shape if op == "Gemm" or draw.flag() else (*lead, *shape)
    z = _constant(kind, shape) if constant else f"z := {_typed(kind, shape)}"
    x, extra = _typed(kind, (*lead, 6, 24)), ", transB=1" if flipped else ""
    text = f"{_typed(kind, (*lead, 6, 16))} = {op}(x := {x}, {z}{extra})"
    return (
        f"{op}-{kind}-rank{len(lead) + 2}-{'constant' if constant else 'runtime'}{'-transB' if flipped else ''}",
        text,
    )


#: Families and how many models are drawn of each.
_FAMILIES: tuple[tuple[Callable[[_Draw], _Drawn], int], ...] = (
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


def unseen() -> Iterator[Row]:
    """The first draw."""
    return _drawn(_SEED, "unseen")


def later() -> Iterator[Row]:
    """The second draw."""
    return _drawn(_LATER, "later")


def _drawn(seed: int, prefix: str) -> Iterator[Row]:
    """Rows of the families, each graph once.

    Args:
        seed: of the draws.
        prefix: of the rows' ids.
    """
    draw, made = _Draw(seed), set[str]()
    for family, models in _FAMILIES:
        for _ in range(models):
            name, text = family(draw)
            if text not in made:
                made.add(text)
                yield Row(
                    f"{prefix}-{len(made):03d}-{name.replace('q_', 'q-')}", "graph", {"text": text, "opset": _OPSET}
                )
