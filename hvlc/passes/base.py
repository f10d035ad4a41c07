"""Base classes of passes: frozen dataclasses that transform a bundle and report changes and refusals."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from hvlc.graphs.bundle import Bundle, Component, Role, Skip
from hvlc.passes.traits import Trait
from hvlc.targets import SupportAnswer


@dataclass(frozen=True)
class Outcome:
    """Result of a pass on one component: the number of changes, and refusals with reasons."""

    changed: int = 0
    skipped: tuple[Skip, ...] = ()


class TakesOperator(Protocol):
    """The one question that passes ask about what graphs run on (`Target.takes_op`)."""

    def __call__(self, op_type: str, domain: str = "") -> SupportAnswer:
        """Whether an operator may run there, or why not."""


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
