"""A number by its reference's, pair by pair.

Two models that answer the same examples share the examples' difficulty and length, so what they differ by is known
much better than each of the two numbers is. A ratio is therefore never made of two intervals: it is made of the pairs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hvlc.errors import UserError
from hvlc.results import Evaluation, ExampleResult, Interval, Measured, ScoredWindow, TextEvaluation
from hvlc.results.base import Z, wilson
from hvlc.results.gates import Ratio

_RESAMPLES = 2000
_TAIL = 0.025
_SEED = 0


@dataclass(frozen=True)
class _Statistic:
    """Functions that make a number of observations.

    Attributes:
        of: what is taken from an example, or from a window of a text.
        total: the number of observations float64 `[n, k]`.
    """

    of: Callable[[ExampleResult], tuple[float, ...]] | Callable[[ScoredWindow], tuple[float, ...]]
    total: Callable[[np.ndarray], float]


def _quotient(columns: np.ndarray) -> float:
    above, below = columns.sum(0)
    return float(above / below) if below else math.nan


def _mean(columns: np.ndarray) -> float:
    return float(columns.mean())


def _quantile(q: float) -> Callable[[np.ndarray], float]:
    return lambda columns: float(np.quantile(columns, q))


def _reading(window: ScoredWindow) -> tuple[float, ...]:
    return window.nll * window.tokens, window.tokens


#: Measures that have one observation of each example or window. Others are exact, or are about two models already.
_STATISTICS: Mapping[str, _Statistic] = {
    "exact_match": _Statistic(lambda e: (e.exact,), _mean),
    "anls": _Statistic(lambda e: (e.anls,), _mean),
    "score": _Statistic(lambda e: (e.score,), _mean),
    "visual_tokens": _Statistic(lambda e: (e.visual_tokens,), _mean),
    "prompt_tokens": _Statistic(lambda e: (e.prompt_tokens,), _mean),
    "generated_tokens": _Statistic(lambda e: (len(e.tokens),), _mean),
    "p50_ttft": _Statistic(lambda e: (e.time_to_first_token,), _quantile(0.5)),
    "p95_ttft": _Statistic(lambda e: (e.time_to_first_token,), _quantile(0.95)),
    "tokens_per_second": _Statistic(lambda e: (max(0, len(e.tokens) - 1), e.decode_seconds), _quotient),
    "perplexity": _Statistic(_reading, lambda columns: math.exp(_quotient(columns))),
}

#: Metrics bounded by 1. Where all pairs are equal, a bootstrap would claim certainty; the interval of a coin of
#: the same mean is a safe stand-in.
_BOUNDED = ("exact_match", "anls", "score")


def compare(metric: str, ours: Measured, theirs: Measured, numbers: tuple[Interval, Interval]) -> Ratio:
    """A number of one evaluation by the same number of another.

    Args:
        metric: name of a measure.
        ours: the evaluation that is judged.
        theirs: the reference's, on the same examples.
        numbers: what the measure reads of each; the second is not 0.

    Raises:
        UserError: the two did not answer the same examples, or the metric has no observations that could be paired.
    """
    measured, reference = numbers
    value = measured.value / reference.value
    if measured.method == reference.method == "exact":
        return Ratio(value=value, low=value, high=value, n=1, method="exact")
    statistic = _STATISTICS.get(metric)
    if statistic is None:
        cause = f"{metric} says how two models differ already, so it has no ratio to a reference's"
        raise UserError("gate.relative", cause, "give the bound in the metric's own unit")
    require_same_examples(ours, theirs)
    mine, other = _observed(statistic, ours), _observed(statistic, theirs)
    if metric == "exact_match" or (metric in _BOUNDED and np.array_equal(mine, other)):
        both = float(np.minimum(mine, other).sum())
        return bonett_price(both, float(mine.sum()) - both, float(other.sum()) - both, n=len(mine))
    return _bootstrap(statistic.total, mine, other, value)


def require_same_examples(ours: Measured, theirs: Measured) -> None:
    """Refuse to pair evaluations of different examples.

    Raises:
        UserError: "gate.unpaired".
    """
    if _digest(ours) != _digest(theirs):
        cause = f"{ours.label} and {theirs.label} were measured on different examples ({ours.task}, {theirs.task})"
        raise UserError("gate.unpaired", cause, "evaluate both on the same task and count")


def _digest(measured: Measured) -> str:
    return measured.examples_digest if isinstance(measured, Evaluation) else measured.text_digest


def _observed(statistic: _Statistic, measured: Measured) -> np.ndarray:
    """Observations float64 `[n, k]`."""
    of: Callable[..., tuple[float, ...]] = statistic.of
    rows = measured.windows if isinstance(measured, TextEvaluation) else measured.examples
    return np.array([of(row) for row in rows], np.float64)


def bonett_price(both: float, won: float, lost: float, n: int) -> Ratio:
    """The ratio of two shares of the same `n` examples, with its hybrid Wilson score interval.

    Bonett and Price, "Confidence intervals for a ratio of binomial proportions based on paired data", Statistics in
    Medicine 25, 2006; recommended by Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014. It keeps its
    level for few examples, and claims no certainty where no answer changed sides.

    Args:
        both: examples that both have right.
        won: that the first alone has right.
        lost: that the second alone has right; `both + lost` is above 0.
        n: all examples.
    """
    ours, theirs, counted = both + won, both + lost, both + won + lost
    shift = [math.sqrt((1 - (right + 1) / (counted + 2)) / (right + 1)) for right in (ours, theirs)]
    spread = math.sqrt((won + lost + 2) / ((ours + 1) * (theirs + 1)))
    z = Z * spread / sum(shift)
    (low, high), (their_low, their_high) = (wilson(right / counted, counted, z) for right in (ours, theirs))
    value = ours / theirs
    return Ratio(
        value=value, low=min(value, low / their_high), high=max(value, high / their_low), n=n, method="Bonett-Price"
    )


def _bootstrap(total: Callable[[np.ndarray], float], mine: np.ndarray, other: np.ndarray, value: float) -> Ratio:
    """The ratio with the percentiles of resampled pairs; a resample whose reference is 0 has no upper end.

    Args:
        total: the number of observations float64 `[n, k]`.
        mine: observations of the judged model.
        other: of the reference, in the same order.
        value: the ratio itself.
    """
    generator, n = np.random.default_rng(_SEED), len(mine)
    ratios = []
    for _ in range(_RESAMPLES):  # one at a time: memory stays flat in n
        drawn = generator.integers(0, n, n)
        above, below = total(mine[drawn]), total(other[drawn])
        ratios.append(above / below if below else math.inf if above else math.nan)  # 0 / 0 says nothing
    said = np.array([ratio for ratio in ratios if not math.isnan(ratio)])
    # Without interpolation, which cannot cross infinity.
    low, high = np.quantile(said, (_TAIL, 1 - _TAIL), method="closest_observation").tolist()
    # Sums of floats in another order miss by an ulp.
    return Ratio(
        value=value,
        low=min(value, low),
        high=max(value, high) if math.isfinite(high) else None,
        n=n,
        method="paired bootstrap",
    )
