"""Geometry of a page's plots, in shares of the plot's width and height; page.html.j2 draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hvlc.report.columns import milliseconds, number, percent, scored
from hvlc.report.runs import Run
from hvlc.results import Score

_BINS = 40


@dataclass(frozen=True)
class Tick:
    """A line of the axis: `at` is its place in percent."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A score with its interval; places in percent."""

    run: Run
    at: float
    low: float
    high: float
    text: str
    title: str


@dataclass(frozen=True)
class DotPlot:
    """Exact match per kind: a row of the plot for each run, grouped by kind."""

    ticks: list[Tick]
    groups: list[tuple[str, int, list[Dot]]]


@dataclass(frozen=True)
class Histogram:
    """Histogram of the numbers of visual tokens: `bars` are (left, width, height) in percent."""

    runs: list[Run]
    text: str
    bars: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Histograms:
    """Histograms over one axis."""

    ticks: list[Tick]
    rows: list[Histogram]


@dataclass(frozen=True)
class Point:
    """A run by its cost and its score; places in percent from the left and the top."""

    run: Run
    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Scatter:
    """Exact match against the time to the first token."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]


def score_by_kind(runs: Sequence[Run]) -> DotPlot:
    """Exact match of all examples, then of each kind if there are several."""
    first = runs[0].evaluation.summary
    kinds = list(first.exact_match_by_kind) if len(first.exact_match_by_kind) > 1 else []
    groups = [("all", first.n, [(run, run.evaluation.summary.exact_match) for run in runs])]
    for kind in kinds:
        scores = [(run, run.evaluation.summary.exact_match_by_kind[kind]) for run in runs]
        groups.append((kind, scores[0][1].n, scores))
    floor = _floor([score for _, _, scores in groups for _, score in scores])
    return DotPlot(
        ticks=[Tick(_place(share, floor), percent(share, 0)) for share in _score_ticks(floor)],
        groups=[(kind, n, [_dot(run, score, floor) for run, score in scores]) for kind, n, scores in groups],
    )


def visual_tokens(runs: Sequence[Run]) -> Histograms:
    """Visual tokens per question; runs with the same numbers share a histogram."""
    together: dict[tuple[int, ...], list[Run]] = {}
    for run in runs:
        together.setdefault(tuple(example.visual_tokens for example in run.evaluation.examples), []).append(run)
    step = _nice_step(max(max(counts) for counts in together) / 4)
    top = step * math.ceil((max(max(counts) for counts in together) + 1) / step)
    rows = [Histogram(sharing, _about(counts, sharing), _bars(counts, top)) for counts, sharing in together.items()]
    return Histograms([Tick(100 * i * step / top, f"{i * step:g}") for i in range(round(top / step) + 1)], rows)


def score_by_time(runs: Sequence[Run]) -> Scatter:
    """Exact match against the median time to the first token, from 0 ms."""
    times = [1000 * run.evaluation.summary.median_time_to_first_token.value for run in runs]
    step = _nice_step(max(times) * 1.1 / 4 or 1)
    top = step * math.ceil(max(times) * 1.1 / step or 1)
    floor = _floor([run.evaluation.summary.exact_match for run in runs])
    points = []
    for run, time in zip(runs, times, strict=True):
        score = run.evaluation.summary.exact_match
        y, low, high = (100 - _place(share, floor) for share in (score.value, score.low, score.high))
        title = f"{run.evaluation.label}: {scored(score)}, {milliseconds(time / 1000)} ms"
        points.append(Point(run, 100 * time / top, y, low, high, title))
    return Scatter(
        [Tick(100 * i * step / top, f"{i * step:g}") for i in range(round(top / step) + 1)],
        [Tick(100 - _place(share, floor), percent(share, 0)) for share in _score_ticks(floor)],
        points,
    )


def _dot(run: Run, score: Score, floor: float) -> Dot:
    low, at, high = (_place(share, floor) for share in (score.low, score.value, score.high))
    return Dot(run, at, low, high, percent(score.value), f"{run.evaluation.label}: {scored(score)}")


def _floor(scores: Sequence[Score]) -> float:
    """Beginning of the axis: 0 unless all scores are high."""
    low = min(score.low for score in scores)
    return math.floor(low * 10) / 10 if low >= 0.5 else 0.0


def _score_ticks(floor: float) -> list[float]:
    step = 0.25 if floor == 0 else 0.1 if floor < 0.85 else 0.02
    return [1 - i * step for i in range(round((1 - floor) / step), -1, -1)]


def _place(share: float, floor: float) -> float:
    return 100 * (share - floor) / (1 - floor)


def _nice_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least or factor == 10)


def _about(counts: tuple[int, ...], sharing: Sequence[Run]) -> str:
    summary = sharing[0].evaluation.summary
    scale = f", scale {percent(summary.mean_scale, 0)}" if summary.mean_scale is not None else ""
    return f"mean {number(summary.visual_tokens.value)}, {min(counts)} to {max(counts)}{scale}"


def _bars(counts: Sequence[int], top: float) -> list[tuple[float, float, float]]:
    bins = [0] * _BINS
    for count in counts:
        bins[min(_BINS - 1, int(count / top * _BINS))] += 1
    width = 100 / _BINS
    return [(i * width, width, 100 * size / max(bins)) for i, size in enumerate(bins) if size]
