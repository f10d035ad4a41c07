"""Which operators take which element types: every operator in every type that ONNX lets it have.

Three of the types are quantized: a float operator between QuantizeLinear and DequantizeLinear.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.lint.tape import ACTIVATIONS, TYPES, Case, H, S, Tape, X, may_have

PLAIN = ("float32", "float16", "int32", "int64", "uint8", "int8", "bool")
ONE = (
    "Relu Sigmoid Tanh Exp Sqrt Neg Abs Log Sin Cos Tan Atan Floor Ceil Round Sign Softplus HardSwish HardSigmoid "
    "Elu LeakyRelu Mish Reciprocal Gelu Selu ThresholdedRelu Softmax LogSoftmax Identity Clip LpNormalization"
).split()
COMPARISONS = "Equal Less Greater LessOrEqual GreaterOrEqual".split()
TWO = [*"Add Sub Mul Div Pow Min Max Mod Sum Mean".split(), *COMPARISONS]
_IMAGE = (1, 8, 16, 16)
_HEADS = (1, 4, S, 16)
_BOOL = "bool"


@dataclass(frozen=True)
class Form:
    """An operator and what it reads besides a type.

    Attributes:
        op_type: operator.
        data: dims of the inputs that have the type.
        output: dims.
        weights: dims of constants that have the type.
        rest: constants of types of their own.
        dtype: of the output where it is not the type.
        attributes: of the node.
        opset: of the model.
        outputs: how many; the first is looked at.
        name: where the operator has several forms.
    """

    op_type: str
    data: Sequence[Sequence[int]] = (X,)
    output: Sequence[int] = X
    weights: Sequence[Sequence[int]] = ()
    rest: Sequence[Callable[[Tape], str]] = ()
    dtype: str = ""
    attributes: dict[str, object] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    name: str = ""

    def case(self, dtype: str, *, quantized: bool, prefix: str = "typed") -> Case:
        tape, plain = Tape(self.opset), "float32" if quantized else dtype
        given = [tape.input(f"x{place}", dims, plain) for place, dims in enumerate(self.data)]
        given += [tape.normal(*dims, dtype=plain) for dims in self.weights]
        if quantized:
            given = [tape.quantized(name, dtype) for name in given]
        made = tape.op(
            self.op_type, *given, *(make(tape) for make in self.rest), outputs=self.outputs, **self.attributes
        )
        if quantized and not self.dtype:
            made = tape.quantized(made, dtype)
        tape.output(made, self.output, self.dtype or plain)
        return tape.case(f"{prefix}-{self.name or self.op_type}{'-quantized' if quantized else ''}-{dtype}")


def _ints(*values: int) -> Callable[[Tape], str]:
    return lambda tape: tape.constant(values, np.int64)


def _index(*dims: int) -> Callable[[Tape], str]:
    return lambda tape: tape.constant(np.arange(np.prod(dims)).reshape(dims) % 4, np.int64)


def _floats(*values: float) -> Callable[[Tape], str]:
    return lambda tape: tape.constant(values)


def forms() -> Iterator[Form]:
    """Operators and what they read besides a type."""
    for op in ONE:
        yield Form(op)
    for op in TWO:
        yield Form(op, (X, X), dtype=_BOOL if op in COMPARISONS else "")
    yield Form("PRelu", weights=[(H,)])
    yield Form("IsNaN", dtype=_BOOL)
    yield Form("Reshape", output=(1, S, 4, 16), rest=[_ints(1, S, 4, 16)])
    yield Form("Transpose", output=(1, H, S), attributes={"perm": [0, 2, 1]})
    yield Form("Concat", (X, X), (1, 2 * S, H), attributes={"axis": 1})
    yield Form("Slice", output=(1, S, 16), rest=[_ints(8), _ints(24), _ints(2)])
    yield Form("Split", output=(1, S, H), attributes={"axis": 2, "num_outputs": 1})
    yield Form("Expand", [(1, 1, H)], rest=[_ints(1, S, H)])
    yield Form("Tile", output=(1, 2 * S, H), rest=[_ints(1, 2, 1)])
    yield Form("Pad", [_IMAGE], (1, 8, 18, 18), rest=[_ints(0, 0, 1, 1, 0, 0, 1, 1)])
    yield Form("Squeeze", [(1, S, 1, H)], rest=[_ints(2)])
    yield Form("Unsqueeze", output=(1, S, 1, H), rest=[_ints(2)])
    yield Form("Flatten", [(2, S, H)], (2, S * H), attributes={"axis": 1})
    yield Form("Gather", output=(1, 3, H), rest=[_index(3)], attributes={"axis": 1})
    yield Form("GatherND", [(4, 5, 6)], (2, 6), rest=[_index(2, 2)])
    yield Form("GatherElements", [(8, 16)], (4, 16), rest=[_index(4, 16)], attributes={"axis": 0})
    for op in "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceLogSumExp".split():
        yield Form(op, output=(1, S, 1), rest=[_ints(-1)])
    for op in ("ArgMax", "ArgMin"):
        yield Form(op, output=(1, S, 1), dtype="int64", attributes={"axis": -1})
    yield Form("TopK", [(1, H)], (1, 4), rest=[_ints(4)], attributes={"axis": -1}, outputs=2)
    yield Form("CumSum", rest=[lambda tape: tape.constant(1, np.int64)])
    for op, dims, moved in (
        ("DepthToSpace", (1, 16, 4, 4), (1, 4, 8, 8)),
        ("SpaceToDepth", (1, 4, 8, 8), (1, 16, 4, 4)),
    ):
        yield Form(op, [dims], moved, attributes={"blocksize": 2})
    windows = {"kernel_shape": [2, 2], "strides": [2, 2]}
    for op in ("MaxPool", "AveragePool", "LpPool"):
        yield Form(op, [_IMAGE], (1, 8, 8, 8), attributes=windows)
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield Form(op, [_IMAGE], (1, 8, 1, 1))
    for mode in ("nearest", "linear", "cubic"):
        scales = [lambda tape: "", _floats(1, 1, 2, 2)]
        yield Form("Resize", [_IMAGE], (1, 8, 32, 32), rest=scales, attributes={"mode": mode}, name=f"Resize-{mode}")
    yield Form("ConvTranspose", [(1, 8, 8, 8)], (1, 4, 16, 16), [(8, 4, 2, 2)], attributes={"strides": [2, 2]})
    yield Form("InstanceNormalization", [_IMAGE], _IMAGE, [(8,), (8,)])
    yield Form("GroupNormalization", [_IMAGE], _IMAGE, [(8,), (8,)], attributes={"num_groups": 2})
    yield Form("LRN", [_IMAGE], _IMAGE, attributes={"size": 3})
    yield Form("MatMul", [_HEADS, (1, 4, 16, 8)], (1, 4, S, 8))
    yield Form("Gemm", [(S, H)], (S, 32), [(H, 32), (32,)])
    yield Form("Einsum", [_HEADS, _HEADS], (1, 4, S, S), attributes={"equation": "bhid,bhjd->bhij"})
    yield Form("Attention", [_HEADS] * 3, _HEADS, opset=23)
    yield Form(
        "RotaryEmbedding",
        [_HEADS],
        _HEADS,
        [(16, 8), (16, 8)],
        [lambda tape: tape.constant(np.arange(S)[None], np.int64)],
        opset=23,
    )


def typed() -> Iterator[Case]:
    """All of them."""
    for form in forms():
        for dtype in PLAIN:
            if may_have(form.op_type, dtype, form.opset):
                yield form.case(dtype, quantized=False)
        if may_have(form.op_type, "float32", form.opset):
            for dtype in ACTIVATIONS:
                yield form.case(dtype, quantized=True)
    for source in PLAIN:
        for to in PLAIN:
            if source != to:
                yield _cast(source, to)
    for dtype in PLAIN:
        yield _where(dtype)
        yield _scatter("ScatterND", dtype)
        yield _scatter("ScatterElements", dtype)


def _cast(source: str, to: str) -> Case:
    tape = Tape()
    tape.output(tape.op("Cast", tape.input("x", X, source), to=TYPES[to]), X, to)
    return tape.case(f"typed-Cast-{source}-{to}")


def _where(dtype: str) -> Case:
    tape = Tape()
    pair = [tape.input(name, X, dtype) for name in "xy"]
    tape.output(tape.op("Where", tape.input("c", X, _BOOL), *pair), X, dtype)
    return tape.case(f"typed-Where-{dtype}")


def _scatter(op: str, dtype: str) -> Case:
    tape = Tape()
    x, updates = tape.input("x", (16, 32), dtype), tape.input("u", (2, 32), dtype)
    index = np.array([[3], [5]]) if op == "ScatterND" else np.arange(64).reshape(2, 32) // 32
    axes = {} if op == "ScatterND" else {"axis": 0}
    tape.output(tape.op(op, x, tape.constant(index, np.int64), updates, **axes), (16, 32), dtype)
    return tape.case(f"typed-{op}-{dtype}")
