"""A small builder over onnx_ir: operators by name, weights bound lazily to the checkpoint."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from hvlc.errors import UserError
from hvlc.graphs.editing import bypass
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.lazy import Computed, Expression, LazyTensor
from hvlc.weights.prequantized.reading import is_stored, read_parameter

OPSET = 23
IR_VERSION = 11
#: Name of the node that makes embeddings of tokens, before visual tokens join them.
EMBEDDED_TOKENS = "embed_tokens"
#: Last part of the names of nodes that cut a decoder's sequence to its last position.
LAST_POSITION = "last_position"
#: Inputs of a decoder that gets its lengths from the host: position of the last token that runs, int32 `[1, 1]`, and
#: bound of the sequence, int32 `[1]`.
LAST_INDEX, MOST_TOKENS = "past_seq_len", "total_seq_len"
#: Input of the head of a prompt's chunk: the row of the last token that is not padding, int32 `[1]`.
LAST_ROW = "last_row"
#: Input of a decoder that is given positions in three axes, time, row and column, int64 `[3, batch, sequence]`.
POSITIONS = "position_ids"
MICROSOFT = "com.microsoft"


class GraphBuilder:
    """Builder of one graph, node by node.

    Weights become lazy initializers under their dotted parameter name, so that a recipe, a plan
    and a report can speak of them as the checkpoint does.
    """

    def __init__(self, name: str, checkpoint: Checkpoint | None = None, *, subgraph: bool = False) -> None:
        opsets = None if subgraph else {"": OPSET, MICROSOFT: 1}
        self._graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name=name)
        self._tape = tape.Tape(self._graph)
        self._prefix = f"{name}/" if subgraph else ""
        self._checkpoint = checkpoint
        self._told = {problem.cause for problem in checkpoint.problems} if checkpoint else set()
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
        given = {key: _attribute(key, value) for key, value in attributes.items()}
        self._graph.append(ir.node(op_type, list(inputs), given or None, domain=domain, outputs=values, name=name))
        return values

    def constant(self, array: np.ndarray, name: str | None = None) -> ir.Value:
        """A small constant; equal anonymous ones are shared."""
        key = (array.tobytes(), array.dtype.str, array.shape)
        if name is None and key in self._constants:
            return self._constants[key]
        value = self._tape.initializer(ir.Tensor(array, name=name or f"{self._prefix}const_{len(self._constants)}"))
        if name is None:
            self._constants[key] = value
        return value

    def ints(self, *values: int) -> ir.Value:
        """A 1-D int64 constant."""
        return self.constant(np.array(values, np.int64))

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores this parameter."""
        return self._checkpoint is not None and is_stored(self._checkpoint, name)

    def has_zeros(self, name: str) -> bool:
        """Whether the checkpoint stores this parameter as a vector of zeros."""
        found = read_parameter(self._checkpoint, name) if self._checkpoint else None
        if found is None or len(found.shape) != 1:
            return False
        return not np.any(found.box((slice(0, found.shape[0]),)))

    def note(self, text: str) -> None:
        """Tell the plan what was decided about the checkpoint."""
        if self._checkpoint is not None and text not in self._checkpoint.notes:
            self._checkpoint.notes.append(text)

    def stored_size(self, name: str, axis: int, otherwise: int) -> int:
        """One dimension as the checkpoint has it, for sizes that no config gives; `otherwise` where it has none.

        Raises:
            UserError: it cannot be read.
        """
        found = read_parameter(self._checkpoint, name) if self._checkpoint else None
        return found.shape[axis] if found is not None and len(found.shape) > axis else otherwise

    def weight(self, name: str, shape: tuple[int, ...], *, transpose: bool = False) -> ir.Value:
        """A float32 initializer bound to a parameter of the checkpoint.

        A parameter that is missing, of another shape or of integers is added to the checkpoint's problems, and the
        graph goes on with zeros of the expected shape: a caller that sees the problems learns all of them at once.

        Args:
            name: dotted parameter name, also the initializer's.
            shape: the parameter's expected dimensions, as stored.
            transpose: whether the graph wants the two axes swapped.
        """
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        expression = self.parameter(name, shape)
        return self.initializer(name, expression.transpose() if transpose else expression)

    def parameter(self, name: str, shape: tuple[int, ...] | None = None) -> Expression:
        """A parameter of the checkpoint as float32; problems are collected as in `weight` when a shape is given.

        Raises:
            UserError: it is missing or cannot be read, and no shape says how to go on.
        """
        try:
            return self._read(name, shape)
        except UserError as problem:
            if shape is None or self._checkpoint is None:
                raise
            if problem.cause not in self._told:
                self._told.add(problem.cause)
                self._checkpoint.problems.append(problem)
        return Computed(partial(np.zeros, shape, np.float32), (), shape, np.dtype(np.float32))

    def _read(self, name: str, shape: tuple[int, ...] | None) -> Expression:
        """A parameter as float32.

        Raises:
            UserError: it is missing, of integers or of another shape.
        """
        found = read_parameter(self._checkpoint, name) if self._checkpoint else None
        if found is None:
            raise UserError("checkpoint.weights", f"parameter {name} is missing", "save the whole model again")
        if found.dtype.kind in "iub":  # levels of some quantized format, whose scales nobody would apply
            cause, fix = f"{name} is {found.dtype}, a float is expected", "save it as float32, float16 or bfloat16"
            raise UserError("checkpoint.dtype", cause, fix)
        if shape not in (None, found.shape):
            cause = f"{name} is {list(found.shape)}, the config asks for {list(shape or ())}"
            raise UserError("checkpoint.weights", cause, "match config and weights")
        return found.cast(np.float32)

    def computed(
        self, name: str, shape: tuple[int, ...], function: Callable[..., np.ndarray], *parameters: Expression
    ) -> ir.Value:
        """A float32 initializer that is computed from parameters when it is written.

        Args:
            name: initializer name.
            shape: dimensions of the result.
            function: gets the parameters as float32 arrays.
            parameters: what it needs.
        """
        return self.initializer(name, Computed(function, parameters, shape, np.dtype(np.float32)))

    def initializer(self, name: str, expression: Expression) -> ir.Value:
        """An initializer whose values are a lazy expression."""
        return self._tape.initializer(LazyTensor(name, expression))

    def linear(self, x: ir.Value, path: str, in_features: int, out_features: int, *, bias: bool = True) -> ir.Value:
        """`x @ W.T (+ b)` of the torch Linear at `path`; the bias is added when the checkpoint has one.

        Args:
            x: float `[..., in_features]`.
            path: dotted name of the layer.
            in_features: columns of the weight.
            out_features: rows of the weight.
            bias: False leaves a stored bias out.
        """
        weight = self.weight(f"{path}.weight", (out_features, in_features), transpose=True)
        y = self.op("MatMul", x, weight, name=path)
        if bias and self.has(f"{path}.bias"):
            y = self.op("Add", y, self.weight(f"{path}.bias", (out_features,)), name=f"{path}.bias_add")
        return y

    @property
    def graph(self) -> ir.Graph:
        """The graph under construction."""
        return self._graph

    def model(self) -> ir.Model:
        """The finished model."""
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="hvlc")


def _attribute(name: str, value: Any) -> Any:
    """Integers as the attribute that they are; everything else as it is, for onnx_ir to find its type.

    onnx_ir first asks whether a list is a graph, a tensor or a type, by protocols: in Python 3.11 that takes longer
    than making the node.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value):
        return ir.AttrInt64s(name, value)
    return value


def keep_all_logits(graph: ir.Graph) -> int:
    """Take the cuts to the last position out of a decoder, of a bundle or of a package; returns how many there were."""
    cuts = [n for n in graph if n.op_type == "Slice" and str(n.name).rpartition(".")[2] == LAST_POSITION]
    for node in cuts:
        source = node.inputs[0]
        if source is not None:
            bypass(node, source)
    for output in graph.outputs if cuts else ():
        if output.name == "logits" and output.shape is not None:
            output.shape = ir.Shape([output.shape[0], "sequence", output.shape[2]])
    return len(cuts)
