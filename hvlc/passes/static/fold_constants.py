"""Compute what does not depend on an encoder's input, once its shape is fixed.

Positions, rotations and windows of a tower over any grid follow from height and width. With both fixed they are
numbers, which no NPU has to compute, and many could not. What is computed of weights (a table of positions that is
resized) is a lazy expression, evaluated when the graph is written. What is left of a border that an image does not have
is removed.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import bypass, drop_unread, graph_of, register
from hvlc.graphs.sessions import open_session
from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import Computed, Expression, LazyTensor, expression_of

#: Operators that a compiler reads together with the weights that they are applied to.
_KEPT = frozenset({"DequantizeLinear", "MatMulNBits", "GatherBlockQuantized"})
#: Operators by which weights are stored otherwise than they are read: smaller, or shared with other graphs.
_REARRANGES = frozenset({"Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})
_MASK = 3  # input of an Attention


@dataclass(frozen=True)
class FoldConstants(ComponentPass):
    """Replace values that depend on no input of a vision encoder by constants, and remove what they make idle."""

    roles = frozenset({Role.VISION_ENCODER})
    requires = frozenset({Trait.STATIC_SHAPES, Trait.INFERRED_SHAPES})

    def transform(self, component: Component) -> Outcome:
        """Fold numbers until shapes know no more, then what is computed of weights."""
        graph, changed, skipped = component.graph, 0, list[Skip]()
        while made := _fold(graph, skipped, lazily=False):
            changed += made
            _forget_open_shapes(graph)
            infer_shapes(graph)
        changed += _fold(graph, skipped, lazily=True)
        for node in list(graph):
            changed += _without_border(node)
        if changed:
            _forget_open_shapes(graph)
            infer_shapes(graph)
        return Outcome(changed, tuple(skipped))


def _fold(graph: ir.Graph, skipped: list[Skip], *, lazily: bool) -> int:
    """Fold what is read by nodes that stay.

    Args:
        graph: changed in place.
        skipped: gets what cannot be folded.
        lazily: whether that is also computed of weights.
    """
    known = _known(graph, lazily=lazily)
    edge = [
        value
        for node in known
        for value in node.outputs
        if value.is_graph_output() or any(user not in known for user in value.consumers())
    ]
    folded = 0
    for value in edge:
        if lazily and all(node.op_type in _REARRANGES for node in _cone(value, known)[0]):
            continue
        tensor = _tensor(value, known)
        if tensor is None:
            skipped.append(Skip(str(value.name), "its shape does not follow from the input's"))
            continue
        ir.convenience.replace_all_uses_with(value, register(graph, tensor))
        folded += 1
    _remove_unread(graph, known)
    return folded


def _known(graph: ir.Graph, *, lazily: bool) -> dict[ir.Node, None]:
    """Nodes whose outputs do not depend on the graph's inputs, in order; those of a graph's own outputs are left."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        whole = node.op_type == "Shape" and node.inputs[0] is not None and _is_static(node.inputs[0])
        inputs = [value for value in node.inputs if value is not None]
        stays = node.op_type in _KEPT or any(value.is_graph_output() for value in node.outputs)
        if not stays and (whole or all(_is_known(value, found, lazily=lazily) for value in inputs)):
            found[node] = None
    return found


def _is_known(value: ir.Value, found: dict[ir.Node, None], *, lazily: bool) -> bool:
    if value.const_value is not None:
        return lazily or not isinstance(value.const_value, LazyTensor)
    return value.producer() in found


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _tensor(value: ir.Value, known: dict[ir.Node, None]) -> ir.TensorProtocol | None:
    """The value as a tensor, lazy where it is computed of weights; None: its shape is not known."""
    nodes, sources = _cone(value, known)
    lazy = [v for v in sources if isinstance(v.const_value, LazyTensor)]
    cone = _Cone(_model(value, nodes, sources, lazy), tuple(str(v.name) for v in lazy))
    name = f"{value.name}.folded"
    if not lazy:
        return ir.tensor(cone(), name=name)
    if not _is_static(value) or value.dtype is None or value.shape is None:
        return None
    parts = tuple(_expression(v) for v in lazy)
    return LazyTensor(name, Computed(cone, parts, tuple(value.shape.numpy()), np.dtype(value.dtype.numpy())))


def _expression(value: ir.Value) -> Expression:
    if value.const_value is None:
        raise ValueError(f"{value.name} has no value")
    return expression_of(value.const_value)


def _cone(value: ir.Value, known: dict[ir.Node, None]) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that make a value, in order, and the constants that they read."""
    wanted, pending = dict[ir.Node, None](), [value.producer()]
    while pending:
        node = pending.pop()
        if node is not None and node in known and node not in wanted:
            wanted[node] = None
            pending += [] if node.op_type == "Shape" else [v.producer() for v in node.inputs if v is not None]
    nodes = [node for node in known if node in wanted]
    read = itertools.chain.from_iterable(node.inputs for node in nodes if node.op_type != "Shape")
    return nodes, list(dict.fromkeys(v for v in read if v is not None and v.const_value is not None))


def _model(value: ir.Value, nodes: list[ir.Node], sources: list[ir.Value], lazy: list[ir.Value]) -> bytes:
    """A graph of its own that makes a value; weights are its inputs, numbers are inside."""
    made: dict[ir.Value, ir.Value] = {}
    for source in sources:
        tensor = None if source in lazy else source.const_value
        made[source] = ir.Value(name=source.name, type=source.type, shape=source.shape, const_value=tensor)
    copies = []
    for node in nodes:
        outputs = [ir.Value(name=output.name) for output in node.outputs]
        made |= zip(node.outputs, outputs, strict=True)
        copies.append(_copied(node, outputs, made))
    made[value].type = value.type
    graph = ir.Graph(
        [made[v] for v in lazy],
        [made[value]],
        nodes=copies,
        initializers=[made[v] for v in sources if v not in lazy],
        opset_imports=dict(graph_of(nodes[0]).opset_imports),
        name="constant",
    )
    content: bytes = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return content


def _copied(node: ir.Node, outputs: list[ir.Value], made: dict[ir.Value, ir.Value]) -> ir.Node:
    """A node over copied values; a Shape becomes the number that it is."""
    source = node.inputs[0]
    if node.op_type == "Shape" and source is not None and source not in made and source.shape is not None:
        dims = source.shape.numpy()
        part = dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
        number = ir.tensor(np.array(part, np.int64))
        return ir.node("Constant", [], {"value": number}, outputs=outputs, name=node.name)
    inputs = [None if v is None else made[v] for v in node.inputs]
    return ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs, name=node.name)


@dataclass(frozen=True)
class _Cone:
    """Computes one value.

    Attributes:
        model: ONNX graph of one output.
        names: of its inputs.
    """

    model: bytes
    names: tuple[str, ...]

    def __call__(self, *weights: np.ndarray) -> np.ndarray:
        feeds = {name: np.ascontiguousarray(weight) for name, weight in zip(self.names, weights, strict=True)}
        found: np.ndarray = open_session(self.model).run(None, feeds)[0]
        return found


def _remove_unread(graph: ir.Graph, known: dict[ir.Node, None]) -> None:
    for node in reversed(list(known)):
        if not any(output.uses() for output in node.outputs):
            read = list(node.inputs)
            graph.remove(node, safe=True)
            drop_unread(graph, *read)


def _forget_open_shapes(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output() and value.shape is not None and not value.shape.is_static():
                value.shape = None


def _without_border(node: ir.Node) -> int:
    """Remove a Pad of nothing, a Slice of everything, and a mask that hides nothing; returns how much changed."""
    source = node.inputs[0] if node.inputs else None
    if source is None or node.domain:
        return 0
    if node.op_type == "Attention" and len(node.inputs) > _MASK:
        mask = _numbers(node.inputs[_MASK])
        if mask is None or not (mask.all() if mask.dtype == np.bool_ else not mask.any()):
            return 0
        value = node.inputs[_MASK]
        node.resize_inputs(_MASK)
        drop_unread(graph_of(node), value)
        return 1
    if node.op_type not in ("Pad", "Slice") or not _keeps_all(node, source):
        return 0
    graph, read = graph_of(node), list(node.inputs)
    bypass(node, source)
    drop_unread(graph, *read[1:])
    return 1


def _keeps_all(node: ir.Node, source: ir.Value) -> bool:
    """Whether the output of a Pad or a Slice is its input."""
    numbers = [_numbers(value) for value in node.inputs[1:]]
    if node.op_type == "Pad":
        return numbers[0] is not None and not numbers[0].any()
    starts, ends, axes, *steps = numbers
    if starts is None or ends is None or axes is None or steps or not _is_static(source) or source.shape is None:
        return False
    dims = np.array(source.shape.numpy())[axes]
    return not starts.any() and bool((ends >= dims).all())


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    """A constant's numbers, as far as they are known now."""
    tensor = value.const_value if value is not None else None
    return None if tensor is None or isinstance(tensor, LazyTensor) else np.asarray(tensor.numpy())
