"""What every pass is: a frozen dataclass that changes a bundle and says what it did and declined."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.bundle import Bundle, Component, Role, Skip
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import Expression, LazyTensor


@dataclass(frozen=True)
class Outcome:
    """What a pass did to one component: a true count of changes, and refusals with reasons."""

    changed: int = 0
    skipped: tuple[Skip, ...] = ()


class Pass(ABC):
    """A transform, and what other passes need to know of it (`hvlc.passes.order` checks that).

    Attributes:
        requires: traits that must hold when it runs.
        promises: traits that hold after it, but for what it declined, which the journal names.
        ends: traits that it may break.
    """

    requires: frozenset[Trait] = frozenset()
    promises: frozenset[Trait] = frozenset()
    ends: frozenset[Trait] = frozenset()

    @property
    def name(self) -> str:
        """Name in the journal and in the names of the nodes that it makes."""
        return type(self).__name__

    @abstractmethod
    def run(self, bundle: Bundle) -> None:
        """Transform a bundle in place, journal it, and check the wires."""


class BundlePass(Pass):
    """A transform of the whole bundle (adds, joins or removes components)."""

    @abstractmethod
    def transform(self, bundle: Bundle) -> Outcome:
        """Change the bundle in place."""

    def run(self, bundle: Bundle) -> None:
        """Transform the bundle in place, journal it, and check the wires."""
        with bundle.step(self.name, "*") as record:
            outcome = self.transform(bundle)
            record(outcome.changed, outcome.skipped)
        bundle.check_wires()


class ComponentPass(Pass):
    """A transform of one graph at a time.

    Attributes:
        roles: of the components that it transforms.
    """

    roles: frozenset[Role] = frozenset(Role)

    @abstractmethod
    def transform(self, component: Component) -> Outcome:
        """Change the component in place."""

    def run(self, bundle: Bundle) -> None:
        """Transform every component of the pass's roles in place, journal each, and check the wires."""
        for component in list(bundle.components.values()):
            if component.role not in self.roles:
                continue
            with bundle.step(self.name, component.name) as record:
                outcome = self.transform(component)
                record(outcome.changed, outcome.skipped)
        bundle.check_wires()


def replace_node(old: ir.Node, new: ir.Node, outputs: dict[int, int]) -> None:
    """Put `new` where `old` stands; `outputs` maps old output positions to new ones.

    Names, types and shapes of the replaced values are kept.
    """
    graph = old.graph
    if not isinstance(graph, ir.Graph):
        raise HvlcError("pass.detached", f"node {old.name} belongs to no graph", "report it")
    graph.insert_before(old, new)
    for before, after in outputs.items():
        source, target = old.outputs[before], new.outputs[after]
        target.name, target.type, target.shape = source.name, source.type, source.shape
        ir.convenience.replace_all_uses_with(source, target, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def replace_weight(value: ir.Value, expression: Expression) -> None:
    """Give an initializer other values of the same shape and dtype, under the same name."""
    value.const_value = LazyTensor(str(value.name), expression)


def add_weight(graph: ir.Graph, name: str, expression: Expression) -> ir.Value:
    """A new initializer with lazy values."""
    tensor = LazyTensor(name, expression)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    graph.register_initializer(value)
    return value


def register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer of this tensor, named like it; the one that the graph has under that name, when it has one."""
    if tensor.name in graph.initializers:
        return graph.initializers[str(tensor.name)]
    dims = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=dims)
    graph.register_initializer(value)
    return value


def dequantizers(graph: ir.Graph, readers: frozenset[str]) -> Iterator[ir.Node]:
    """The DequantizeLinear nodes whose outputs named nodes read, each once."""
    made = {value.producer(): None for node in graph if node.name in readers for value in node.inputs if value}
    for node in made:
        if node is not None and node.op_type == "DequantizeLinear" and not node.domain:
            yield node
