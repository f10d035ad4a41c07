"""Evaluations as a page shows them: each with a letter and a colour that stay the same throughout."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

from hvlc.results import Evaluation

#: Colours that page.css defines as --run-0 to --run-7; letters tell runs apart that share one.
_COLOURS = 8


@dataclass(frozen=True)
class Run:
    """An evaluation with its letter and colour.

    Attributes:
        letter: "A", "B", ...; after "Z" a number.
        colour: number of its colour.
        evaluation: what was measured.
        reference: letter of the run that it is compared with, if that is on the page.
    """

    letter: str
    colour: int
    evaluation: Evaluation
    reference: str | None


def lettered(evaluations: Sequence[Evaluation]) -> list[Run]:
    """Letters and colours in the order given."""
    letters = [string.ascii_uppercase[i] if i < 26 else str(i + 1) for i in range(len(evaluations))]
    by_label = {evaluation.label: letter for letter, evaluation in zip(letters, evaluations, strict=True)}
    return [
        Run(letter, i % _COLOURS, evaluation, _reference(evaluation, by_label))
        for i, (letter, evaluation) in enumerate(zip(letters, evaluations, strict=True))
    ]


def _reference(evaluation: Evaluation, by_label: dict[str, str]) -> str | None:
    return by_label.get(evaluation.agreement.reference) if evaluation.agreement else None
