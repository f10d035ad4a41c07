"""Columns and notes of evaluations on a text, shared by terminal, Markdown and page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvlc.errors import UserError
from hvlc.report.columns import ABSENT, interval_text, megabytes, number, scored, significant
from hvlc.results import TextEvaluation


@dataclass(frozen=True)
class TextColumn:
    """One column of a comparison on a text.

    Attributes:
        title: its head, with the unit.
        short: its head where room is scarce, two lines at most; "" leaves it out there.
        cell: the text of an evaluation's cell; an interval follows in brackets.
    """

    title: str
    short: str
    cell: Callable[[TextEvaluation], str]


def _share(evaluation: TextEvaluation) -> str:
    return scored(evaluation.fidelity.top1).replace(" %", "") if evaluation.fidelity else ABSENT


#: The columns of a comparison, left to right.
TEXT_COLUMNS: tuple[TextColumn, ...] = (
    TextColumn("model", "model", lambda e: e.name),
    TextColumn("perplexity", "perplexity", lambda e: interval_text(e.perplexity, 3)),
    TextColumn("ratio", "ratio", lambda e: interval_text(e.agreement.ratio if e.agreement else None, 4)),
    TextColumn("KL, nats", "KL\nnats", lambda e: significant(e.fidelity.kl if e.fidelity else None)),
    TextColumn("same top-1, %", "top-1\n%", _share),
    TextColumn("bits/weight", "bits", lambda e: number(e.bits_per_weight, 2)),
    TextColumn("size, MB", "size\nMB", lambda e: megabytes(e.size_bytes)),
    TextColumn("peak memory, MB", "", lambda e: megabytes(e.peak_memory_bytes)),
)


def text_notes(evaluations: Sequence[TextEvaluation]) -> str:
    """Note on the text, what it ran on, and the meaning of the columns.

    Raises:
        UserError: there is no evaluation, or two read different windows.
    """
    require_same_windows(evaluations)
    first = evaluations[0]
    ran = ", ".join(sorted({f"{e.name} on {e.runs_on}" for e in evaluations}))
    references = sorted({e.agreement.reference for e in evaluations if e.agreement})
    against = f" Ratio, KL and top-1: against {', '.join(references)}, the last two per token." if references else ""
    return (
        f"Text: {first.task} ({first.tokens:,} tokens in {len(first.windows)} windows of {first.window}). Ran: {ran}. "
        f"Brackets are 95 % intervals from resampling windows, after ~ the range of too few.{against} MB: 10^6 bytes."
    )


def require_same_windows(evaluations: Sequence[TextEvaluation]) -> None:
    """Refuse to show evaluations side by side that did not read the same.

    Raises:
        UserError: there is no evaluation, or two read different windows.
    """
    if not evaluations:
        raise UserError("report.empty", "there is no evaluation to report", "evaluate something first")
    first = evaluations[0]
    for other in evaluations[1:]:
        if other.text_digest != first.text_digest:
            cause = f"{first.label} and {other.label} read different windows"
            raise UserError("report.unpaired", cause, "evaluate both on the same text, --tokens and --window")
