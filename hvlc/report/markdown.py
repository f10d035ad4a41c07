"""Measurements as a Markdown table, for pull requests and READMEs."""

import re
from collections.abc import Sequence

from hvlc.report.columns import COLUMNS, notes
from hvlc.results import Evaluation

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#!~&@$])")


def comparison_markdown(evaluations: Sequence[Evaluation]) -> str:
    """The table of `hvlc.report.terminal.comparison_table` in Markdown, with its notes as a list."""
    lines = [
        _line([column.title for column in COLUMNS]),
        _line(["---:" if column.numeric else ":---" for column in COLUMNS]),
        *(_line([_escaped(column.cell(evaluation)) for column in COLUMNS]) for evaluation in evaluations),
        "",
        *(f"- {_escaped(note)}" for note in notes(evaluations)),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
