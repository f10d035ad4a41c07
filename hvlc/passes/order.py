"""Lists of passes that check the order: every required trait must hold before any pass runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hvlc.errors import HvlcError
from hvlc.graphs.bundle import Bundle
from hvlc.passes.base import Pass
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class PassList:
    """The passes of one phase, in the order in which they run.

    Attributes:
        phase: its name, for errors.
        given: traits that hold before the first pass.
        passes: what runs.

    Raises:
        HvlcError: a pass requires a trait that does not hold when its turn comes (a bug in `hvlc.passes.lists`).
    """

    phase: str
    given: frozenset[Trait]
    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        self._held()

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    @property
    def ensured(self) -> frozenset[Trait]:
        """Traits that hold after the last pass."""
        return self._held()

    def then(self, phase: str, *passes: Pass) -> "PassList":
        """The list of a later phase, which starts from what this one leaves."""
        return PassList(phase, self.ensured, passes)

    def run(self, bundle: Bundle) -> None:
        """Run every pass over a bundle, in place."""
        for step in self.passes:
            step.run(bundle)

    def _held(self) -> frozenset[Trait]:
        held = self.given
        for place, step in enumerate(self.passes):
            missing = sorted(step.requires - held)
            if missing:
                raise self._wrong_order(place, missing[0])
            held = (held - step.ends) | step.promises
        return held

    def _wrong_order(self, place: int, missing: Trait) -> HvlcError:
        """The error that names a pass, the trait that it lacks, and the pass to look at."""
        before, step, after = self.passes[:place], self.passes[place], self.passes[place + 1 :]
        ended = [other.name for other in before if missing in other.ends]
        late = [other.name for other in after if missing in other.promises]
        if ended:
            why = f"which {ended[-1]} ends before it"
        elif late:
            why = f"which {late[0]} promises only after it"
        else:
            others = sorted(kind.__name__ for kind in _kinds(Pass) if missing in kind.promises)
            why = f"which {' or '.join(others)} promises, and no pass before it" if others else "which no pass promises"
        cause = f"internal error: in phase {self.phase!r}, {step.name} requires {missing}, {why}"
        return HvlcError("pass.order", cause, "please report it")


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    """Every class below another that has been imported."""
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)
