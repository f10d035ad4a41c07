"""Graphs as text, one statement an operator, in Python's syntax: rows of `tables/` are written so.

    float32[1,8,64] = Add(float32[1,8,64], float32([0.5]))

- `float32[1,8,64]` as an argument is an input of the graph, named after its place (`x0`); `x := float32[1,8,64]` or a
  statement `x = float32[1,8,64]` names it. A word among the dimensions is a symbol; `bool[()]` is a scalar.
- `float32[1,8,64] = VALUE` is an output. A name on the left keeps a value, and `_` one that is not read:
  `float32[1,4], _ = TopK(...)`.
- `int64([1, 8])`, `int64(1)` and `float16(normal[64])` are constants; see `_ARRAYS` for what is counted or drawn.
- `q_uint8` for a type is float32 that goes through QuantizeLinear and DequantizeLinear: as an input, an output, a
  constant, or any value, `q_uint8(VALUE, reach, zero, scale)`. Around a value, other types change nothing.
- `none` is an input that is left out. Other calls are operators, `com.microsoft.Gelu(...)` of a domain; keywords are
  attributes, where a type is its number.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.lint.tape import NARROW, TYPES, Case, Tape

#: Arrays that are not written out: how a tape makes one of some dimensions.
_ARRAYS: dict[str, Callable[[Tape, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda tape, dims: tape.random.standard_normal(dims) * 0.5,
    "standard": lambda tape, dims: tape.random.standard_normal(dims),
    "uniform": lambda tape, dims: tape.random.random(dims),
    "bytes": lambda tape, dims: tape.random.integers(0, 256, dims),
    "small": lambda tape, dims: tape.random.integers(1, 4, dims),
    "nibbles": lambda tape, dims: tape.random.integers(-7, 8, dims),
    "levels": lambda tape, dims: tape.random.integers(-100, 101, dims),
    "counted": lambda tape, dims: np.arange(int(np.prod(dims))).reshape(dims),
    "lower": lambda tape, dims: np.tri(*dims),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
_KINDS = {*TYPES, *NARROW, *(f"q_{dtype}" for dtype in ("uint8", "int8", "uint16", "int16"))}


def graph(name: str, text: str, opset: int = 21) -> Case:
    """The model of a text.

    Args:
        name: of the case.
        text: statements, separated by newlines or semicolons.
        opset: of the model.

    Raises:
        ValueError: not in this notation; the message has the part.
    """
    reader = _Reader(Tape(opset))
    for statement in ast.parse(text).body:
        reader.state(statement)
    return reader.tape.case(name)


def plain(kind: str) -> str:
    """Type that inputs and outputs of a kind have in the graph."""
    return "float32" if kind.startswith("q_") else kind


def operator_of(text: str) -> str:
    """Name of the operator whose value the last statement takes."""
    value = ast.parse(text).body[-1].value
    while isinstance(value, ast.Call) and _word(value.func) in _KINDS:
        value = value.args[0]
    return _path(value.func)[-1]


class _Reader:
    """Puts what statements say on a tape.

    Attributes:
        tape: takes it.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._values = {"none": ""}

    def state(self, statement: ast.stmt) -> None:
        """Take one statement."""
        if not isinstance(statement, ast.Assign):
            raise _odd(statement)
        target, value = statement.targets[0], statement.value
        if isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._bind(one.id, other)
        elif isinstance(target, ast.Name):
            self._bind(target.id, value)
        else:
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            first = self._value(value, outputs=len(targets))
            for place, one in enumerate(targets):
                self._keep(one, f"{first}_{place}" if place else first)

    def _bind(self, name: str, node: ast.expr) -> None:
        """Give a value a name; an input of the graph has it there too."""
        self._values[name] = self._input(node, name) if _is_input(node) else self._value(node)

    def _keep(self, target: ast.expr, value: str) -> None:
        """Give a value a name, or make it an output."""
        if isinstance(target, ast.Name):
            self._values[target.id] = value
            return
        kind, dims = _typed(target)
        self.tape.output(self._as(kind, value), dims, plain(kind))

    def _as(self, kind: str, value: str, *how: Any, **named: Any) -> str:
        return self.tape.quantized(value, kind[2:], *how, **named) if kind.startswith("q_") else value

    def _input(self, node: ast.expr, name: str) -> str:
        kind, dims = _typed(node)
        return self._as(kind, self.tape.input(name, dims, plain(kind)))

    def _value(self, node: ast.expr, place: int = 0, outputs: int = 1) -> str:
        """Name of the value of an expression.

        Args:
            node: the expression.
            place: of it among the arguments of an operator.
            outputs: how many an operator has.
        """
        if isinstance(node, ast.Name):
            return self._values[node.id]
        if isinstance(node, ast.NamedExpr):
            self._bind(node.target.id, node.value)
            return self._values[node.target.id]
        if _is_input(node):
            return self._input(node, f"x{place}")
        if not isinstance(node, ast.Call):
            raise _odd(node)
        if _word(node.func) in _KINDS:
            return self._kind(node)
        *domain, op_type = _path(node.func)
        given = [self._value(argument, at) for at, argument in enumerate(node.args)]
        attributes = {keyword.arg: _attribute(keyword.value) for keyword in node.keywords}
        return self.tape.op(op_type, *given, domain=".".join(domain), outputs=outputs, **attributes)

    def _kind(self, call: ast.Call) -> str:
        """A constant, or a value that is quantized if the kind is."""
        kind, (first, *rest) = _word(call.func), call.args
        if _is_array(first):
            dtype = plain(kind)
            value = self.tape.constant(self._array(first), NARROW.get(dtype, dtype))
        else:
            value = self._value(first)
        how = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        return self._as(kind, value, *(ast.literal_eval(argument) for argument in rest), **how)

    def _array(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp):
            return _ARITHMETIC[type(node.op)](self._array(node.left), self._array(node.right))
        if isinstance(node, ast.Subscript):
            return _ARRAYS[_word(node.value)](self.tape, _dims(node.slice))
        if isinstance(node, ast.List):
            return [self._array(element) for element in node.elts]
        return ast.literal_eval(node)


def _is_array(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_array(node.left)
    if isinstance(node, ast.Subscript):
        return _word(node.value) in _ARRAYS
    return isinstance(node, ast.Constant | ast.List | ast.UnaryOp)


def _is_input(node: ast.expr) -> bool:
    return isinstance(node, ast.Subscript) and _word(node.value) in _KINDS


def _typed(node: ast.expr) -> tuple[str, tuple[int | str, ...]]:
    if not _is_input(node):
        raise _odd(node)
    return _word(node.value), _dims(node.slice)


def _dims(node: ast.expr) -> tuple[int | str, ...]:
    """Dimensions between brackets; a word is a symbol."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return tuple(part.id if isinstance(part, ast.Name) else ast.literal_eval(part) for part in parts)


def _attribute(node: ast.expr) -> Any:
    return TYPES[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def _word(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _path(node: ast.expr) -> list[str]:
    """Words of a dotted name."""
    if isinstance(node, ast.Attribute):
        return [*_path(node.value), node.attr]
    if not isinstance(node, ast.Name):
        raise _odd(node)
    return [node.id]


def _odd(node: ast.AST) -> ValueError:
    return ValueError(f"not in the notation of tests/lint/notation.py: {ast.unparse(node)}")
