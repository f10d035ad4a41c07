"""Sensitivities and Pareto fronts as terminal tables."""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.report.columns import ABSENT, number
from hvlc.results.sensitivity import Candidate, Front, Sensitivity


def sensitivity_tables(found: Sensitivity, top: int) -> Group:
    """The parts that had better stay large first.

    Args:
        found: the damages.
        top: how many parts to list; 0 is all.
    """
    shown = found.dearest_first[: top or None]
    what = f"{found.tokens:,} tokens of {found.calibration}" if found.measured else f"{found.calibration}, no answers"
    titles = [title for name in found.formats for title in (name, *(["loss"] if found.measured else []))]
    table = _table("part", *titles, "per MB")
    for part in shown:
        price = ABSENT if part.price is None else _small(part.price * 1e6)
        cells = [cell for candidate in part.candidates for cell in _damage(candidate)]
        table.add_row(Text(part.name, overflow="fold"), *cells, price)
    sums = [sum(part.candidates[i].damage for part in found.parts) for i in range(len(found.formats))]
    blank = [""] if found.measured else []
    table.add_section()
    table.add_row("all parts", *(cell for s in sums for cell in (*blank, _small(s))), "")
    left = len(found.parts) - len(shown)
    return Group(
        Text(f"{found.recipe} on {found.target}, solver {found.solver}: {what}", style="bold"),
        table,
        Text(
            "Under a format: squared error of the part's output, relative. Loss: divergence of the model's answers in "
            "nats per token. Per MB: what each saved MB costs; dearest first."
            f"{f' {left} parts are not shown.' if left else ''}",
            style="dim",
        ),
    )


def front_table(front: Front) -> Table:
    """The points of a front, a line each."""
    measured = [front.score, "over float"] if front.score else []
    table = _table("recipe", "bits", "MB", f"predicted {_quantity(front)}", *measured, "formats")
    for point in front.points:
        cells = [f"{point.bits_per_weight:.3f}", f"{point.package_bytes / 1e6:.2f}", _small(point.damage)]
        if front.score:
            over = point.measured / front.reference if point.measured is not None and front.reference else None
            cells += [number(point.measured, 4), number(over, 4)]
        formats = "\n".join(f"{count} {name}" for name, count in point.formats.items())
        table.add_row(Text(point.name, style="dim" if point.uniform else "", overflow="fold"), *cells, formats)
    return table


def _quantity(front: Front) -> str:
    return "loss" if front.predicted == "nats per token" else "error"


def _damage(candidate: Candidate) -> list[str]:
    error = f"{_small(100 * candidate.output_error)} %"
    return [error] if candidate.loss is None else [error, _small(candidate.loss)]


def _small(value: float) -> str:
    return f"{value:.2g}"


def _table(first: str, *numeric: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for column in numeric:
        table.add_column(column, justify="right", no_wrap=True)
    return table
