"""One HTML page of evaluations on a text: table and plots, without examples, script or any request."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from hvlc.report.columns import ABSENT
from hvlc.report.compilation import CHECK, checked_packages
from hvlc.report.templates import asset, page_environment
from hvlc.report.texts import TEXT_COLUMNS, text_notes
from hvlc.results import TextEvaluation, write_whole

_COLOURS = 8  # that page.css defines as --run-0 to --run-7
_TICKS = 4


@dataclass(frozen=True)
class Series:
    """A model's number in every window: places in percent from the left and the top."""

    label: str
    colour: int
    points: list[tuple[float, float, str]]


@dataclass(frozen=True)
class WindowPlot:
    """A number window by window; `ticks` are places in percent from the top, with their text."""

    title: str
    unit: str
    ticks: list[tuple[float, str]]
    series: list[Series]


def write_text_page(path: Path, evaluations: Sequence[TextEvaluation], *, title: str, facts: Mapping[str, str]) -> None:
    """Write evaluations of the same windows side by side.

    Args:
        path: the HTML file; an existing one is replaced, and only by a whole one.
        evaluations: what to show, in this order.
        title: headline of the page.
        facts: what else to state at the top, e.g. versions.

    Raises:
        UserError: the evaluations read different windows, or the page cannot be written.
    """
    notes = text_notes(evaluations)
    held = [evaluation for evaluation in evaluations if evaluation.fidelity]
    plots = [_plot("Perplexity", "of each window", evaluations, evaluations, _perplexities)]
    if held:
        plots.append(_plot("Divergence from the reference", "nats per token", evaluations, held, _divergences))
    environment = page_environment()
    environment.filters["place"] = lambda value: f"{value:.2f}%"
    template = environment.get_template("text.html.j2")
    parts = template.generate(
        title=title,
        facts=dict(facts),
        evaluations=evaluations,
        colours=[i % _COLOURS for i in range(len(evaluations))],
        columns=TEXT_COLUMNS,
        absent=ABSENT,
        notes=notes,
        plots=plots,
        compiled=checked_packages(evaluations),
        check=CHECK,
        style=Markup(asset("page.css")),
    )
    write_whole(path, parts)


def _perplexities(evaluation: TextEvaluation) -> list[float]:
    return [math.exp(window.nll) for window in evaluation.windows]


def _divergences(evaluation: TextEvaluation) -> list[float]:
    return [sequence.kl for sequence in evaluation.fidelity.sequences] if evaluation.fidelity else []


def _plot(
    title: str,
    unit: str,
    everything: Sequence[TextEvaluation],
    shown: Sequence[TextEvaluation],
    values: Callable[[TextEvaluation], list[float]],
) -> WindowPlot:
    """The plot of `shown`, in the colours that they have among `everything`, on an axis from 0."""
    rows = [values(evaluation) for evaluation in shown]
    step = _nice_step(max(max(row) for row in rows) * 1.05 / _TICKS)
    top = step * _TICKS
    series = []
    for evaluation, row in zip(shown, rows, strict=True):
        colour = next(i for i, one in enumerate(everything) if one is evaluation) % _COLOURS
        places = [
            (100 * (i + 0.5) / len(row), 100 * (1 - value / top), f"{evaluation.label}, window {i + 1}: {value:.4g}")
            for i, value in enumerate(row)
        ]
        series.append(Series(evaluation.label, colour, places))
    return WindowPlot(title, unit, [(100 - 25 * i, f"{i * step:.3g}") for i in range(_TICKS + 1)], series)


def _nice_step(least: float) -> float:
    """The smallest 1, 2, 2.5 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least or factor == 10)
