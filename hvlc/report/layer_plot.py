"""Geometry of the plot of errors by layer, in shares of its size; comparison.html.j2 draws it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hvlc.report.plots import Tick

_FLOOR = 1e-9  # relative: float32 knows no smaller one that matters


@dataclass(frozen=True)
class Mark:
    """An error; places in percent from the left and the top."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Line:
    """One model's errors; `segments` join neighbouring layers that both have one: (x, y, x, y)."""

    name: str
    colour: int
    marks: list[Mark]
    segments: list[tuple[float, float, float, float]]


@dataclass(frozen=True)
class LayerPlot:
    """Relative errors by layer on a logarithmic axis; 0 lies on its lowest line.

    Attributes:
        y_ticks: powers of ten, from the top.
        groups: names of stretches of layers: left end, width and name.
        lines: one a model.
    """

    y_ticks: list[Tick]
    groups: list[tuple[float, float, str]]
    lines: list[Line]


def layer_plot(
    places: Sequence[tuple[str, str]],
    errors: Mapping[str, Mapping[str, float | None]],
    colours: Mapping[str, int],
) -> LayerPlot | None:
    """A plot of errors, or None where all of them are 0.

    Args:
        places: name and group of each place, in order.
        errors: of each model by place; None and missing ones have no mark.
        colours: number of each model's colour.
    """
    known = [v for row in errors.values() for v in row.values() if v]
    if not known:
        return None
    low = max(_FLOOR, min(known))
    bottom, top = (
        math.floor(math.log10(low)) - 1,
        max(math.ceil(math.log10(max(known))), math.floor(math.log10(low)) + 1),
    )
    step = max(1, math.ceil((top - bottom) / 6))
    powers = list(range(top, bottom, -step))
    ticks = [Tick(_height(10.0**power, bottom, top), _power(power)) for power in powers] + [Tick(100.0, "0")]
    lines = [_line(name, colours[name], places, row, bottom, top) for name, row in errors.items()]
    return LayerPlot(ticks, _groups(places), lines)


def _line(
    name: str, colour: int, places: Sequence[tuple[str, str]], row: Mapping[str, float | None], bottom: int, top: int
) -> Line:
    marks: list[Mark] = []
    segments: list[tuple[float, float, float, float]] = []
    previous: Mark | None = None
    for position, (place, _) in enumerate(places):
        value = row.get(place)
        if value is None:
            previous = None
            continue
        x = 100 * (position + 0.5) / len(places)
        mark = Mark(x, _height(value, bottom, top), f"{name}, {place}: {100 * value:.3g} %")
        if previous is not None:
            segments.append((previous.x, previous.y, mark.x, mark.y))
        marks.append(mark)
        previous = mark
    return Line(name, colour, marks, segments)


def _height(value: float, bottom: int, top: int) -> float:
    """Place in percent from the top."""
    if value <= 10.0**bottom:
        return 100.0
    return 100 * (top - math.log10(value)) / (top - bottom)


def _power(power: int) -> str:
    """A power of ten as percent, where that reads well."""
    return f"{10.0 ** (power + 2):g} %" if -6 <= power <= 2 else f"1e{power}"


def _groups(places: Sequence[tuple[str, str]]) -> list[tuple[float, float, str]]:
    """Stretches of neighbouring places of one group."""
    found: list[tuple[int, int, str]] = []
    for position, (_, group) in enumerate(places):
        if found and found[-1][2] == group:
            found[-1] = (found[-1][0], position + 1, group)
        else:
            found.append((position, position + 1, group))
    return [(100 * start / len(places), 100 * (stop - start) / len(places), name) for start, stop, name in found]
