"""Pack the query, key and value projections into one product.

The weights are stacked lazily, quantized or not: each matrix keeps the levels that its own assignment gave it, and
only equal formats are joined. GroupQueryAttention takes the joined result as it is (packed QKV); where head norms
stand between, a Split hands out the shares, as onnxruntime-genai's builder does. Joining gate and up projections
gained nothing in either direction (docs/speed.md) and is not done.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import drop_unread, register
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import LazyTensor, concat, expression_of

_BETWEEN = ("Reshape", "RMSNormalization")  # what stands between a projection with head norms and the attention
_QKV = 3


@dataclass(frozen=True)
class _Projection:
    """A product with a constant matrix, and the bias that is added to it.

    Attributes:
        node: MatMul or MatMulNBits.
        bias: the addition that alone reads the product, if any.
        features: width of the result.
    """

    node: ir.Node
    bias: ir.Node | None
    features: int

    @property
    def result(self) -> ir.Value:
        """Value that readers of the projection take."""
        return (self.bias or self.node).outputs[0]

    @property
    def constants(self) -> list[ir.Value]:
        """Weight, and scales (behind their Cast) and zero points."""
        return [_stored(value) for value in self.node.inputs[1:] if value is not None]

    @property
    def form(self) -> tuple[object, ...]:
        """Projections of equal form can be joined."""
        attributes = sorted((n, str(a.value)) for n, a in self.node.attributes.items() if n != "N")
        kinds = [str(v.dtype) for v in [*self.node.inputs[1:], *self.constants] if v is not None]
        return self.node.inputs[0], self.node.op_type, *attributes, *kinds, self.bias is None


@dataclass(frozen=True)
class PackProjections(ComponentPass):
    """Pack the three projections of every grouped-query attention."""

    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.QUANTIZED_WEIGHTS, Trait.GROUP_ATTENTION})

    def transform(self, component: Component) -> Outcome:
        """Join what can be joined."""
        changed, skipped = 0, []
        for attention in [node for node in component.graph if node.op_type == "GroupQueryAttention"]:
            group = [_projection_behind(value) for value in attention.inputs[:_QKV]]
            found = [projection for projection in group if projection is not None]
            if len(found) < _QKV:
                skipped.append(Skip(str(attention.name), "query, key and value come from no three products"))
            elif len({projection.form for projection in found}) > 1:
                skipped.append(Skip(str(attention.name), "query, key and value have different inputs or formats"))
            else:
                _join(component.graph, found, attention)
                changed += 1
        return Outcome(changed, tuple(skipped))


def _projection_behind(value: ir.Value | None) -> _Projection | None:
    """The projection that an attention input comes from, through head norms."""
    while value is not None and (node := value.producer()) is not None and not node.domain:
        if node.op_type not in _BETWEEN:
            break
        value = node.inputs[0]
    node = value.producer() if value is not None else None
    bias = None
    if node is not None and node.op_type == "Add" and node.inputs[1] is not None:
        if node.inputs[1].const_value is None or node.inputs[0] is None:
            return None
        bias, node = node, node.inputs[0].producer()
    if node is None or node.op_type not in ("MatMul", "MatMulNBits") or len(node.outputs[0].uses()) != 1:
        return None
    constants = [_stored(v).const_value for v in node.inputs[1:] if v is not None]
    if any(constant is None for constant in constants):
        return None
    features = node.attributes.get_int("N") if node.domain else int(str(node.inputs[1].shape[1]))  # type: ignore[union-attr, index]
    return _Projection(node, bias, features)


def _stored(value: ir.Value) -> ir.Value:
    """The initializer behind the Cast that widens scales."""
    cast = value.producer()
    if cast is not None and cast.op_type == "Cast" and cast.inputs[0] is not None:
        return cast.inputs[0]
    return value


def _join(graph: ir.Graph, group: list[_Projection], attention: ir.Node) -> None:
    """One product instead of three; its node, weight and bias are named after all three."""
    first = group[0].node
    path, _, leaf = str(first.name).rpartition(".")
    leaves = [leaf, *(str(p.node.name).removeprefix(f"{path}.") for p in group[1:])]
    name = f"{path}.{'+'.join(leaves)}" if path else "+".join(leaves)
    inputs: list[ir.Value | None] = [first.inputs[0]]
    for position in range(1, len(first.inputs)):
        values = [p.node.inputs[position] for p in group]
        inputs.append(None if values[0] is None else _stacked(graph, first, [v for v in values if v is not None], name))
    attributes = {n: a.value for n, a in first.attributes.items()}
    if first.domain:
        attributes["N"] = sum(p.features for p in group)
    node = ir.node(first.op_type, inputs, attributes or None, domain=first.domain, name=name)
    node.outputs[0].name = f"{name}:0"
    graph.insert_before(first, node)
    packed, last = node.outputs[0], node
    if group[0].bias is not None:
        biases = [p.bias.inputs[1] for p in group if p.bias is not None]
        total = _stacked(graph, first, [b for b in biases if b is not None], name)
        last = ir.node("Add", [packed, total], name=f"{name}.bias_add")
        packed = last.outputs[0]
        packed.name = f"{name}.bias_add:0"
        graph.insert_after(node, last)
    if all(value is p.result for value, p in zip(attention.inputs[:_QKV], group, strict=True)):
        attention.replace_input_with(0, packed)
        attention.replace_input_with(1, None)
        attention.replace_input_with(2, None)
    else:
        _split(graph, last, packed, group)
    removed = [n for p in group for n in (p.bias, p.node) if n is not None]
    casts = [v.producer() for p in group for v in p.node.inputs[1:] if v is not None and v.producer() is not None]
    constants = [v for p in group for v in p.constants] + [p.bias.inputs[1] for p in group if p.bias is not None]
    graph.remove([*removed, *(cast for cast in casts if cast is not None)], safe=True)
    drop_unread(graph, *constants)


def _stacked(graph: ir.Graph, before: ir.Node, values: list[ir.Value], name: str) -> ir.Value:
    """The same constant of every projection, one after another along the output features."""
    stored = [_stored(value) for value in values]
    tensors = [value.const_value for value in stored if value.const_value is not None]
    suffix = str(stored[0].name).removeprefix(str(before.name))
    dims = [tuple(int(d) for d in tensor.shape.numpy()) for tensor in tensors]
    axis = 1 if before.op_type == "MatMul" and len(dims[0]) > 1 else 0
    expression = concat([expression_of(t).reshape(*d) for t, d in zip(tensors, dims, strict=True)], axis)
    tensor = LazyTensor(f"{name}{suffix}", expression)
    result = register(graph, tensor)
    cast = values[0].producer()
    if cast is None:
        return result
    widened = ir.node("Cast", [result], {"to": cast.attributes["to"].value}, name=f"{result.name}.widened")
    widened.outputs[0].name = f"{result.name}.float32"
    graph.insert_before(before, widened)
    return widened.outputs[0]


def _split(graph: ir.Graph, after: ir.Node, packed: ir.Value, group: list[_Projection]) -> None:
    """Hand every reader its share."""
    sizes = ir.tensor(np.array([p.features for p in group], np.int64), name=f"{after.name}.widths")
    inputs = [packed, register(graph, sizes)]
    split = ir.node("Split", inputs, {"axis": -1}, num_outputs=len(group), name=f"{after.name}.split")
    graph.insert_after(after, split)
    for output, projection in zip(split.outputs, group, strict=True):
        result = projection.result
        output.name, output.type, output.shape = result.name, result.type, result.shape
        ir.convenience.replace_all_uses_with(result, output)
