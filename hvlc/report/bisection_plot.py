"""A plot of a bisection: every stage's own and accumulated error; the same numbers give the same bytes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from hvlc.report.rendering import rendered
from hvlc.results.bisection import Bisection, Deviation

_STYLE = {"svg.hashsalt": "hvlc", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
_LEAST = 1e-8  # what smaller errors, and none at all, are drawn as
_STAGE = 0.18  # inches
_NAMED = 40  # stages up to which each one has its name below


def draw_bisection(found: Bisection, files: Sequence[Path]) -> dict[Path, list[bytes]]:
    """Own errors with their tolerances, and accumulated errors, stage after stage.

    Args:
        found: the bisection.
        files: to make, their format by their suffix.

    Returns:
        The content of each.
    """
    places = range(len(found.stages))
    own = [_height(stage.own) for stage in found.stages]
    reached = [(i, stage.accumulated) for i, stage in enumerate(found.stages) if stage.accumulated is not None]
    with mpl.rc_context(_STYLE):
        figure = Figure((max(5.0, _STAGE * len(found.stages) + 1.5), 3.6), layout="constrained")
        axes = figure.subplots()
        accumulated = [_height(a) for _, a in reached]
        axes.plot([i for i, _ in reached], accumulated, color="tab:gray", linewidth=1.2, label="accumulated")
        tolerances = [max(stage.tolerance, _LEAST) for stage in found.stages]
        axes.step(places, tolerances, where="mid", color="tab:orange", linewidth=0.8, label="tolerance")
        axes.plot(places, own, linestyle="", marker="o", markersize=4, color="tab:blue", label="own")
        wrong = [i for i in places if found.stages[i].departs]
        if wrong:
            axes.plot(wrong, [own[i] for i in wrong], linestyle="", marker="o", color="tab:red", label="departs")
        axes.set_yscale("log")
        axes.set_ylabel("relative error")
        shown = [i for i in places if len(own) <= _NAMED or i in wrong or i % (len(own) // _NAMED + 1) == 0]
        axes.set_xticks(shown, [found.stages[i].name for i in shown], rotation=90)
        axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        return rendered(figure, files)


def _height(found: Deviation) -> float:
    """The relative error; what cannot be compared is drawn as 100 %."""
    return 1.0 if found.relative is None else max(found.relative, _LEAST)
