"""Measurements as a Markdown table, for pull requests and READMEs."""

import re
from collections.abc import Sequence

from hvlc.report.columns import COLUMNS, notes
from hvlc.report.gates import SIGNS, compared, headline, quantity, reasons
from hvlc.report.texts import TEXT_COLUMNS, text_notes
from hvlc.results import Evaluation, TextEvaluation
from hvlc.results.gates import Judgement
from hvlc.results.measures import MEASURES

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#!~&@$])")


def comparison_markdown(evaluations: Sequence[Evaluation]) -> str:
    """The table of `hvlc.report.terminal.comparison_table` in Markdown, with its notes as a list."""
    lines = [
        _line([column.title for column in COLUMNS]),
        _line(["---:" if column.numeric else ":---" for column in COLUMNS]),
        *(_line([escaped(column.cell(evaluation)) for column in COLUMNS]) for evaluation in evaluations),
        "",
        *(f"- {escaped(note)}" for note in notes(evaluations)),
    ]
    return "\n".join(lines) + "\n"


def judgement_markdown(judgement: Judgement) -> str:
    """Gates and scores for a comment on a pull request: what broke first, then every gate, then every number."""
    shown = [*judgement.references, *judgement.evaluations]
    gates = [
        [
            SIGNS[outcome.verdict],
            evaluation.label,
            outcome.gate.text,
            quantity(outcome.measured, outcome.gate.metric),
            compared(outcome),
            outcome.gate.reason,
        ]
        for evaluation in judgement.evaluations
        for outcome in evaluation.outcomes
    ]
    names = [name for name in MEASURES if any(name in evaluation.measures for evaluation in shown)]
    scores = [[name, *(quantity(evaluation.measures.get(name), name) for evaluation in shown)] for name in names]
    ran = sorted({f"{evaluation.label} ran on {evaluation.runs_on}" for evaluation in shown})
    lines = [
        f"### {escaped(headline(judgement))}",
        "",
        *(f"- {escaped(reason)}" for reason in reasons(judgement)),
        *table(["", "model", "gate", "measured", "times the reference", "why"], gates, left=6),
        *table(["metric", *(evaluation.label for evaluation in shown)], scores, left=1),
        f"Brackets are 95 % intervals, after \\~ the range of too few examples. {escaped('; '.join(ran))}.",
    ]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """A table with an empty line before and after it; all columns but the first ones are aligned right."""
    aligned = [":---" if column < left else "---:" for column in range(len(head))]
    return [
        "",
        _line([escaped(cell) for cell in head]),
        _line(aligned),
        *(_line([escaped(cell) for cell in row]) for row in rows),
        "",
    ]


def text_markdown(evaluations: Sequence[TextEvaluation]) -> str:
    """The table of `hvlc.report.terminal.text_table` in Markdown, with its note as a list."""
    lines = [
        _line([column.title for column in TEXT_COLUMNS]),
        _line([":---", *["---:"] * (len(TEXT_COLUMNS) - 1)]),
        *(_line([escaped(column.cell(evaluation)) for column in TEXT_COLUMNS]) for evaluation in evaluations),
        "",
        f"- {escaped(text_notes(evaluations))}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Text as Markdown shows it, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
