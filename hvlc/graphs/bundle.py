"""The bundle: a model as named components, the wires between them, and the journal of the passes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.facts import Facts
from hvlc.graphs.placement import Phase, Placement, Provider


class Role(StrEnum):
    """Purpose of a component; recipes and targets name roles, never components."""

    FRONT = "front"
    VISION_ENCODER = "vision_encoder"
    VISION_MERGER = "vision_merger"
    VISION_ROUTER = "vision_router"
    EMBEDDING = "embedding"
    DECODER = "decoder"


@dataclass
class Component:
    """One graph of the bundle.

    Attributes:
        name: unique in the bundle; also the file's stem in the package.
        role: what it is for.
        model: the graph, weights lazy.
        data_group: components of one group share one external data file.
        phase: when it runs.
        placement: the processor that it is made for.
        reason: why it is placed there; empty where nothing else could be.
        provider: that its session is told to use; None where the runtime's own choice is right.
    """

    name: str
    role: Role
    model: ir.Model
    data_group: str
    phase: Phase = Phase.ALWAYS
    placement: Placement = Placement.CPU
    reason: str = ""
    provider: Provider | None = None

    @property
    def graph(self) -> ir.Graph:
        """The component's main graph."""
        return self.model.graph


@dataclass(frozen=True)
class Wire:
    """`source` component's output feeds `target` component's input, both as "component.value"."""

    source: str
    target: str


@dataclass(frozen=True)
class Skip:
    """Something a step declined, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class JournalEntry:
    """Result of one step on one component: the number of changes, refusals, seconds."""

    step: str
    component: str
    changed: int
    skipped: tuple[Skip, ...] = ()
    seconds: float = 0.0


@dataclass
class Bundle:
    """A whole model on its way to a package.

    Passes change a bundle in place, so it serves once. Nothing copies it: an export reads no weights and takes some
    tenths of a second, so a workflow that needs the model in an earlier state (a calibration walks through it in float
    while the package's bundle is quantized already) exports it again.

    Attributes:
        model_type: transformers' name of the architecture.
        components: by name, in the order they run.
        wires: connections between components.
        facts: sizes, token ids and image rule that passes, package and runtime need.
        journal: every step so far.
    """

    model_type: str
    components: dict[str, Component] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    journal: list[JournalEntry] = field(default_factory=list)

    def add(self, component: Component) -> None:
        """Add a component under its own name."""
        self.components[component.name] = component

    def with_role(self, role: Role) -> list[Component]:
        """The components of one role."""
        return [c for c in self.components.values() if c.role is role]

    def check_wires(self) -> None:
        """Hold every wire's two ends together: dtype, rank and fixed dimensions.

        Raises:
            HvlcError: an end is missing or the two do not fit (a bug in an exporter or pass).
        """
        for wire in self.wires:
            source = self._end(wire.source, outputs=True)
            target = self._end(wire.target, outputs=False)
            if source.dtype != target.dtype:
                raise HvlcError(
                    "bundle.wire", f"{wire.source} is {source.dtype}, {wire.target} wants {target.dtype}", "report it"
                )
            if source.shape is None or target.shape is None:
                raise HvlcError("bundle.wire", f"{wire.source} or {wire.target} has no shape", "report it")
            pairs = list(zip(source.shape, target.shape, strict=False))
            fixed = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
            if len(source.shape) != len(target.shape) or any(a != b for a, b in fixed):
                raise HvlcError(
                    "bundle.wire",
                    f"{wire.source} {source.shape} does not fit {wire.target} {target.shape}",
                    "report it",
                )

    def _end(self, end: str, *, outputs: bool) -> ir.Value:
        name, _, value = end.partition(".")
        if name in self.components:
            graph = self.components[name].graph
            for candidate in graph.outputs if outputs else graph.inputs:
                if candidate.name == value:
                    return candidate
        raise HvlcError("bundle.wire", f"no {'output' if outputs else 'input'} {end}", "report it")

    @contextmanager
    def step(self, name: str, component: str) -> Iterator[Callable[[int, tuple[Skip, ...]], None]]:
        """Time a step; the yielded function records its count and refusals."""
        started = time.perf_counter()
        result: list[tuple[int, tuple[Skip, ...]]] = []

        def record(changed: int, skipped: tuple[Skip, ...] = ()) -> None:
            result.append((changed, skipped))

        yield record
        changed = sum(c for c, _ in result)
        skipped = tuple(s for _, some in result for s in some)
        self.journal.append(JournalEntry(name, component, changed, skipped, time.perf_counter() - started))
