"""What every pass is: a frozen dataclass that changes a bundle and says what it did and declined."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import onnx_ir as ir

from hvlc.bundle import Bundle, Component, Role, Skip
from hvlc.errors import HvlcError


@dataclass(frozen=True)
class Outcome:
    """What a pass did to one component: a true count of changes, and refusals with reasons."""

    changed: int = 0
    skipped: tuple[Skip, ...] = ()


class BundlePass(ABC):
    """A transform of the whole bundle (adds, joins or removes components)."""

    @property
    def name(self) -> str:
        """Name in the journal."""
        return type(self).__name__

    @abstractmethod
    def transform(self, bundle: Bundle) -> Outcome:
        """Change the bundle in place."""

    def run(self, bundle: Bundle) -> None:
        """Transform, journal, and hold the wires together."""
        with bundle.step(self.name, "*") as record:
            outcome = self.transform(bundle)
            record(outcome.changed, outcome.skipped)
        bundle.check_wires()


class ComponentPass(ABC):
    """A transform of one graph at a time."""

    roles: frozenset[Role] = frozenset(Role)

    @property
    def name(self) -> str:
        """Name in the journal and in the names of the nodes it makes."""
        return type(self).__name__

    @abstractmethod
    def transform(self, component: Component) -> Outcome:
        """Change the component in place."""

    def run(self, bundle: Bundle) -> None:
        """Transform every component of the pass's roles and journal each."""
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
