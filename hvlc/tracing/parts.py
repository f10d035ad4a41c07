"""Parts of a package's graphs: cut at the residual stream, each with a session of its own.

The stream is found by the dotted names of the norms that read it. Norms that were fused with the addition before them
are taken apart there again, which changes nothing but where a part can end.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hvlc.errors import UserError
from hvlc.graphs.builder import MICROSOFT, keep_all_logits
from hvlc.graphs.layers import LayerName
from hvlc.graphs.skip_norm import PLAIN, take_apart
from hvlc.opening.cutting import load_ir, session_of
from hvlc.opening.sessions import PackageSession, session_options

_FLOAT = 32
_INT8_PRODUCTS = 4  # accuracy_level of MatMulNBits
_MATRIX = 2  # rank
_PATCHES = "patches"  # the node that drops the class token (hvlc.export.internvit)
_ENTRY = "residual.rotate"  # hvlc.passes.prepare.rotate_residual
_FIX = "bisect takes packages that hvlc build wrote, whose nodes are named like the checkpoint's modules"


@dataclass(frozen=True)
class Precision:
    """The fewest bits of anything that a part computes with; 32 is float.

    Attributes:
        weights: of an element of a matrix or table.
        activations: of values between operators, or of the inputs of products.
        cache: of keys and values.
    """

    weights: int = _FLOAT
    activations: int = _FLOAT
    cache: int = _FLOAT


@dataclass(frozen=True)
class Stream:
    """The residual stream of one stack of layers.

    Attributes:
        layers: for each layer, the value that enters it.
        end: the value that the last layer makes.
        norm: the output of that norm; None: the stream has none at its end.
        width: channels.
        uniform: whether the first layer's norm has the same gain for every channel, as in a rotated stream.
    """

    layers: tuple[ir.Value, ...]
    end: ir.Value
    norm: ir.Value | None
    width: int
    uniform: bool


@dataclass(frozen=True)
class Layers:
    """The layers whose norms are in a graph.

    Attributes:
        entries: the value of the residual stream that enters each, by its index.
        prefix: of the dotted names, before "layers".
        uniform: whether the first one's norm has the same gain for every channel.
        width: channels.
    """

    entries: Mapping[int, ir.Value]
    prefix: str
    uniform: bool
    width: int


class Graph:
    """One graph file of a package, opened for cutting; its weights stay where they are.

    Args:
        directory: the package.
        file: plain name of the graph's file.
        threads: of sessions; 0 lets onnxruntime choose.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, directory: Path, file: str, threads: int = 0) -> None:
        self.file, self._threads = file, threads
        self.model, self._folder = load_ir(directory / file)
        keep_all_logits(self.model.graph)

    @property
    def graph(self) -> ir.Graph:
        """Its nodes, with every position kept."""
        return self.model.graph

    @property
    def whole(self) -> "Part":
        """All of it."""
        return Part(self.file, self.model, self._folder, self._threads)

    def value(self, name: str) -> ir.Value:
        """An input or output of the graph, or the first output of a node of this name.

        Raises:
            UserError: there is none.
        """
        for value in (*self.graph.inputs, *self.graph.outputs):
            if value.name == name:
                return value
        for node in self.graph:
            if node.name == name:
                return node.outputs[0]
        raise UserError("bisect.boundaries", f"{self.file} has no {name}", _FIX)

    def inputs(self, *names: str) -> list[ir.Value]:
        """Inputs of the graph by name; those that it does not have are left out."""
        return [value for value in self.graph.inputs if value.name in names]

    def stream(self, norm: str, last: str) -> Stream:
        """The residual stream whose layers begin with a norm.

        Args:
            norm: its dotted name inside a layer, e.g. "input_layernorm".
            last: dotted name, beside `layers`, of the norm after the last layer; where a tower has none, its end is
                what the node reads that drops the class token.

        Raises:
            UserError: its norms cannot be found.
        """
        found = self.layers(norm)
        if sorted(found.entries) != list(range(len(found.entries))):
            cause = f"{self.file} has norms {norm} of layers {sorted(found.entries)}, not of 0, 1, ..."
            raise UserError("bisect.boundaries", cause, _FIX)
        prefix = found.prefix.removesuffix("encoder.")  # what follows a tower's layers stands beside its encoder
        entering = tuple(found.entries[index] for index in sorted(found.entries))
        if not self._has(f"{prefix}{last}") and self._has(f"{prefix}{_PATCHES}"):
            end = before_rounding(self._read_by(self.value(f"{prefix}{_PATCHES}")))
            return Stream(entering, end, None, found.width, found.uniform)
        final = self._entering(self._producer(self.value(f"{prefix}{last}")))
        normed = self.value(f"{prefix}{last}")  # after the norm was taken apart
        return Stream(entering, final, normed, found.width, found.uniform)

    def _has(self, name: str) -> bool:
        return any(node.name == name for node in self.graph)

    def _producer(self, value: ir.Value) -> ir.Node:
        node = value.producer()
        if node is None:
            raise UserError("bisect.boundaries", f"{self.file} has no one stack of layers", _FIX)
        return node

    def _read_by(self, value: ir.Value) -> ir.Value:
        """The first input of a value's node."""
        node = self._producer(value)
        read = node.inputs[0]
        if read is None:
            raise UserError("bisect.boundaries", f"{node.name} of {self.file} reads nothing", _FIX)
        return read

    def layers(self, norm: str) -> Layers:
        """The layers that begin in this graph.

        Args:
            norm: dotted name, inside a layer, of the norm that it begins with.

        Raises:
            UserError: there is none, or they are of several stacks.
        """
        named = [(node, LayerName.of(str(node.name))) for node in self.graph]
        found = {name.index: (node, name.before) for node, name in named if name is not None and name.within == norm}
        prefixes = {prefix for _, prefix in found.values()}
        if len(prefixes) != 1:
            cause = f"{self.file} has norms {norm} of {len(prefixes) or 'no'} stacks of layers, not of one"
            raise UserError("bisect.boundaries", cause, _FIX)
        gain = _gain(found[min(found)][0])
        entries = {index: self._entering(found[index][0]) for index in sorted(found)}
        return Layers(entries, prefixes.pop(), bool((gain == gain.flat[0]).all()), gain.size)

    def _entering(self, norm: ir.Node) -> ir.Value:
        """The value that a norm reads, before it is quantized; a fused norm is taken apart."""
        if norm.domain == MICROSOFT and norm.op_type in PLAIN:
            return take_apart(self.graph, norm)
        return before_rounding(self._read_by(norm.outputs[0]))

    def part(
        self, inputs: Sequence[ir.Value | str], outputs: Sequence[ir.Value], optional: Sequence[ir.Value] = ()
    ) -> "Part":
        """Part that computes some values from others.

        Args:
            inputs: values, or names of graph inputs, that it is given.
            outputs: values that it computes.
            optional: values that it is given too, where it reads them.

        Raises:
            UserError: the outputs need more than the inputs.
        """
        given = [self.value(v) if isinstance(v, str) else v for v in inputs]
        given += [value for value in optional if value not in given]
        try:
            cut = ir.convenience.extract(self.graph, given, list(outputs))
        except ValueError as error:
            raise UserError("bisect.boundaries", f"{self.file} cannot be cut: {error}", _FIX) from error
        spare = {value.name for value in optional} - {v.name for v in given[: len(inputs)]}
        for value in [v for v in cut.inputs if v.name in spare and not v.uses() and not v.is_graph_output()]:
            cut.inputs.remove(value)
        for value in (*cut.inputs, *cut.outputs):
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)  # files need not say it of values inside
        model = ir.Model(cut, ir_version=self.model.ir_version)
        return Part(self.file, model, self._folder, self._threads)


def before_rounding(value: ir.Value) -> ir.Value:
    """Value of the stream before it is quantized or put into another basis."""
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and node.name != _ENTRY:
            break
        value = node.inputs[0]
    return value


@dataclass(frozen=True)
class Part:
    """Nodes of a graph with inputs and outputs of their own.

    Attributes:
        file: of the graph.
        model: of these nodes alone; its weights refer to the package's data files.
        folder: where those files are.
        threads: of the session; 0 lets onnxruntime choose.
    """

    file: str
    model: ir.Model
    folder: Path
    threads: int

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of its initializers."""
        return tuple(self.model.graph.initializers)

    @property
    def precision(self) -> Precision:
        """Precision of its weights, activations and cache."""
        return _precision(self.model.graph)

    @contextmanager
    def opened(self) -> Iterator[PackageSession]:
        """A session, for as long as it is needed.

        Raises:
            SessionError: onnxruntime refuses it.
        """
        options = session_options(self.threads)
        options.enable_cpu_mem_arena = False  # parts follow one another; nothing is to be held back
        yield session_of(self.file, self.model, self.folder, options)


def _gain(norm: ir.Node) -> np.ndarray:
    """The gain of a norm, or the levels of a quantized one.

    Raises:
        UserError: it is not a constant.
    """
    value = norm.inputs[2 if norm.domain == MICROSOFT else 1]
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "DequantizeLinear":
        value = node.inputs[0]
    if value is None or value.const_value is None:
        raise UserError("bisect.boundaries", f"{norm.name} has no constant gain", _FIX)
    return value.const_value.numpy()


def _precision(graph: ir.Graph) -> Precision:
    weights, activations, cache = [_FLOAT], [_FLOAT], [_FLOAT]
    written = {use.node.inputs[1] for v in graph.inputs if v.dtype is ir.DataType.UINT8 for use in v.uses()}  # scales
    for node in graph:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            weights.append(node.attributes.get_int("bits", 4))
            activations += [8] if node.attributes.get_int("accuracy_level", 0) == _INT8_PRODUCTS else []
        elif node.op_type == "MatMulIntegerToFloat":
            weights.append(8)
            activations.append(8)
        elif node.op_type == "QuantizeLinear" and (zero := node.inputs[2]) is not None and zero.dtype is not None:
            (cache if node.inputs[1] in written else activations).append(zero.dtype.bitwidth)
        elif node.op_type == "DequantizeLinear" and (levels := node.inputs[0]) is not None:
            constant = levels.const_value
            weights += [] if constant is None or len(constant.shape) < _MATRIX else [constant.dtype.bitwidth]
        elif "kv_cache_bit_width" in node.attributes:
            cache.append(node.attributes.get_int("kv_cache_bit_width", 8))
    return Precision(min(weights), min(activations), min(cache))
