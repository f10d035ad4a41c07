"""Element types that users' models have and a phone's NPU mostly has not, under operators of every kind."""

from collections.abc import Iterator

from tests.lint.tape import TYPES, Case, Tape, X, may_have
from tests.lint.typed import forms

RARE = ("float64", "bfloat16", "uint64", "uint32", "int16", "uint16")
_OPERATORS = frozenset(
    "Relu Add Sub Mul Div Max Equal Greater Abs Identity Reshape Transpose Concat Slice Split Expand Tile Pad "
    "Unsqueeze Gather ReduceSum MatMul Softmax Sigmoid".split()
)


def elements() -> Iterator[Case]:
    """All of them."""
    for form in forms():
        for dtype in RARE:
            if form.op_type in _OPERATORS and may_have(form.op_type, dtype, form.opset):
                yield form.case(dtype, quantized=False, prefix="element")
    for dtype in RARE:
        for source, to in ((dtype, "float32"), ("float32", dtype)):
            tape = Tape()
            tape.output(tape.op("Cast", tape.input("x", X, source), to=TYPES[to]), X, to)
            yield tape.case(f"element-Cast-{source}-{to}")
