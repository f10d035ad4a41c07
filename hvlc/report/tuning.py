"""Plot of a tuning: what each choice keeps, by its visual tokens and by its time; equal numbers give equal bytes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hvlc.report.figures import STYLE
from hvlc.report.rendering import rendered
from hvlc.results.tuning import MeasuredCandidate, TuningFront


def draw_tuning(front: TuningFront, files: Sequence[Path]) -> dict[Path, list[bytes]]:
    """Share of the full-size score against visual tokens, and beside it against the time to the first token.

    Args:
        front: the candidates.
        files: to make, their format by their suffix.

    Returns:
        The content of each.
    """
    with mpl.rc_context(STYLE):
        figure = Figure((9.0, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        _panel(panels[0], front, [one.tokens for one in front.candidates], "visual tokens")
        _panel(panels[1], front, [1000 * one.seconds for one in front.candidates], "processor ms to the first token")
        panels[0].set_ylabel("share of the full-size score")
        panels[1].legend(frameon=False, loc="lower right")
        return rendered(figure, files)


def _panel(axes: Axes, front: TuningFront, costs: Sequence[float], label: str) -> None:
    """Candidates by one cost, a colour for each encoder; the best ones filled, the choice ringed, the floor dashed."""
    places = list(zip(front.candidates, costs, strict=True))
    for encoder in sorted({one.encoder for one in front.candidates}):
        own = [(cost, _kept(one, front), one.best) for one, cost in places if one.encoder == encoder]
        (drawn,) = axes.plot([x for x, *_ in own], [y for _, y, _ in own], "o", markersize=4, fillstyle="none")
        drawn.set_label(encoder)
        best = [(x, y) for x, y, is_best in own if is_best]
        axes.plot([x for x, _ in best], [y for _, y in best], "o", markersize=4, color=drawn.get_color())
    chosen = front.candidates[front.chosen]
    place = [costs[front.chosen]], [_kept(chosen, front)]
    axes.plot(*place, "o", label="chosen", markersize=9, fillstyle="none", color="black")
    axes.axhline(front.floor, color="gray", linewidth=0.8, linestyle="--", label="floor")
    axes.set_xlabel(label)
    axes.set_xlim(left=0)


def _kept(one: MeasuredCandidate, front: TuningFront) -> float:
    return one.score / front.full_score
