"""Bisection results as terminal tables and as Markdown: the first stage that departs from the reference."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.report.columns import ABSENT
from hvlc.results.bisection import Bisection, StageResult

_TITLES = ("stage", "own error", "tolerance", "accumulated", "computes with", "cosine", "largest difference")
_TERMINAL = 5  # columns of them that a terminal has room for
_NUMBERS = frozenset({"own error", "tolerance", "accumulated", "cosine"})

#: Names of a value's indices, by the first part of its stage's name.
_AXES = {
    "tokenization": ("position",),
    "resolution": ("image",),
    "preprocessing": ("tile", "channel", "row", "column"),
    "vision": ("tile", "patch", "channel"),
    "projector": ("tile", "cell", "channel"),
    "stitching": ("visual token", "channel"),
    "sampling": ("token",),
}
_POSITIONS = ("position", "channel")

_EXPLAINED = (
    "Own error: the stage on the reference's inputs, relative to what is expected of it; of a layer, to what it adds. "
    "Accumulated: on the package's own inputs."
)


def headline(found: Bisection) -> str:
    """The verdict in a line."""
    stage = found.departing
    if stage is None:
        return f"{found.package} does not depart from {found.reference}: every stage is within its tolerance"
    return f"{found.package} departs from {found.reference} at {stage.name}: {_reason(stage)}"


def _reason(stage: StageResult) -> str:
    own = stage.own
    if own.relative is None:
        if own.shape != own.expected_shape:
            return stage.detail or f"shape {list(own.shape)} where {list(own.expected_shape)} is expected"
        return f"a value at {_place(stage)} is not finite"
    if stage.tolerance == 0:
        return f"{own.relative:.1%} of the values differ"
    return f"an error of {number(own.relative)}, and {number(stage.tolerance)} is tolerated"


def _evidence(found: Bisection) -> list[str]:
    """Evidence for the verdict."""
    stage = found.departing
    if stage is None:
        return []
    values = [] if stage.own.found is None else [f"largest difference: {_difference(stage)}"]
    return [*found.hints, *values]


def bisection_tables(found: Bisection) -> Group:
    """The verdict, what speaks for it, and every stage."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for title in _TITLES[:_TERMINAL]:
        table.add_column(title, justify="right" if title in _NUMBERS else "left", no_wrap=title in _NUMBERS)
    for stage in found.stages:
        style = "bold red" if stage.name == found.departs else "yellow" if stage.departs else ""
        table.add_row(*(Text(cell, overflow="fold") for cell in _cells(stage)[:_TERMINAL]), style=style)
    style = "bold red" if found.departs else "bold green"
    lines = [Text(f"- {line}") for line in _evidence(found)]
    notes = [Text(line, style="dim") for line in _notes(found)]
    return Group(Text(headline(found), style=style), *lines, table, *notes)


def bisection_markdown(found: Bisection) -> str:
    """The same in Markdown."""
    lines = [
        f"### {_escaped(headline(found))}",
        "",
        *(f"- {_escaped(line)}" for line in _evidence(found)),
        *([""] if found.departs else []),
        _line(_TITLES),
        _line(["---:" if title in _NUMBERS else ":---" for title in _TITLES]),
        *(_line([_escaped(cell) for cell in _cells(stage)], bold=stage.departs) for stage in found.stages),
        "",
        *(f"- {_escaped(line)}" for line in _notes(found)),
    ]
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    """A relative error with two digits: 0, 3.4e-07, 0.052."""
    if value is None:
        return ABSENT
    return f"{value:.2g}" if value == 0 or value >= 1e-3 else f"{value:.1e}"


def _cells(stage: StageResult) -> list[str]:
    own, accumulated = stage.own, stage.accumulated
    return [
        stage.name,
        number(own.relative),
        number(stage.tolerance),
        ABSENT if accumulated is None else number(accumulated.relative),
        stage.precision,
        ABSENT if own.cosine is None else f"{own.cosine:.4f}",
        _difference(stage),
    ]


def _difference(stage: StageResult) -> str:
    own = stage.own
    if own.shape != own.expected_shape and own.relative is None:
        return stage.detail or f"{list(own.shape)} for {list(own.expected_shape)}"
    if own.place is None or own.max_abs == 0:
        return stage.detail or "none"
    values = [ABSENT if value is None else f"{value:.4g}" for value in (own.found, own.expected)]
    more = f" ({stage.detail})" if stage.detail else ""
    return f"{values[0]} where {values[1]} is expected, at {_place(stage)}{more}"


def _place(stage: StageResult) -> str:
    kind = "projector" if stage.name.startswith("vision_") else stage.name.partition(".")[0]  # of a compiled encoder
    axes = _AXES.get(kind, _POSITIONS)
    named = (f"{axis} {index}" for axis, index in zip(axes, stage.own.place or (), strict=False))
    return ", ".join(named)


def _notes(found: Bisection) -> list[str]:
    asked = f"prompt of {found.positions} tokens, {len(found.expected_answer)} of the answer"
    seen = f", {', '.join(found.images)} through encoder {found.encoder}" if found.images else ""
    vrc = f", resolution compressor {'on' if found.vrc else 'off'}" if found.images else ""
    changed = f"not as they were built: {', '.join(found.changed_files)}"
    return [
        _EXPLAINED,
        f"{found.package} on {found.package_runs_on}, {found.reference} on {found.reference_runs_on}; "
        f"{asked}{seen}{vrc}",
        *found.notes,
        *([changed] if found.changed_files else []),
    ]


def _line(cells: Sequence[str], *, bold: bool = False) -> str:
    return f"| {' | '.join(f'**{cell}**' if bold and cell else cell for cell in cells)} |"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")
