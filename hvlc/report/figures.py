"""Plots of sensitivities and Pareto fronts as image files; equal numbers give equal bytes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from hvlc.report.rendering import rendered
from hvlc.results.sensitivity import Front, FrontPoint, Part, Sensitivity

#: Settings of every plot: no salt that changes, small letters, no frame above and at the right.
STYLE = {"svg.hashsalt": "hvlc", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
_CELL = 0.26  # inches of a layer


def draw_sensitivity(found: Sensitivity, files: Sequence[Path]) -> dict[Path, list[bytes]]:
    """A heat map for every format: layers across, parts of a layer down; what is in no layer stands in the first
    column of a row of its own.

    Args:
        found: the damages.
        files: to make, their format by their suffix.

    Returns:
        The content of each.
    """
    rows = list(dict.fromkeys((part.component, part.kind) for part in found.parts))
    layers = 1 + max(part.layer or 0 for part in found.parts)
    values = [_grid(found.parts, rows, layers, index) for index in range(len(found.formats))]
    positive = np.concatenate([grid[grid > 0] for grid in values]) if any((g > 0).any() for g in values) else np.ones(1)
    norm = LogNorm(positive.min(), max(positive.max(), positive.min() * 1.01))
    with mpl.rc_context(STYLE):
        height = (len(rows) * _CELL + 0.8) * len(values)
        figure = Figure((max(4.0, layers * _CELL + 3.0), height), layout="constrained")
        panels = figure.subplots(len(values), 1, squeeze=False)[:, 0]
        for axes, grid, name in zip(panels, values, found.formats, strict=True):
            image = axes.imshow(np.ma.masked_invalid(grid), norm=norm, cmap="magma_r", aspect="auto")
            axes.set_title(name, loc="left")
            several = len({component for component, _ in rows}) > 1
            axes.set_yticks(range(len(rows)), [f"{c} {kind}" if several else kind for c, kind in rows])
            axes.set_xticks(range(0, layers, max(1, layers // 12)))
        panels[-1].set_xlabel("layer")
        label = "loss in nats per token" if found.measured else "relative output error"
        figure.colorbar(image, ax=list(panels), label=label)
        return rendered(figure, files)


def draw_front(front: Front, files: Sequence[Path]) -> dict[Path, list[bytes]]:
    """Damage against bits per weight, predicted, and beside it what was measured.

    Args:
        front: the points.
        files: to make, their format by their suffix.

    Returns:
        The content of each.
    """
    with mpl.rc_context(STYLE):
        figure = Figure((9.0 if front.score else 5.0, 3.4), layout="constrained")
        panels = figure.subplots(1, 2 if front.score else 1, squeeze=False)[0]
        damages = [(point, point.damage) for point in front.points]
        loss = front.predicted == "nats per token"
        _scatter(panels[0], damages, f"predicted {'loss in nats per token' if loss else 'output error, summed'}")
        if all(damage > 0 for _, damage in damages):
            panels[0].set_yscale("log")
        if front.score:
            _scatter(panels[1], [(p, p.measured) for p in front.points if p.measured is not None], front.score)
            if front.reference is not None:
                panels[1].axhline(front.reference, color="gray", linewidth=0.8, linestyle="--", label="float")
        panels[-1].legend(frameon=False)
        return rendered(figure, files)


def _grid(parts: Sequence[Part], rows: Sequence[tuple[str, str]], layers: int, index: int) -> np.ndarray:
    """float64 `[rows, layers]`: the damage of each part in one format, NaN where there is none."""
    grid = np.full((len(rows), layers), np.nan)
    for part in parts:
        grid[rows.index((part.component, part.kind)), part.layer or 0] = part.candidates[index].damage
    return grid


def _scatter(axes: Axes, values: Sequence[tuple[FrontPoint, float]], label: str) -> None:
    mixed = sorted((p.bits_per_weight, value) for p, value in values if not p.uniform)
    axes.plot([x for x, _ in mixed], [y for _, y in mixed], marker="o", markersize=4, label="chosen part by part")
    uniform = [(p, value) for p, value in values if p.uniform]
    axes.plot(
        [p.bits_per_weight for p, _ in uniform],
        [value for _, value in uniform],
        linestyle="",
        marker="x",
        color="black",
        label="one format for all",
    )
    for point, value in uniform:
        axes.annotate(next(iter(point.formats)), (point.bits_per_weight, value), (4, 4), textcoords="offset points")
    axes.set_xlabel("bits per weight")
    axes.set_ylabel(label)
