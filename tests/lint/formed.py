"""Operators in their other forms: over five axes, as convolutions of every shape, as every kind of Resize."""

from collections.abc import Iterator

import numpy as np

from tests.lint.tape import LEVELS, Case, Tape, may_have
from tests.lint.typed import COMPARISONS, ONE, TWO

_FIVE = (1, 2, 3, 4, 16)
_MODES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def formed() -> Iterator[Case]:
    """All of them."""
    yield from _five_axes()
    yield from _five_axes_of_more()
    yield from _products()
    yield from _convolutions()
    yield from _resizes()


def _five_axes() -> Iterator[Case]:
    yield _deep("Not", 1, "bool")
    for op in ("Add", "Mul", "Div", "Pow", "Max", "Min", "Sub"):
        for dtype in ("float32", "int32", "int64"):
            if (op, dtype[:3]) != ("Pow", "int"):
                yield _deep(op, 2, dtype)
    for op in ("And", "Or", "Xor"):
        for rank in (4, 5):
            yield _deep(op, 2, "bool", "bool", _FIVE[-rank:])
    for op in ("Equal", "Less", "GreaterOrEqual"):
        for dtype in ("float32", "int32"):
            yield _deep(op, 2, dtype, "bool")
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"):
        tape = Tape()
        axes = tape.constant([-2, -1], np.int64)
        tape.output(tape.op(op, tape.input("x", _FIVE), axes), (*_FIVE[:3], 1, 1))
        yield tape.case(f"five-{op}")
    for op, weights in (("LayerNormalization", 2), ("RMSNormalization", 1), ("LpNormalization", 0)):
        tape = Tape(23)
        tape.output(tape.op(op, tape.input("x", _FIVE), *(tape.normal(16) for _ in range(weights))), _FIVE)
        yield tape.case(f"five-{op}")
    for dtype in ("float32", "int64"):
        tape = Tape()
        pair = [tape.input(name, _FIVE, dtype) for name in "xy"]
        tape.output(tape.op("Where", tape.input("c", _FIVE, "bool"), *pair), _FIVE, dtype)
        yield tape.case(f"five-Where-{dtype}")


def _five_axes_of_more() -> Iterator[Case]:
    """Every elementwise operator, in float and quantized; both operands of the same shape."""
    for op in ONE:
        for kind in ("float32", "uint8", "uint16"):
            yield _same(op, 1, kind)
    for op in TWO:
        for kind in ("float32", "int32", "uint16"):
            if may_have(op, "float32" if kind == "uint16" else kind):
                yield _same(op, 2, kind)
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"):
        for kind in ("float32", "uint16"):
            tape = Tape()
            x = tape.input("x", _FIVE)
            x = tape.quantized(x, kind) if kind in LEVELS else x
            made = tape.op(op, x, tape.constant([2], np.int64), keepdims=0)
            tape.output(tape.quantized(made, kind) if kind in LEVELS else made, (1, 2, 4, 16))
            yield tape.case(f"five-{op}-inner-{kind}")
    for op in ("ReduceMax", "ReduceMin", "ReduceL2"):
        for axes, keep in (([-1], 1), ([2], 1), ([-2, -1], 0)):
            tape = Tape()
            made = tape.op(op, tape.input("x", _FIVE), tape.constant(axes, np.int64), keepdims=keep)
            dims = [1 if a in axes or a - 5 in axes else d for a, d in enumerate(_FIVE)]
            tape.output(made, dims if keep else _FIVE[:3])
            yield tape.case(f"five-{op}-{'-'.join(map(str, axes))}-keep{keep}")
    for op, rest, dims in (
        ("CumSum", 1, _FIVE),
        ("TopK", [2], (*_FIVE[:-1], 2)),
        ("Gather", [0, 1], (2, *_FIVE[1:])),
        ("Tile", [1, 1, 1, 2, 1], (1, 2, 3, 8, 16)),
        ("ArgMax", None, _FIVE),
        ("ArgMin", None, _FIVE),
        ("SimplifiedLayerNormalization", None, _FIVE),
    ):
        tape = Tape()
        x = tape.input("x", (2, *_FIVE[1:]) if op == "Gather" else _FIVE)
        given = [] if rest is None else [tape.constant(rest, np.int64)]
        if op[0] == "S":
            given = [tape.normal(16)]
        tape.output(tape.op(op, x, *given, outputs=1 + (op == "TopK")), dims, "int64" if op[:3] == "Arg" else "float32")
        yield tape.case(f"five-{op}{'-two' if op == 'Gather' else ''}")


def _same(op: str, inputs: int, kind: str) -> Case:
    """All inputs and the output of one shape; integers of 8 and 16 bits are quantized."""
    tape, quantized = Tape(), kind in LEVELS
    given = [tape.input(name, _FIVE, "float32" if quantized else kind) for name in "xz"[:inputs]]
    given = [tape.quantized(name, kind) for name in given] if quantized else given
    made = tape.op(op, *given)
    compared = op in COMPARISONS
    if quantized and not compared:
        made = tape.quantized(made, kind)
    tape.output(made, _FIVE, "bool" if compared else "float32" if quantized else kind)
    return tape.case(f"five-{op}-same-{kind}")


def _deep(op: str, inputs: int, dtype: str, result: str = "", dims: tuple[int, ...] = _FIVE) -> Case:
    """An elementwise operator; a second operand has one row."""
    tape = Tape()
    given = [tape.input("x", dims, dtype), *(tape.input("z", (*dims[:-1], 1), dtype) for _ in range(inputs - 1))]
    tape.output(tape.op(op, *given), dims, result or dtype)
    return tape.case(f"{'five' if dims == _FIVE else 'four'}-{op}-{dtype}")


def _products() -> Iterator[Case]:
    for rank in (3, 4, 5):
        for dtype in ("float32", "float16"):
            for second in ("matrix", "matrices", "constant-matrix", "constant-matrices"):
                tape, dims = Tape(), (2, 2, 3, 6, 24)[-rank:]
                shape = (24, 16) if second.endswith("matrix") else (*dims[:-2], 24, 16)
                z = tape.normal(*shape, dtype=dtype) if "constant" in second else tape.input("z", shape, dtype)
                tape.output(tape.op("MatMul", tape.input("x", dims, dtype), z), (*dims[:-1], 16), dtype)
                yield tape.case(f"ranks-MatMul-{rank}-{dtype}-{second}")
    for kind in ("uint8", "uint16", "int16"):
        for transposed in (0, 1):
            tape = Tape()
            x = tape.quantized(tape.input("x", (6, 24)), kind)
            z = tape.quantized(tape.input("z", (16, 24) if transposed else (24, 16)), kind)
            tape.output(tape.quantized(tape.op("Gemm", x, z, transB=transposed), kind, 40), (6, 16))
            yield tape.case(f"runtime-Gemm-{kind}-transB{transposed}")


def _convolutions() -> Iterator[Case]:
    for op in ("Conv", "ConvTranspose"):
        for axes in (1, 2, 3):
            for name, group, stride, dilation in (
                ("groups", 2, 1, 1),
                ("depthwise", 8, 1, 1),
                ("strides", 1, 2, 1),
                ("dilations", 1, 1, 2),
            ):
                tape = Tape()
                x, w = tape.input("x", (1, 8, *[9] * axes)), tape.normal(8, 8 // group, *[3] * axes)
                reach = 2 * dilation + 1
                side = (9 - reach) // stride + 1 if op == "Conv" else 8 * stride + reach
                shape = {"group": group, "strides": [stride] * axes, "dilations": [dilation] * axes}
                tape.output(tape.op(op, x, w, **shape), (1, 8, *[side] * axes))
                yield tape.case(f"shaped-{op}-{axes}d-{name}")


def _resizes() -> Iterator[Case]:
    for kind in ("float32", "uint8"):
        for where in _MODES:
            for mode in ("linear", "cubic"):
                yield _resize(kind, where, {"mode": mode})
            for rounding in _ROUNDINGS:
                yield _resize(kind, where, {"mode": "nearest", "nearest_mode": rounding})


def _resize(kind: str, where: str, attributes: dict[str, str]) -> Case:
    """Twice as large; uint8 is quantized."""
    tape = Tape()
    x = tape.input("x", (1, 4, 6, 6))
    x = tape.quantized(x, kind) if kind == "uint8" else x
    made = tape.op("Resize", x, "", tape.constant([1, 1, 2, 2]), coordinate_transformation_mode=where, **attributes)
    tape.output(tape.quantized(made, kind) if kind == "uint8" else made, (1, 4, 12, 12))
    return tape.case(f"resized-{'-'.join(attributes.values())}-{where}-{kind}")
