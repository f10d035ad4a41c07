"""Split a decoder into components: token embedding, transformer parts, head.

An NPU maps a graph and its weights into a small address space, so a decoder is compiled in parts, and what an NPU has
no use for (the look-up of a table) stays outside. Parts are cut at the residual stream, before the first norm of a
layer and before the last norm of all: one value goes from part to part. Where that value is quantized, its levels are
passed on, so that both parts see an integer operator at the cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import onnx_ir as ir

from hvlc.errors import HvlcError, TargetError
from hvlc.graphs.builder import EMBEDDED_TOKENS
from hvlc.graphs.bundle import Bundle, Component, Role, Skip, Wire
from hvlc.graphs.layers import LayerName
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import LazyTensor, expression_of

EMBEDDING, HEAD = "embedding", "head"
_EMBEDS, _HIDDEN, _LOGITS = "inputs_embeds", "hidden_states", "logits"
_FIRST_NORM = "input_layernorm"  # of a layer
_LOOKUPS = ("Gather", "GatherBlockQuantized")
_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization")


@dataclass(frozen=True)
class SplitDecoder(BundlePass):
    """Replace the decoder by "embedding" (which may be there already), "decoder_1" to "decoder_N" and "head".

    Attributes:
        part_bytes: most bytes of weights in one transformer part; None makes one part.
    """

    part_bytes: int | None = None
    requires = frozenset({Trait.WHOLE_DECODER, Trait.ALL_POSITIONS, Trait.HOST_LENGTHS, Trait.SYMBOLIC_SHAPES})
    promises = frozenset({Trait.DECODER_PARTS})
    ends = frozenset({Trait.WHOLE_DECODER})

    def transform(self, bundle: Bundle) -> Outcome:
        """Split the one decoder.

        Raises:
            TargetError: a single layer, or the head, has more weights than a part may have.
            HvlcError: the decoder has no residual stream to cut.
        """
        whole = [c for c in bundle.with_role(Role.DECODER) if _LOGITS in _names(c.graph.outputs) and _layers(c.graph)]
        if not whole:
            return Outcome(0, (Skip("*", "there is no whole decoder"),))
        (decoder,) = whole
        _hold_constants(decoder.graph)
        entry, layers, end = _stream(decoder.graph)
        starts = self._starts(decoder.graph, [entry, *layers[1:], end])
        cuts = [(entry, _EMBEDS), *((layers[i], f"{_HIDDEN}.{n}") for n, i in enumerate(starts[1:], 1)), (end, _HIDDEN)]
        cut = _Cutter(decoder, bundle.facts.hidden_size)
        parts = [cut.embedding(entry)] if entry.producer() is not None else []
        parts += [cut.part(n, *ends) for n, ends in enumerate(pairwise(cuts), 1)]
        parts.append(cut.head(cuts[-1]))
        self._check("the head", _weight_bytes(parts[-1].graph))
        _replace(bundle, decoder, parts)
        return Outcome(len(parts))

    def _starts(self, graph: ir.Graph, stream: Sequence[ir.Value]) -> list[int]:
        """The first layer of each part: as many layers as fit, one after another."""
        starts, used = [0], 0
        for index, (first, last) in enumerate(pairwise(stream)):
            size = _weight_bytes(_between(graph, first, [last]))
            self._check(f"layer {index}", size)
            if self.part_bytes is not None and used + size > self.part_bytes:
                starts.append(index)
                used = 0
            used += size
        return starts

    def _check(self, what: str, size: int) -> None:
        if self.part_bytes is not None and size > self.part_bytes:
            cause = f"{what} has {size / 1e6:.1f} MB of weights, a part may have {self.part_bytes / 1e6:.1f} MB"
            raise TargetError("target.part_size", cause, "choose a recipe with fewer bits, or another target")


def _hold_constants(graph: ir.Graph) -> None:
    """Make expressions of plain tensors, such as rotary tables, so that the parts that read one store it once."""
    for name, value in graph.initializers.items():
        if value.const_value is not None and not isinstance(value.const_value, LazyTensor):
            value.const_value = LazyTensor(name, expression_of(value.const_value))


def _names(values: Sequence[ir.Value]) -> set[str]:
    return {str(value.name) for value in values}


def _layers(graph: ir.Graph) -> dict[int, LayerName]:
    """Names of the layers' first norms, by the indices of the layers."""
    found = (LayerName.of(str(node.name)) for node in graph if node.op_type in _NORMS)
    return {name.index: name for name in found if name is not None and name.within == _FIRST_NORM}


def _stream(graph: ir.Graph) -> tuple[ir.Value, list[ir.Value], ir.Value]:
    """The residual stream: the embeddings, what enters each layer, and what the last norm reads."""
    nodes = {str(node.name): node for node in graph}
    found = _layers(graph)
    if sorted(found) != list(range(len(found))):
        raise HvlcError("pass.split_decoder", f"layers {sorted(found)} are not a whole sequence", "report it")
    last = nodes.get(f"{found[0].before}norm")
    if last is None:
        raise HvlcError("pass.split_decoder", f"there is no {found[0].before}norm", "report it")
    layers = [_levels(nodes[name.at(index)].inputs[0]) for index, name in sorted(found.items())]
    return _entry(graph), layers, _levels(last.inputs[0])


def _levels(value: ir.Value | None) -> ir.Value:
    """A value of the stream, or the levels that it is dequantized from."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "DequantizeLinear":
        value = node.inputs[0]
    if value is None:
        raise HvlcError("pass.split_decoder", "a norm reads nothing", "report it")
    return value


def _entry(graph: ir.Graph) -> ir.Value:
    """The embeddings: an input of the graph, or what the look-up of the tokens gives."""
    for value in graph.inputs:
        if value.name == _EMBEDS:
            return value
    named = next((node for node in graph if node.name == EMBEDDED_TOKENS), None)
    if named is not None:  # the look-up, or what widens or multiplies its rows
        return named.outputs[0]
    for node in graph:
        ids = node.inputs[1] if node.op_type in _LOOKUPS and len(node.inputs) > 1 else None
        if ids is not None and ids.is_graph_input():
            readers = node.outputs[0].consumers()
            widened = len(readers) == 1 and readers[0].op_type == "Cast"  # of a table that is stored narrow
            return readers[0].outputs[0] if widened else node.outputs[0]
    raise HvlcError("pass.split_decoder", "the decoder takes neither embeddings nor tokens", "report it")


@dataclass(frozen=True)
class _Cutter:
    """Cutter of components out of a decoder.

    Attributes:
        decoder: the whole one, which is not changed.
        width: channels of the residual stream.
    """

    decoder: Component
    width: int

    def embedding(self, entry: ir.Value) -> Component:
        """The look-up of tokens."""
        return self._component(EMBEDDING, Role.EMBEDDING, None, [(entry, _EMBEDS)])

    def part(self, number: int, first: tuple[ir.Value, str], last: tuple[ir.Value, str]) -> Component:
        """A transformer part between two cuts, with the cache of its layers."""
        inside = {str(node.name) for node in _between(self.decoder.graph, first[0], [last[0]])}
        caches = [v for v in self.decoder.graph.outputs if (made := v.producer()) is not None and made.name in inside]
        outputs = [last, *((value, str(value.name)) for value in caches)]
        return self._component(f"decoder_{number}", Role.DECODER, first, outputs)

    def head(self, end: tuple[ir.Value, str]) -> Component:
        """The last norm and the product with the vocabulary."""
        logits = next(value for value in self.decoder.graph.outputs if value.name == _LOGITS)
        return self._component(HEAD, Role.DECODER, end, [(logits, _LOGITS)])

    def _component(
        self, name: str, role: Role, first: tuple[ir.Value, str] | None, outputs: Sequence[tuple[ir.Value, str]]
    ) -> Component:
        graph = _between(self.decoder.graph, first[0] if first else None, [value for value, _ in outputs])
        graph.name = name
        cut = [(graph.inputs[0], first)] if first else []
        for value, (source, called) in [*cut, *zip(graph.outputs, outputs, strict=True)]:
            value.name = called
            value.type = ir.TensorType(_dtype(source))
            if source.is_graph_input():  # may be wider than the stream
                value.shape = source.shape
            elif source.name not in _names(self.decoder.graph.outputs):
                value.shape = ir.Shape(["batch", "sequence", self.width])
        for value in [v for v in graph.inputs[len(cut) :] if not v.uses()]:
            graph.inputs.remove(value)
        model = ir.Model(graph, ir_version=self.decoder.model.ir_version, producer_name="hvlc")
        return Component(name, role, model, self.decoder.data_group)


def _between(graph: ir.Graph, first: ir.Value | None, outputs: Sequence[ir.Value]) -> ir.Graph:
    """Graph that computes `outputs` from a cut and the graph's own inputs; initializers keep their tensors."""
    inputs = [*([first] if first is not None else []), *(value for value in graph.inputs if value is not first)]
    found = ir.convenience.extract(graph, inputs, outputs)
    for name in graph.initializers:  # extracted in an order that changes from run to run
        if name in found.initializers:
            found.initializers[name] = found.initializers.pop(name)
    return found


def _weight_bytes(graph: ir.Graph) -> int:
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)


def _dtype(value: ir.Value) -> ir.DataType:
    """Element type of a value of the stream: float, or that of its levels."""
    node = value.producer()
    zero = node.inputs[2] if node is not None and node.op_type == "QuantizeLinear" else None
    return value.dtype or (zero.dtype if zero is not None else None) or ir.DataType.FLOAT


def _replace(bundle: Bundle, decoder: Component, parts: Sequence[Component]) -> None:
    """Put the parts where the decoder was, with wires from each to the next."""
    before = list(bundle.components.values())
    bundle.components.clear()
    for component in before:
        for part in parts if component is decoder else [component]:
            bundle.add(part)
    readers = [part for part in parts if _EMBEDS in _names(part.graph.inputs)]  # several, where layers add features
    into = [
        replace(wire, target=f"{part.name}.{_EMBEDS}")
        for wire in bundle.wires
        if wire.target.startswith(f"{decoder.name}.")
        for part in readers
    ]
    bundle.wires = [w for w in bundle.wires if not w.target.startswith(f"{decoder.name}.")] + into
    for source, target in pairwise(parts):
        name = source.graph.outputs[0].name
        bundle.wires.append(Wire(f"{source.name}.{name}", f"{target.name}.{name}"))
