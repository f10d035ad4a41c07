"""Placement of each component as a table: provider, reason, compiled target, and whether it was run."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from hvlc.graphs.placement import Phase, Placement
from hvlc.manifest.manifest import ComponentEntry, Manifest
from hvlc.report.columns import ABSENT
from hvlc.results.base import Record
from hvlc.results.compilation import Compilation

_WHEN = {Phase.ALWAYS: "", Phase.PROMPT: "prompt", Phase.TOKEN: "each token"}


class ComponentPlacement(Record):
    """One component.

    Attributes:
        component: its name.
        runs_on: the processor, with the provider where the session is told one.
        when: "prompt" or "each token" of a decoder that has a graph for each; "" for always.
        compiled_for: the chip, with the generation of its NPU; None where the runtime compiles the graph.
        checked: what is known of the compiled graph's values; None where there is none.
        why: why it runs there.
    """

    component: str
    runs_on: str
    when: str
    compiled_for: str | None
    checked: str | None
    why: str


def placed_components(manifest: Manifest, compilation: Compilation | None) -> tuple[ComponentPlacement, ...]:
    """Every component of a package.

    Args:
        manifest: of it.
        compilation: the record of its compilation, if there is one.
    """
    return tuple(
        ComponentPlacement(
            component=name,
            runs_on=str(entry.placement) + (f" ({entry.provider.name})" if entry.provider else ""),
            when=_WHEN[entry.phase],
            compiled_for=f"{entry.compiled.chip}, v{entry.compiled.htp_arch}" if entry.compiled else None,
            checked=_checked(name, compilation) if entry.compiled else None,
            why=_why(entry, manifest.sources.target_name),
        )
        for name, entry in manifest.components.items()
    )


def _checked(name: str, compilation: Compilation | None) -> str:
    """Result of the check of a compiled graph's values, in words."""
    for check in compilation.checks if compilation else ():
        if check.component == name:
            return f"emulated, {check.worst.noise:.2%} noise"
    gaps = {gap.what: gap.reason for gap in compilation.not_checked} if compilation else {}
    return f"not checked: {gaps.get(name) or gaps.get('every compiled graph') or 'no record says so'}"


def _why(entry: ComponentEntry, target: str) -> str:
    if entry.reason:
        return entry.reason
    if entry.placement is Placement.CPU:
        return f"{target} is for the CPU"
    return f"its operators hold to the rules of {target}"


def placement_table(placed: Sequence[ComponentPlacement]) -> Table:
    """A line for each component."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("component", "runs on", "when", "compiled for", "checked", "why"):
        table.add_column(title, overflow="fold")
    for one in placed:
        cells = (one.component, one.runs_on, one.when, one.compiled_for or ABSENT, one.checked or ABSENT, one.why)
        table.add_row(*map(Text, cells))
    return table
