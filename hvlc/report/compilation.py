"""What a compiler made of a package and how far that was checked, as tables; no figure is a device's."""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.results.compilation import Compilation, CompiledGraph, GraphCheck

_MB = 1e6


def compilation_tables(found: Compilation) -> Group:
    """One line a compiled graph, one line a check, and what was not checked."""
    head = f"compiled for {found.target} with onnxruntime-qnn {found.compiler}: every node on the NPU"
    missing = [Text(f"not checked: {gap.what}: {gap.reason}", style="dim") for gap in found.not_checked]
    return Group(Text(head), _graphs(found), *([_checks(found)] if found.checks else []), *missing)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(columns):
        table.add_column(title, justify="right" if number else "left")
    return table


def _graphs(found: Compilation) -> Table:
    table = _table("graph", "nodes", "MB", "chip", "NPU", "remarks")
    for graph in found.graphs:
        size, arch = f"{graph.binary_bytes / _MB:.2f}", f"v{graph.htp_arch}"
        table.add_row(*map(Text, (graph.component, str(graph.nodes), size, graph.chip, arch, _remarks(graph))))
    return table


def _remarks(graph: CompiledGraph) -> str:
    remarks = [f"in one binary with {', '.join(graph.shared_with)}"] if graph.shared_with else []
    remarks += [f"finalized in mode {graph.mode}: mode {failed.mode} failed" for failed in graph.failed_attempts]
    return "; ".join(remarks)


def _checks(found: Compilation) -> Table:
    table = _table("emulated against the CPU", "runs", "noise", "largest error", "of", "cosine", "top-1", "output")
    for check in found.checks:
        table.add_row(*map(Text, (check.component, str(check.runs), *_figures(check), check.worst.name)))
    return table


def _figures(check: GraphCheck) -> tuple[str, ...]:
    """Of the output with the most noise; agreement is that of the output that has scores."""
    worst = check.worst
    scores = next((output.top1 for output in check.outputs if output.top1), None)
    cosine = "" if worst.cosine is None else f"{worst.cosine:.6f}"
    agreement = f"{scores.value:.1%} of {scores.n}" if scores else ""
    return (f"{worst.noise:.3%}", f"{worst.max_error:.3g}", f"{worst.largest:.3g}", cosine, agreement)
