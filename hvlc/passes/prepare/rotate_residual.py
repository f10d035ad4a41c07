"""Rotate the residual stream of a decoder (R1 of SpinQuant, arXiv 2405.16406; QuaRot, arXiv 2404.00456).

An RMS norm without gain commutes with a rotation. So gains move into the linears that read the norms; what writes to
the stream (table, attention and MLP outputs, visual tokens) is rotated on its output side, and what reads it on its
input side. The outputs stay, up to rounding, and the outliers of a few hidden channels are spread over all of them.

A head that is tied to the table reads the same values, but through the last norm's gain: rotated, they would no longer
be equal and the table would be stored twice. Unless that is asked for, both are left as they are, and the basis is
changed by two products with `[hidden, hidden]` matrices instead, before the first layer and before the head. So it is
done at the first layer too where what makes the stream is not at hand. For each output, those matrices have inputs of
one magnitude wherever the rotation is a Hadamard matrix, so four bits hold them exactly up to the rounding of scales.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Bundle, Component, Role, Skip
from hvlc.graphs.editing import make_node, redirect, register, replace_weight
from hvlc.graphs.linears import (
    LinearGroup,
    cuts_positions,
    is_linear,
    is_tied,
    operand,
    projection_behind,
    read_by,
    stored_tables,
    tables,
    values_of,
)
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import Constant, LazyTensor
from hvlc.weights.rotation import Rotated, Rotation, is_rotated

_FUSED = (MICROSOFT, "SkipSimplifiedLayerNormalization")
_NORMS = {("", "RMSNormalization"): 1, _FUSED: 2}  # and where their weight is
_FUSED_SUM = 3
_CENTERED = {("", "LayerNormalization"), (MICROSOFT, "SkipLayerNormalization")}

#: A constant and its axis of hidden channels.
Place = tuple[ir.Value, int]


class _NotExactError(Exception):
    """Reason why a stream cannot be rotated."""


@dataclass
class _Stream:
    """Everything that touches a residual stream.

    Attributes:
        entry: its first value.
        writers: what is added to it.
        norms: each norm's gain and the group that reads its output.
    """

    entry: ir.Value
    writers: list[Place] = field(default_factory=list)
    norms: list[tuple[ir.Value, LinearGroup]] = field(default_factory=list)


@dataclass(frozen=True)
class RotateResidual(BundlePass):
    """Rotate the residual stream of every decoder.

    Attributes:
        seed: of the rotation.
        untie: fold into a tied head and table, which are stored as two then, instead of changing the basis around them.
    """

    seed: int = 0
    untie: bool = False
    requires = frozenset({Trait.FLOAT_WEIGHTS, Trait.UNSCALED_CHANNELS, Trait.WIRED_TOKENS, Trait.WHOLE_DECODER})

    def transform(self, bundle: Bundle) -> Outcome:
        """Rotate what can be rotated exactly."""
        changed, skipped = 0, []
        for component in bundle.with_role(Role.DECODER):
            try:
                changed += self._rotate(bundle, component)
            except _NotExactError as reason:
                skipped.append(Skip(component.name, str(reason)))
        return Outcome(changed, tuple(skipped))

    def _rotate(self, bundle: Bundle, component: Component) -> int:
        """Rotate one decoder; 0 when that was done before.

        Raises:
            _NotExactError: it cannot be; nothing was changed.
        """
        stream = _stream(component.graph)
        rotation = Rotation(int(values_of(stream.norms[0][0]).shape[0]), self.seed)
        if any(is_rotated(values_of(operand(n, 1)), rotation, 0) for _, group in stream.norms for n in group.nodes):
            return 0
        shared = frozenset() if self.untie else stored_tables(c.graph for c in bundle.components.values())
        tied = [is_tied(group, shared) for _, group in stream.norms]
        sources = None if any(tied) else _sources(bundle, component, stream.entry)
        places = [*stream.writers, *(sources or [])]
        _check(stream, places, rotation)
        for constant, axis in places:
            replace_weight(constant, Rotated(values_of(constant), rotation, axis))
        for (gain, group), apart in zip(stream.norms, tied, strict=True):
            if apart:
                _turn_back(component.graph, gain, group, rotation)
            else:
                _turn_readers(gain, group, rotation)
        ones = Constant(np.ones(rotation.size, np.float32))
        for gain, _ in stream.norms:
            replace_weight(gain, ones)
        if sources is None:
            _turn_entry(component.graph, stream.entry, rotation)
        return 1


def _stream(graph: ir.Graph) -> _Stream:
    """The residual stream that the first norm of a graph reads.

    Raises:
        _NotExactError: something reads or writes it that a rotation does not pass.
    """
    norms = {**_NORMS, **dict.fromkeys(_CENTERED, 0)}
    first = next((node for node in graph if (node.domain, node.op_type) in norms), None)
    if first is None:
        raise _NotExactError("it has no norm")
    stream = _Stream(operand(first, 0))
    waiting, seen = [stream.entry], {stream.entry}
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            raise _NotExactError(f"the residual stream leaves the graph as {value.name}")
        for node in dict.fromkeys(value.consumers()):
            found = _step(stream, node, value)
            waiting += [v for v in found if v not in seen]
            seen.update(found)
    if not stream.norms:
        raise _NotExactError("no linear reads its norms")
    return stream


def _step(stream: _Stream, node: ir.Node, value: ir.Value) -> list[ir.Value]:
    """Note what a reader of the stream does; returns the values that go on with it."""
    kind = (node.domain, node.op_type)
    if kind in _CENTERED:
        raise _NotExactError(f"{node.name} takes the mean out, which a rotation moves")
    if cuts_positions(node) and node.inputs[0] is value:
        return [node.outputs[0]]
    if kind not in _NORMS and kind != ("", "Add"):
        raise _NotExactError(f"{node.name} ({node.op_type}) reads the residual stream")
    if kind in _NORMS:
        _note_norm(stream, node, value)
    if kind == ("", "RMSNormalization"):
        return []
    others = [v for v in node.inputs[:2] if v is not None and v is not value]
    written = projection_behind(others[0]) if len(others) == 1 and read_by(others[0], [node]) else None
    made = others[0].producer() if len(others) == 1 else None
    if made is not None and (made.domain, made.op_type) in _NORMS:
        raise _NotExactError(f"{node.name} adds the output of {made.name}, whose gain a rotation does not pass")
    if written is None:
        raise _NotExactError(f"{node.name} adds what no linear of its own makes to the residual stream")
    stream.writers.append((written.weight, 1))
    stream.writers += [] if written.bias is None else [(written.bias, 0)]
    return [node.outputs[_FUSED_SUM if kind == _FUSED else 0]]


def _note_norm(stream: _Stream, node: ir.Node, value: ir.Value) -> None:
    kind = (node.domain, node.op_type)
    gain, normed = operand(node, _NORMS[kind]), node.outputs[0]
    rank = None if gain.const_value is None else len(gain.const_value.shape)
    normalized, more = node.inputs[: 2 if kind == _FUSED else 1], node.inputs[_NORMS[kind] + 1 :]
    last_axis = node.attributes.get_int("axis", -1) == -1
    if rank != 1 or not last_axis or value not in normalized or any(v is not None for v in more):
        raise _NotExactError(f"{node.name} has more than a constant gain over the last axis")
    readers = tuple(dict.fromkeys(normed.consumers()))
    if normed.is_graph_output() or not all(is_linear(n) and n.inputs[0] is normed for n in readers):
        raise _NotExactError(f"the output of {node.name} is not read by linears alone")
    stream.norms.append((gain, LinearGroup(normed, readers)))


def _check(stream: _Stream, places: list[Place], rotation: Rotation) -> None:
    """Hold everything that will change against the width, and against other readers.

    Raises:
        _NotExactError: with the first constant that has another width or other readers.
    """
    gains = [(gain, 0) for gain, _ in stream.norms]
    readers = [(operand(node, 1), 0) for _, group in stream.norms for node in group.nodes]
    for constant, axis in [*places, *gains, *readers]:
        shape = values_of(constant).shape
        if len(constant.uses()) != 1:
            raise _NotExactError(f"{constant.name} has more than one reader")
        if len(shape) <= axis or shape[axis] != rotation.size:
            raise _NotExactError(f"{constant.name} is not {rotation.size} wide")


def _turn_readers(gain: ir.Value, group: LinearGroup, rotation: Rotation) -> None:
    for node in group.nodes:
        weight = operand(node, 1)
        replace_weight(weight, Rotated(values_of(weight).scale(values_of(gain), 0), rotation, 0))


def _turn_back(graph: ir.Graph, gain: ir.Value, group: LinearGroup, rotation: Rotation) -> None:
    """A product that undoes the rotation and applies the gain before linears that stay as they are."""
    name = f"{str(gain.name).removesuffix('.weight')}.unrotate"
    weight = register(graph, LazyTensor(f"{name}.weight", rotation.inverse().scale(values_of(gain), 1)))
    _insert_product(graph, group.input, weight, name, group.nodes[0])


def _turn_entry(graph: ir.Graph, entry: ir.Value, rotation: Rotation) -> None:
    """A product that rotates the stream where it begins."""
    name = "residual.rotate"
    readers = set(entry.consumers())
    first = next(node for node in graph if node in readers)
    weight = register(graph, LazyTensor(f"{name}.weight", rotation.matrix()))
    _insert_product(graph, entry, weight, name, first)


def _insert_product(graph: ir.Graph, value: ir.Value, weight: ir.Value, name: str, before: ir.Node) -> None:
    """Give all readers of a value its product with a weight."""
    uses, node = list(value.uses()), make_node("MatMul", [value, weight], name)
    turned = node.outputs[0]
    turned.type, turned.shape = value.type, value.shape
    redirect(uses, turned)
    graph.insert_before(before, node)


def _sources(bundle: Bundle, component: Component, entry: ir.Value) -> list[Place] | None:
    """Every constant that the first value of a stream is made of, or None where something else has a share in it."""
    places = list(_made_of(bundle, component, entry))
    return None if None in places else [place for place in places if place is not None]


def _made_of(bundle: Bundle, component: Component, value: ir.Value) -> Iterator[Place | None]:
    """Places that hidden vectors are made of, upwards through the bundle; None for what a rotation does not pass."""
    node, projection = value.producer(), projection_behind(value)
    looked_up = [operand(node, 0)] if node is not None and operand(node, 0) in tables(component.graph) else []
    if value.is_graph_input():
        yield from _wired_to(bundle, f"{component.name}.{value.name}")
    elif looked_up:
        yield looked_up[0], 1
    elif projection is not None:
        yield projection.weight, 1
        yield from [] if projection.bias is None else [(projection.bias, 0)]
    elif node is not None and node.op_type == "ScatterND" and not node.domain:
        for part in (operand(node, 0), operand(node, 2)):
            counting = [reader for reader in part.consumers() if reader.op_type == "Shape" and not reader.domain]
            alone = read_by(part, [node, *dict.fromkeys(counting)])
            yield from _made_of(bundle, component, part) if alone else [None]
    else:
        yield None


def _wired_to(bundle: Bundle, target: str) -> Iterator[Place | None]:
    """Places that feed an input, through components that lay tokens out and leave their channels alone."""
    sources = [wire.source for wire in bundle.wires if wire.target == target]
    if not sources or any(sum(wire.source == source for wire in bundle.wires) != 1 for source in sources):
        yield None
        return
    for source in sources:
        name, _, output = source.partition(".")
        component = bundle.components[name]
        value = next(v for v in component.graph.outputs if v.name == output)
        if component.role is Role.VISION_MERGER:
            for merged in component.graph.inputs:
                if merged.dtype == ir.DataType.FLOAT:
                    yield from _wired_to(bundle, f"{name}.{merged.name}")
        elif value.uses():
            yield None
        else:
            yield from _made_of(bundle, component, value)
