"""HTML page of a comparison: regressions first, their sources, and every example that only one model got right."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hvlc.report import comparison as words
from hvlc.report.gates import quantity
from hvlc.report.layer_plot import LayerPlot, layer_plot
from hvlc.report.page import page_parts
from hvlc.results import Evaluation, Measured, write_whole
from hvlc.results.comparison import Comparison, LayerError, StageError
from hvlc.results.measures import MEASURES

_COLOURS = 8  # that page.css defines
_STRETCHES = {"preprocessing": "tiles", "vision": "vision", "projector": "projector", "stitching": "projector"}
_ROWS = 40  # of a table of differences before the rest is folded


def write_comparison_page(
    path: Path,
    comparison: Comparison,
    evaluations: Sequence[Measured],
    images: Callable[[int], Image.Image | None],
    *,
    title: str,
) -> None:
    """Write a comparison with its examples.

    Args:
        path: the HTML file; an existing one is replaced, and only by a whole one.
        comparison: what differs.
        evaluations: every run, in the comparison's order.
        images: gives the image of the example at a position of the task; None where it has none or is not known.
        title: headline of the page.

    Raises:
        UserError: the evaluations answered different examples, or the page cannot be written.
    """
    answered = [evaluation for evaluation in evaluations if isinstance(evaluation, Evaluation)]
    write_whole(path, page_parts(answered, images, title=title, facts={}, comparison=_view(comparison)))


def _view(comparison: Comparison) -> dict[str, Any]:
    """Values of a comparison that the template shows."""
    order = [run.contestant for run in comparison.runs]
    colours = {
        c.name: (order.index(c.name) if c.name in order else i) % _COLOURS for i, c in enumerate(comparison.contestants)
    }
    names = [name for name in MEASURES if any(name in run.measures for run in comparison.runs)]
    return {
        "record": comparison,
        "headline": words.headline(comparison),
        "colours": colours,
        "labels": [run.label for run in comparison.runs],
        "measures": [
            [MEASURES[n].title, *(quantity(run.measures.get(n), n) for run in comparison.runs)] for n in names
        ],
        "tests_head": words.TESTS_HEAD,
        "tests": words.tests_rows(comparison),
        "tests_note": words.tests_note(comparison) if comparison.tests else "",
        "contestants_head": words.CONTESTANTS_HEAD,
        "contestants": words.contestants_rows(comparison),
        "weight_errors": _plot(comparison.layers, colours),
        "value_errors": _plot(comparison.stages, colours),
        "worst": _worst(comparison),
        "plan": words.plan_summary(comparison),
        "settings": [
            (name, section, words.change_rows(changes[:_ROWS]), len(changes))
            for name, sections in comparison.settings.items()
            for section, changes in sections.items()
        ],
    }


def _plot(rows: Sequence[LayerError] | Sequence[StageError], colours: Mapping[str, int]) -> LayerPlot | None:
    """A plot of errors; without the weights that all models share, of which there are many."""
    stages = {row.stage for row in rows if isinstance(row, StageError)}
    places = [(place, found) for place, found in words.by_contestant(rows) if any(found.values()) or place in stages]
    errors: dict[str, dict[str, float | None]] = {}
    for place, found in places:
        for name, value in found.items():
            errors.setdefault(name, {})[place] = value
    return layer_plot([(place, _stretch(place)) for place, _ in places], errors, colours)


def _stretch(place: str) -> str:
    """The part of the model that a stage or layer belongs to."""
    first = place.split(".", maxsplit=1)[0]
    return _STRETCHES.get(first, first)


def _worst(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Find each candidate's weight that is farthest from the reference's."""
    found = []
    for contestant in comparison.contestants:
        mine = [row for row in comparison.layers if row.contestant == contestant.name]
        if mine and any(row.worst_error for row in mine):
            row = max(mine, key=lambda row: row.worst_error)
            found.append((contestant.name, row.worst, words.error(row.worst_error)))
    return found
