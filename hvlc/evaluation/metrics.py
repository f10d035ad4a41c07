"""Scores of answers, their intervals, and the test that tells a difference from noise.

An empty input is an error, never a score of 0; so is a value that is not finite.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from hvlc.results import Interval, Score, wilson

#: Similarities below it count as 0. Biten et al. 2019, section 4, let a distance of exactly a half count as 0, too; the
#: evaluation that DocVQA publishes and the harnesses that follow it let it count as a half, and so do scores here.
ANLS_THRESHOLD = 0.5

_RESAMPLES = 2000
_TAIL = 0.025  # beyond each end of an interval

#: From so many values on, the lowest and the highest enclose the median with 95 %: 0.5 ** 6 is below a tail. Neither
#: does a bootstrap of fewer claim that much.
_FEWEST = 6


def normalized(text: str) -> str:
    """`text` with every run of whitespace as one space and none at the ends; case is kept."""
    return " ".join(text.split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the answers, up to whitespace; case counts.

    Raises:
        ValueError: there is no answer.
    """
    return normalized(prediction) in _accepted(answers)


def levenshtein(first: str, second: str) -> int:
    """The least number of inserted, deleted and replaced characters that turns `first` into `second`."""
    previous = list(range(len(second) + 1))
    for row, a in enumerate(first, 1):
        current = [row]
        for column, b in enumerate(second, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (a != b)))
        previous = current
    return previous[-1]


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest answer; the average over examples is ANLS.

    Biten et al., "Scene Text Visual Question Answering", ICCV 2019 (arXiv:1905.13648), equation 1: with
    NL the distance by the longer length, 1 - NL where that is at least 0.5, else 0. As in its published evaluation,
    case does not count and whitespace is normalised.

    Raises:
        ValueError: there is no answer.
    """
    predicted = normalized(prediction).lower()
    return max(_similarity(predicted, answer.lower()) for answer in _accepted(answers))


def _accepted(answers: Sequence[str]) -> list[str]:
    accepted = [normalized(answer) for answer in answers]
    if not accepted or not all(accepted):
        raise ValueError(f"expected at least one answer and no blank one, got {list(answers)}")
    return accepted


def _similarity(predicted: str, answer: str) -> float:
    similarity = 1 - levenshtein(predicted, answer) / max(len(predicted), len(answer))
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def proportion(successes: int, n: int) -> Score:
    """A share with its Wilson 95 % interval, which stays honest near 0 and 1 and for small n.

    Raises:
        ValueError: `n` is 0, or `successes` is not within 0 and `n`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a proportion")
    low, high = wilson(successes / n, n)
    return Score(value=successes / n, low=low, high=high, n=n, method="wilson")


def mean_score(values: Sequence[float], seed: int = 0) -> Score:
    """The mean of scores within 0 and 1 with its 95 % bootstrap interval (percentiles of 2000 resamples).

    Where all values are equal a bootstrap would claim certainty; a variable within 0 and 1 varies at most
    like a coin of the same mean, so there the Wilson interval is a safe stand-in.

    Raises:
        ValueError: there is no value, or one is not within 0 and 1.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("the mean of no values is not defined")
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails too
        raise ValueError("a score is outside 0 and 1, or NaN")
    mean, n = min(1.0, math.fsum(scores.tolist()) / scores.size), int(scores.size)
    if scores.min() == scores.max():
        low, high = wilson(mean, n)
        return Score(value=mean, low=low, high=high, n=n, method="wilson")
    ends = np.quantile([scores[drawn].mean() for drawn in _resamples(n, seed)], (_TAIL, 1 - _TAIL))
    return Score(value=mean, low=min(mean, ends[0]), high=max(mean, min(1.0, ends[1])), n=n, method="bootstrap")


def _resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    """Indices int64 `[n]`, drawn with replacement; one resample at a time, so that memory stays flat."""
    generator = np.random.default_rng(seed)
    for _ in range(_RESAMPLES):
        yield generator.integers(0, n, n)


def ratio(numerators: Sequence[float], denominators: Sequence[float] | None = None, seed: int = 0) -> Interval:
    """The sum of numerators by the sum of denominators, with its 95 % bootstrap interval over the pairs.

    With denominators of 1, which are those that are left out, it is the mean. Fewer than 6 pairs have a range instead,
    of what each pair alone gives.

    Raises:
        ValueError: there is no pair, a number is not finite, or a denominator is not positive.
    """
    above = np.asarray(numerators, np.float64)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, np.float64)
    if above.size == 0 or above.shape != below.shape:
        raise ValueError(f"{above.size} numerators by {below.size} denominators have no ratio")
    if not (np.isfinite(above).all() and np.isfinite(below).all() and (below > 0).all()):
        raise ValueError("a number is not finite, or a denominator not positive")
    n, value = int(above.size), math.fsum(above.tolist()) / math.fsum(below.tolist())
    if n < _FEWEST:
        each = (above / below).tolist()
        return Interval(value=value, low=min(value, *each), high=max(value, *each), n=n, method="range")
    drawn = [above[pairs].sum() / below[pairs].sum() for pairs in _resamples(n, seed)]
    low, high = np.quantile(drawn, (_TAIL, 1 - _TAIL)).tolist()
    # Sums of floats in another order miss by an ulp.
    return Interval(value=value, low=min(value, low), high=max(value, high), n=n, method="bootstrap")


def share(successes: Sequence[int], trials: Sequence[int]) -> Score:
    """A share of trials that come in groups, with its 95 % bootstrap interval over the groups.

    Trials of a group depend on each other, so they do not count as so many observations. Where every group has the same
    share, or there are few, the Wilson interval of as many trials as there are groups stands in: see `mean_score`.

    Raises:
        ValueError: there is no group, or one has no trial, or not 0 to all of its trials succeeded.
    """
    if any(not 0 <= good <= all_ for good, all_ in zip(successes, trials, strict=True)):
        raise ValueError("a group has more successes than trials")
    found = ratio(successes, trials)
    shares = {good / all_ for good, all_ in zip(successes, trials, strict=True)}
    if found.method == "bootstrap" and len(shares) > 1:
        return Score(value=found.value, low=found.low, high=min(1.0, found.high), n=found.n, method="bootstrap")
    low, high = wilson(found.value, found.n)
    return Score(value=found.value, low=low, high=high, n=found.n, method="wilson")


def quantile(values: Sequence[float], q: float) -> Interval:
    """A quantile with its 95 % interval between two order statistics, which assumes nothing about the distribution.

    The `j`-th smallest of `n` values lies above the quantile with the chance that fewer than `j` of `n` draws fall
    below it, a binomial tail: David and Nagaraja, "Order Statistics", 3rd edition, 2003, section 7.1. Each end is the
    innermost one with at most 2.5 % beyond. Where there is none, because there are too few values, the ends are a
    range: the median takes 6 values, the 95th percentile 72.

    Raises:
        ValueError: there is no value, one is not finite, or `q` is not between 0 and 1.
    """
    ordered, n = sorted(values), len(values)
    if not ordered or not all(math.isfinite(value) for value in ordered) or not 0 < q < 1:
        raise ValueError(f"no quantile {q} of {n} values")
    value = float(np.quantile(ordered, q))
    low, high = _rank(n, q), n + 1 - _rank(n, 1 - q)
    enough = low >= 1 and high <= n
    ends = ordered[max(1, low) - 1], ordered[min(n, high) - 1]
    method: Literal["order statistics", "range"] = "order statistics" if enough else "range"
    return Interval(value=value, low=min(value, ends[0]), high=max(value, ends[1]), n=n, method=method)


def _rank(n: int, q: float) -> int:
    """The largest `j` such that fewer than `j` of `n` draws succeed with a chance of at most 2.5 %; 0 if none is."""
    rank, below = 0, 0.0
    while rank < n:
        logarithm = math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1)
        below += math.exp(logarithm + rank * math.log(q) + (n - rank) * math.log1p(-q))
        if below > _TAIL:
            break
        rank += 1
    return rank


def recovery(score: float, reference: float) -> float:
    """`score` by `reference`, unrounded.

    Raises:
        ValueError: the reference is 0, or one of the two is not finite.
    """
    if not (math.isfinite(score) and math.isfinite(reference)) or reference <= 0:
        raise ValueError(f"no recovery of {score} against {reference}")
    return score / reference


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Among the examples on which two models differ, a better one is as likely as not if they are equally good:
    twice the binomial tail of the rarer side, at most 1.

    Raises:
        ValueError: a count is negative.
    """
    if lost < 0 or won < 0:
        raise ValueError(f"lost {lost}, won {won}: counts are not negative")
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << n))
