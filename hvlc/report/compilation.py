"""Compilation results and their checks as tables. None of the figures was measured on a device."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.report.columns import ABSENT
from hvlc.report.markdown import escaped, table
from hvlc.results import Measured
from hvlc.results.compilation import Compilation, CompiledGraph, GraphCheck

#: Heads of the columns of a check.
CHECK = ("emulated against the CPU", "runs", "noise", "largest error", "of", "cosine", "top-1", "output")
_MB = 1e6


@dataclass(frozen=True)
class CheckedPackage:
    """A compiled package as pages show it.

    Attributes:
        name: of the package.
        made: what was compiled, in a sentence.
        rows: the cells of `CHECK`, a row for each graph that was run.
        missing: what was not checked, and why.
    """

    name: str
    made: str
    rows: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...]


def checked_packages(evaluations: Iterable[Measured]) -> tuple[CheckedPackage, ...]:
    """The compiled packages among what was evaluated, each once."""
    found = {e.name: e.compilation for e in evaluations if e.compilation is not None}
    return tuple(
        CheckedPackage(name, _made(record), tuple(map(_checked, record.checks)), tuple(_missing(record)))
        for name, record in found.items()
    )


def checks_markdown(evaluations: Iterable[Measured]) -> str:
    """A table for each compiled package; nothing where there is none."""
    lines: list[str] = []
    for package in checked_packages(evaluations):
        lines += [f"**{escaped(package.name)}**: {escaped(package.made)}", *table(CHECK, package.rows, left=1)]
        lines += [*(f"- {escaped(gap)}" for gap in package.missing), ""]
    return "\n".join(lines)


def compilation_tables(found: Compilation) -> Group:
    """One line a compiled graph, one line a check, and what was not checked."""
    missing = [Text(gap, style="dim") for gap in _missing(found)]
    return Group(Text(_made(found)), _graphs(found), *([_checks(found)] if found.checks else []), *missing)


def _made(found: Compilation) -> str:
    return f"compiled for {found.target} with onnxruntime-qnn {found.compiler}: every node on the NPU"


def _missing(found: Compilation) -> list[str]:
    return [f"not checked: {gap.what}: {gap.reason}" for gap in found.not_checked]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(columns):
        table.add_column(title, justify="right" if number else "left")
    return table


def _graphs(found: Compilation) -> Table:
    shown = _table("graph", "nodes", "MB", "chip", "NPU", "remarks")
    for graph in found.graphs:
        size, arch = f"{graph.binary_bytes / _MB:.2f}", f"v{graph.htp_arch}"
        shown.add_row(*map(Text, (graph.component, str(graph.nodes), size, graph.chip, arch, _remarks(graph))))
    return shown


def _remarks(graph: CompiledGraph) -> str:
    remarks = [f"in one binary with {', '.join(graph.shared_with)}"] if graph.shared_with else []
    remarks += [f"finalized in mode {graph.mode}: mode {failed.mode} failed" for failed in graph.failed_attempts]
    return "; ".join(remarks)


def _checks(found: Compilation) -> Table:
    shown = _table(*CHECK)
    for check in found.checks:
        shown.add_row(*map(Text, _checked(check)))
    return shown


def _checked(check: GraphCheck) -> tuple[str, ...]:
    """Figures of the output with the most noise; agreement is that of the output that has scores."""
    worst = check.worst
    scores = next((output.top1 for output in check.outputs if output.top1), None)
    cosine = ABSENT if worst.cosine is None else f"{worst.cosine:.6f}"
    agreement = f"{scores.value:.1%} of {scores.n}" if scores else ABSENT
    figures = (f"{worst.noise:.3%}", f"{worst.max_error:.3g}", f"{worst.largest:.3g}", cosine, agreement)
    return (check.component, str(check.runs), *figures, worst.name)
