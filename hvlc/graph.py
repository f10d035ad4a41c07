"""A small builder over onnx_ir: operators by name, weights bound lazily to the checkpoint."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from hvlc.bundle import lazy_tensor
from hvlc.checkpoint import Checkpoint, StoredTensor
from hvlc.errors import UserError

OPSET = 23
IR_VERSION = 11
MICROSOFT = "com.microsoft"


class GraphBuilder:
    """Builds one graph, node by node.

    Weights become lazy initializers under their dotted parameter name, so that a recipe, a plan
    and a report can speak of them as the checkpoint does.
    """

    def __init__(self, name: str, checkpoint: Checkpoint | None = None, *, subgraph: bool = False) -> None:
        opsets = None if subgraph else {"": OPSET, MICROSOFT: 1}
        self._graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name=name)
        self._tape = tape.Tape(self._graph)
        self._prefix = f"{name}/" if subgraph else ""
        self._checkpoint = checkpoint
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Iterable[Any]) -> ir.Value:
        """A graph input."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Iterable[Any]) -> None:
        """Name `value` and make it a graph output."""
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self._graph.outputs.append(value)

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", name: str | None = None, **attributes: Any
    ) -> ir.Value:
        """Append a node with one output."""
        return self.ops(op_type, inputs, 1, domain=domain, name=name, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs; node and values get names that are unique across subgraphs."""
        name = f"{self._prefix}{name or f'{op_type}_{len(self._graph)}'}"
        values = [ir.Value(name=f"{name}:{position}") for position in range(outputs)]
        self._graph.append(ir.node(op_type, list(inputs), attributes or None, domain=domain, outputs=values, name=name))
        return values

    def constant(self, array: np.ndarray, name: str | None = None) -> ir.Value:
        """A small constant; equal anonymous ones are shared."""
        key = (array.tobytes(), array.dtype.str, array.shape)
        if name is None and key in self._constants:
            return self._constants[key]
        value = self._tape.initializer(ir.tensor(array, name=name or f"{self._prefix}const_{len(self._constants)}"))
        if name is None:
            self._constants[key] = value
        return value

    def ints(self, *values: int) -> ir.Value:
        """A 1-D int64 constant."""
        return self.constant(np.array(values, np.int64))

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores this parameter."""
        return self._checkpoint is not None and name in self._checkpoint.tensors

    def weight(
        self, name: str, shape: tuple[int, ...], *, transpose: bool = False, storage: str | None = None
    ) -> ir.Value:
        """A float32 initializer bound to a parameter of the checkpoint.

        Args:
            name: dotted parameter name, also the initializer's.
            shape: the parameter's expected dimensions, as stored.
            transpose: whether the graph wants the two axes swapped.
            storage: identity of the bytes when another component shares them.

        Raises:
            UserError: the parameter is missing or has another shape.
        """
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        stored = self.stored(name)
        if stored.shape != shape:
            raise UserError(
                "checkpoint.weights",
                f"{name} is {list(stored.shape)}, the config asks for {list(shape)}",
                "match config and weights",
            )

        def evaluate() -> np.ndarray:
            values = stored.read().astype(np.float32)
            return values.T if transpose else values

        return self.computed(name, shape[::-1] if transpose else shape, evaluate, storage)

    def stored(self, name: str) -> StoredTensor:
        """A parameter of the checkpoint.

        Raises:
            UserError: it is missing.
        """
        found = self._checkpoint.tensors.get(name) if self._checkpoint else None
        if found is None:
            raise UserError("checkpoint.weights", f"parameter {name} is missing", "save the whole model again")
        return found

    def computed(
        self, name: str, shape: tuple[int, ...], evaluate: Callable[[], np.ndarray], storage: str | None = None
    ) -> ir.Value:
        """A float32 initializer that is computed when it is written."""
        return self._tape.initializer(lazy_tensor(name, ir.DataType.FLOAT, shape, evaluate, storage))

    def linear(self, x: ir.Value, path: str, in_features: int, out_features: int) -> ir.Value:
        """`x @ W.T (+ b)` of the torch Linear at `path`; the bias is added when the checkpoint has one."""
        weight = self.weight(f"{path}.weight", (out_features, in_features), transpose=True)
        y = self.op("MatMul", x, weight, name=path)
        if self.has(f"{path}.bias"):
            y = self.op("Add", y, self.weight(f"{path}.bias", (out_features,)), name=f"{path}.bias_add")
        return y

    @property
    def graph(self) -> ir.Graph:
        """The graph under construction."""
        return self._graph

    def model(self) -> ir.Model:
        """The finished model."""
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="hvlc")
