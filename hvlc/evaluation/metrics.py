"""Scores of answers, their intervals, and the test that tells a difference from noise.

An empty input is an error, never a score of 0; so is a value that is not finite.
"""

import math
from collections.abc import Sequence

import numpy as np

from hvlc.results import Score, wilson

#: Similarities whose distance reaches this count as 0 (Biten et al. 2019, section 4).
ANLS_THRESHOLD = 0.5

_RESAMPLES = 2000


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
    NL the distance by the longer length, 1 - NL where NL < 0.5, else 0. As in its published evaluation,
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
    distance = levenshtein(predicted, answer) / max(len(predicted), len(answer))
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


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
    generator = np.random.default_rng(seed)
    # One resample at a time: memory stays flat in n.
    means = [scores[generator.integers(0, n, n)].mean() for _ in range(_RESAMPLES)]
    ends = np.quantile(means, (0.025, 0.975))
    return Score(value=mean, low=min(mean, ends[0]), high=max(mean, min(1.0, ends[1])), n=n, method="bootstrap")


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
