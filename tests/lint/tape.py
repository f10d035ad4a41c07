"""Builds small models without randomness: a tape of nodes, and one-operator models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "float64": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16,
    "uint64": TensorProto.UINT64,
    "uint32": TensorProto.UINT32,
}
LEVELS = {"uint8": (0, 255, 128), "int8": (-128, 127, 0), "uint16": (0, 65535, 32768), "int16": (-32768, 32767, 0)}
NARROW = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
ACTIVATIONS = ("uint8", "uint16", "int16")
S, K, N, H = 8, 128, 64, 64  # sequence, input and output features of products, width of the rest
Dims = Sequence[int | str]
X = (1, S, H)


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: unique.
        model: the graph, weights inside.
        held_out: whether no rule was written from this case.
    """

    name: str
    model: onnx.ModelProto
    held_out: bool = False


class Tape:
    """Builds one graph; every node has a name."""

    def __init__(self, opset: int = 21) -> None:
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self.random = np.random.default_rng(0)

    def input(self, name: str, dims: Dims, dtype: str = "float32") -> str:
        self._inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], list(dims)))
        return name

    def output(self, name: str, dims: Dims | None, dtype: str = "float32") -> None:
        self._outputs.append(helper.make_tensor_value_info(name, TYPES[dtype], None if dims is None else list(dims)))

    def constant(self, values: object, dtype: object = np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def normal(self, *dims: int, dtype: str = "float32") -> str:
        return self.constant(self.random.standard_normal(dims) * 0.5, dtype)

    def op(self, op_type: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: object) -> str:
        """A node; its first output's name, further outputs are named `FIRST_1` and so on."""
        first = f"v{len(self._nodes)}"
        names = [first, *(f"{first}_{i}" for i in range(1, outputs))]
        name = f"{op_type}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, names, name=name, domain=domain, **attributes))
        return first

    def quantized(self, x: str, dtype: str, reach: float = 8.0, zero: int | None = None, scale: float = 0.0) -> str:
        """Quantize and dequantize a value that lies within `-reach / 2` and `reach / 2`."""
        low, high, middle = LEVELS[dtype]
        step = self.constant(scale or reach / (high - low))
        point = self.constant(middle if zero is None else zero, dtype)
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, step, point), step, point)

    def case(self, name: str) -> Case:
        graph = helper.make_graph(self._nodes, "g", self._inputs, self._outputs, self._constants)
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(MICROSOFT, 1)]
        return Case(name, helper.make_model(graph, opset_imports=opsets, ir_version=10 if self._opset < 23 else 11))


def one(
    name: str,
    op_type: str,
    inputs: Sequence[tuple[Dims, str] | Callable[[Tape], str]],
    output: Dims,
    dtype: str = "",
    opset: int = 21,
    domain: str = "",
    outputs: int = 1,
    **attributes: object,
) -> Case:
    """One operator: inputs are dims with a dtype, or constants that a function adds."""
    tape = Tape(opset)
    first = next((kind for kind in (i[1] for i in inputs if isinstance(i, tuple))), "float32")
    given = [
        tape.input(f"x{place}", made[0], made[1]) if isinstance(made, tuple) else made(tape)
        for place, made in enumerate(inputs)
    ]
    tape.output(tape.op(op_type, *given, domain=domain, outputs=outputs, **attributes), output, dtype or first)
    return tape.case(name)


def ints(*values: int) -> Callable[[Tape], str]:
    return lambda tape: tape.constant(values, np.int64)


def scalar(value: float, dtype: str = "float32") -> Callable[[Tape], str]:
    return lambda tape: tape.constant(value, dtype)


def floats(*dims: int, dtype: str = "float32") -> Callable[[Tape], str]:
    return lambda tape: tape.normal(*dims, dtype=dtype)


def absent(tape: Tape) -> str:
    return ""


def may_have(op_type: str, dtype: str, opset: int = 21) -> bool:
    """Whether ONNX lets the first input of an operator have a type."""
    schema = onnx.defs.get_schema(op_type, opset, "")
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    name = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    return f"tensor({name})" in allowed.get(schema.inputs[0].type_str, [])
