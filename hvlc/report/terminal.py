"""Measurements as rich tables."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.report import columns
from hvlc.report.columns import COLUMNS, percent, scored
from hvlc.report.texts import TEXT_COLUMNS, text_notes
from hvlc.results import Agreement, Evaluation, TextEvaluation
from hvlc.results.comparison import SIGNIFICANCE


def evaluation_table(evaluation: Evaluation) -> Table:
    """One evaluation, a line per measurement."""
    summary = evaluation.summary
    title = f"{evaluation.label}, {evaluation.task}, n = {summary.n}"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    if summary.score is not None:
        metrics = " and ".join(sorted({example.metric for example in evaluation.examples}))
        table.add_row(Text(f"score ({metrics})"), Text(scored(summary.score), style="bold"))
        for kind, score in summary.score_by_kind.items() if len(summary.score_by_kind) > 1 else ():
            table.add_row(Text(f"  {kind} ({score.n})"), scored(score))
    table.add_row("exact match", Text(scored(summary.exact_match), style="bold"))
    for kind, score in summary.exact_match_by_kind.items():
        table.add_row(Text(f"  {kind} ({score.n})"), scored(score))
    table.add_row("ANLS", scored(summary.anls))
    for column in columns.COSTS:
        table.add_row(Text(column.title), column.cell(evaluation))
    table.add_row("ran on", Text(evaluation.runs_on))
    if warning := columns.emulation([evaluation]):
        table.add_row("", Text(warning, style="dim"))
    if evaluation.agreement:
        _add_agreement(table, evaluation.agreement)
    for column in columns.FIDELITY if evaluation.fidelity else ():
        table.add_row(Text(column.title), column.cell(evaluation))
    return table


def comparison_table(evaluations: Sequence[Evaluation], *, verdicts: bool = True) -> Group:
    """Several evaluations, two lines each, within 80 columns; below, what can be said about their differences.

    Args:
        evaluations: to show, in this order.
        verdicts: whether each is judged alone below; not where tests that know of each other follow.
    """
    same_n = len({evaluation.summary.n for evaluation in evaluations}) == 1
    shown = [column for column in COLUMNS if column.short and not (same_n and column.title == "n")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in shown:
        name = column.title == "model"
        table.add_column(column.short, justify="right" if column.numeric else "left", no_wrap=not name, overflow="fold")
    for evaluation in evaluations:
        # Text, not str: names are not markup. An interval stands below its score.
        table.add_row(*(Text(_narrow(column.cell(evaluation), column.bare)) for column in shown))
    notes = columns.notes(evaluations)
    return Group(table, *(Text(note, style="dim") for note in (notes if verdicts else notes[-1:])))


def text_table(evaluations: Sequence[TextEvaluation]) -> Group:
    """Evaluations on one text, two lines each, within 80 columns; below, what was read and what the columns mean."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown = [column for column in TEXT_COLUMNS if column.short]
    for column in shown:
        name = column.title == "model"
        table.add_column(column.short, justify="left" if name else "right", no_wrap=not name, overflow="fold")
    for evaluation in evaluations:
        table.add_row(*(Text(_narrow(column.cell(evaluation))) for column in shown))
    return Group(table, Text(text_notes(evaluations), style="dim"))


def _narrow(cell: str, bare: bool = False) -> str:
    """A cell with its interval on a line of its own, or without it."""
    number, _, interval = cell.removesuffix(")").partition(" (")
    return number if bare or not interval else f"{number}\n{interval}"


def _add_agreement(table: Table, agreement: Agreement) -> None:
    same = f"{percent(agreement.same_text.value)}, same tokens {percent(agreement.same_tokens.value)}"
    worse = agreement.p_value < SIGNIFICANCE and agreement.lost > agreement.won
    table.add_row("reference", Text(agreement.reference))
    table.add_row("same answers", same)
    table.add_row("exact match kept", columns.ABSENT if agreement.recovery is None else percent(agreement.recovery))
    table.add_row("difference", Text(columns.verdict(agreement), style="red" if worse else "green"))
