"""An operation as targets judge it: one operator with dtypes, shapes and quantization of its inputs and outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Grain(StrEnum):
    """Granularity of a scale; LPBQ is a block whose scale is a small integer times its channel's float."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK = "block"
    LPBQ = "lpbq"


@dataclass(frozen=True)
class Quantized:
    """Quantization of a value, read from the DequantizeLinear before it or the QuantizeLinear after it.

    Attributes:
        dtype: of the integers.
        grain: what shares a scale.
        scale: where there is one alone and the file has it.
        zero_point: where it is the same for all; 0 where none is given.
        gives_zero_point: whether the file names one.
        least_scale: smallest scale, where they were read; of LPBQ that of the channels.
        largest_factor: largest integer that LPBQ multiplies a channel's scale by, where they were read.
    """

    dtype: str
    grain: Grain = Grain.TENSOR
    scale: float | None = None
    zero_point: int | None = None
    gives_zero_point: bool = True
    least_scale: float | None = None
    largest_factor: int | None = None


@dataclass(frozen=True)
class Operand:
    """A value that an operator reads or writes; what the file does not tell is None.

    Attributes:
        dtype: element type, by ONNX's name in lower case ("float" is "float32").
        shape: an unknown or symbolic dimension is None.
        constant: whether it is known when the graph is compiled.
        quantized: how, when it is.
        largest: magnitude of a constant, where it was read.
        least: smallest element of an integer constant, where it was read.
        is_output: whether its integers, or the value itself where it is not quantized, are an output of the graph.
        spare_unit: whether it lies around a Transpose between two Reshapes and has a dimension of 1 that stays in
            place, so that it could do without.
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    constant: bool = False
    quantized: Quantized | None = None
    largest: float | None = None
    least: int | None = None
    is_output: bool = False
    spare_unit: bool = False


@dataclass(frozen=True)
class Operation:
    """One operator of a graph.

    Attributes:
        op_type: operator.
        domain: "" for ai.onnx.
        attributes: those given; graphs and tensors are left out.
        inputs: None where an optional one is absent.
        outputs: None where nobody wants it.
        readers: operators that read its outputs.
    """

    op_type: str
    domain: str = ""
    attributes: Mapping[str, object] | None = None
    inputs: tuple[Operand | None, ...] = ()
    outputs: tuple[Operand | None, ...] = ()
    readers: frozenset[str] = frozenset()

    @property
    def operator(self) -> str:
        """Name with the domain, as rules write it."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Everything that it reads and writes."""
        return tuple(operand for operand in (*self.inputs, *self.outputs) if operand is not None)
