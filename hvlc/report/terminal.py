"""Measurements as rich tables."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.report import columns
from hvlc.report.columns import COLUMNS, megabytes, milliseconds, number, percent, scored
from hvlc.results import Agreement, Evaluation, Perplexity


def evaluation_table(evaluation: Evaluation) -> Table:
    """One evaluation, a line per measurement."""
    summary = evaluation.summary
    title = f"{evaluation.label}, {evaluation.task}, n = {summary.n}"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("exact match", Text(scored(summary.exact_match), style="bold"))
    for kind, score in summary.exact_match_by_kind.items():
        table.add_row(Text(f"  {kind} ({score.n})"), scored(score))
    table.add_row("ANLS", scored(summary.anls))
    table.add_row("visual tokens", f"{number(summary.mean_visual_tokens)} per question")
    table.add_row("scale", columns.ABSENT if summary.mean_scale is None else percent(summary.mean_scale, 0))
    table.add_row("time to first token", f"{milliseconds(summary.median_time_to_first_token)} ms (median)")
    table.add_row("tokens/s", number(summary.tokens_per_second, 0))
    table.add_row("peak memory MB", megabytes(evaluation.peak_memory_bytes))
    table.add_row("size MB", megabytes(evaluation.size_bytes))
    table.add_row("ran on", Text(evaluation.runs_on))
    if evaluation.agreement:
        _add_agreement(table, evaluation.agreement)
    return table


def comparison_table(evaluations: Sequence[Evaluation]) -> Group:
    """Several evaluations, two lines each, within 80 columns; below, what can be said about their differences."""
    same_n = len({evaluation.summary.n for evaluation in evaluations}) == 1
    shown = [column for column in COLUMNS if not (same_n and column.title == "n")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in shown:
        name = column.title == "model"
        table.add_column(column.short, justify="right" if column.numeric else "left", no_wrap=not name, overflow="fold")
    for evaluation in evaluations:
        # Text, not str: names are not markup. An interval stands below its score.
        cells = (column.cell(evaluation).removesuffix(")").replace(" (", "\n") for column in shown)
        table.add_row(*(Text(cell) for cell in cells))
    return Group(table, *(Text(note, style="dim") for note in columns.notes(evaluations)))


def perplexity_table(measured: Mapping[str, Perplexity], reference: str | None) -> Table:
    """How models read a text, a line each.

    Args:
        measured: by the model's name.
        reference: the one of them that the others are divided by, if any.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for title in ("perplexity", "tokens", "windows", *(["ratio", "standard error"] if reference else [])):
        table.add_column(title, justify="right")
    for name, found in measured.items():
        cells = [f"{found.value:.4f}", f"{found.tokens:,}", str(len(found.windows))]
        if reference:
            quotient, error = (None, None) if name == reference else found.ratio(measured[reference])
            cells += [number(quotient, 4), number(error, 4)]
        table.add_row(Text(name), *cells)
    return table


def _add_agreement(table: Table, agreement: Agreement) -> None:
    same = f"{percent(agreement.same_text.value)}, same tokens {percent(agreement.same_tokens.value)}"
    worse = agreement.p_value < columns.SIGNIFICANCE and agreement.lost > agreement.won
    table.add_row("reference", Text(agreement.reference))
    table.add_row("same answers", same)
    table.add_row("exact match kept", columns.ABSENT if agreement.recovery is None else percent(agreement.recovery))
    table.add_row("difference", Text(columns.verdict(agreement), style="red" if worse else "green"))
