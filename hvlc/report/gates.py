"""Gate results as tables: broken gates first, then every gate."""

from collections.abc import Mapping
from types import MappingProxyType

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.report.columns import ABSENT
from hvlc.results import Interval
from hvlc.results.gates import GateOutcome, GateVerdict, Judgement
from hvlc.results.measures import MEASURES
from hvlc.results.units import written, written_ends

#: Sign before a gate, by its verdict.
SIGNS: Mapping[GateVerdict, str] = MappingProxyType(
    {GateVerdict.PASSED: "✅", GateVerdict.UNDECIDED: "⚠️", GateVerdict.BROKEN: "❌"}
)

_STYLES: Mapping[GateVerdict, str] = {
    GateVerdict.PASSED: "green",
    GateVerdict.UNDECIDED: "yellow",
    GateVerdict.BROKEN: "bold red",
}


def headline(judgement: Judgement) -> str:
    """Number of gates, and of broken ones, in words."""
    count, broken = len(judgement.outcomes), len(judgement.found(GateVerdict.BROKEN))
    undecided = len(judgement.found(GateVerdict.UNDECIDED))
    of = f"{count} gate{'' if count == 1 else 's'}"
    if broken:
        return f"{SIGNS[GateVerdict.BROKEN]} {broken} of {of} broken"
    if undecided:
        return f"{SIGNS[GateVerdict.UNDECIDED]} {undecided} of {of} undecided, none broken"
    return f"{SIGNS[GateVerdict.PASSED]} {of} passed"


def reasons(judgement: Judgement) -> list[str]:
    """A sentence for every gate that did not pass, the broken ones first."""
    return [
        f"{SIGNS[verdict]} {outcome.message}"
        for verdict in (GateVerdict.BROKEN, GateVerdict.UNDECIDED)
        for outcome in judgement.found(verdict)
    ]


def quantity(number: Interval | None, metric: str) -> str:
    """A number and its interval, or after ~ the range of too few values; the sign for an absent one."""
    if number is None:
        return ABSENT
    unit = MEASURES[metric].unit
    if number.method == "exact":
        return written(number.value, unit)
    sign = "~" if number.method == "range" else ""
    return f"{written(number.value, unit)} ({sign}{written_ends(number.low, number.high, unit)})"


def compared(outcome: GateOutcome) -> str:
    """A number's ratio to the reference's; the sign for absence if the gate is absolute."""
    ratio = outcome.ratio
    if ratio is None:
        return ABSENT
    if ratio.method == "exact":
        return f"{written(ratio.value, '')}x"
    return f"{written(ratio.value, '')}x ({written_ends(ratio.low, ratio.high, '')})"


def judgement_tables(judgement: Judgement) -> Group:
    """Sentences on what broke or is undecided; then a table of all gates, a few lines each within 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    several = len(judgement.evaluations) > 1
    for title in ["", *(["model"] if several else []), "gate", "measured", "times the reference"]:
        table.add_column(title, overflow="fold")
    for evaluation in judgement.evaluations:
        for outcome in evaluation.outcomes:
            cells = [
                *([evaluation.label] if several else []),
                outcome.gate.text,
                quantity(outcome.measured, outcome.gate.metric),
                compared(outcome),
            ]
            verdict = Text(outcome.verdict, style=_STYLES[outcome.verdict])
            table.add_row(verdict, *(Text(cell.replace(" (", "\n(")) for cell in cells))
    styles = [
        _STYLES[outcome.verdict] for v in (GateVerdict.BROKEN, GateVerdict.UNDECIDED) for outcome in judgement.found(v)
    ]
    lines = [Text(reason, style=style) for reason, style in zip(reasons(judgement), styles, strict=True)]
    return Group(*lines, table)
