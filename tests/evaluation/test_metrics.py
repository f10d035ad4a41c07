import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.evaluation import metrics

words = st.text(alphabet="abAB 1é", max_size=7)


def slow_levenshtein(first: str, second: str) -> int:
    """The definition, by recursion."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(replaced, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(first), len(second))


@given(words, words)
def test_levenshtein_equals_its_definition(first: str, second: str) -> None:
    assert metrics.levenshtein(first, second) == slow_levenshtein(first, second)


@given(words, words, words)
def test_levenshtein_is_a_distance(a: str, b: str, c: str) -> None:
    assert (metrics.levenshtein(a, b) == 0) == (a == b)
    assert metrics.levenshtein(a, b) == metrics.levenshtein(b, a)
    assert metrics.levenshtein(a, c) <= metrics.levenshtein(a, b) + metrics.levenshtein(b, c)
    assert abs(len(a) - len(b)) <= metrics.levenshtein(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("12.50", ["12.50"], True),
        ("  12.50\n", ["12.50"], True),
        ("New   York", ["New York"], True),
        ("NewYork", ["New York"], False),
        ("oslo", ["Oslo"], False),  # case counts
        ("b", ["a", "b"], True),
        ("", ["a"], False),
    ],
)
def test_exact_match(prediction: str, answers: list[str], right: bool) -> None:
    assert metrics.exact_match(prediction, answers) is right


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("12.50", ["12.50"], 1.0),
        ("OSLO", ["Oslo"], 1.0),  # case does not count
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("12.51", ["12.50"], 0.8),
        ("ab", ["ax"], 0.5),  # a distance of exactly half
        ("abcde", ["abxyz"], 0.0),
        ("abc", ["axc"], 1 - 1 / 3),
        ("", ["a"], 0.0),
        ("12.51", ["zzzzz", "12.50"], 0.8),
    ],
)
def test_anls(prediction: str, answers: list[str], score: float) -> None:
    assert metrics.anls(prediction, answers) == pytest.approx(score, abs=1e-12)


@given(words, st.lists(words.filter(str.strip), min_size=1, max_size=3))
def test_anls_is_0_or_at_least_half_and_1_for_an_exact_match(prediction: str, answers: list[str]) -> None:
    score = metrics.anls(prediction, answers)
    assert score == 0 or 0.5 <= score <= 1
    assert not metrics.exact_match(prediction, answers) or score == 1


@pytest.mark.parametrize("metric", [metrics.exact_match, metrics.anls])
@pytest.mark.parametrize("answers", [[], [""], ["a", "  "]])
def test_no_answer_is_an_error(metric, answers: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        metric("a", answers)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(successes: int, n: int, low: float, high: float) -> None:
    score = metrics.proportion(successes, n)
    assert score.value == successes / n
    assert (score.low, score.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(case: tuple[int, int]) -> None:
    successes, n = case
    score, mirrored = metrics.proportion(successes, n), metrics.proportion(n - successes, n)
    for end in (score.low, score.high):
        # |p - end| = z sqrt(end (1 - end) / n)
        assert abs(successes / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), abs=1e-7)
    assert score.low == pytest.approx(1 - mirrored.high, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (2, 1), (-1, 4)])
def test_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        metrics.proportion(successes, n)


def test_mean_score_is_repeatable_and_near_the_normal_interval() -> None:
    values = [0.0] * 20 + [0.8] * 30 + [1.0] * 150
    score = metrics.mean_score(values)
    assert score == metrics.mean_score(values)
    assert score.value == pytest.approx(0.87)
    deviation = math.sqrt(sum((v - 0.87) ** 2 for v in values) / 200)
    assert score.high - score.low == pytest.approx(2 * 1.96 * deviation / math.sqrt(200), rel=0.1)
    assert score.method == "bootstrap"


def test_mean_score_without_spread_claims_no_certainty() -> None:
    score = metrics.mean_score([1.0] * 10)
    assert (score.value, score.high, score.method) == (1.0, 1.0, "wilson")
    assert score.low == metrics.proportion(10, 10).low < 0.8


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.nan], [1.2], [math.inf]])
def test_mean_score_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"not defined|outside"):
        metrics.mean_score(values)


def test_recovery_is_not_rounded() -> None:
    assert metrics.recovery(0.9, 0.91) == 0.9 / 0.91


@pytest.mark.parametrize(("score", "reference"), [(0.5, 0.0), (math.nan, 0.5), (0.5, math.nan), (0.5, math.inf)])
def test_recovery_refuses(score: float, reference: float) -> None:
    with pytest.raises(ValueError, match="no recovery"):
        metrics.recovery(score, reference)


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 3, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (1, 9, 22 / 1024), (3, 1, 0.625)],
)
def test_mcnemar_equals_hand_values(lost: int, won: int, p: float) -> None:
    assert metrics.mcnemar(lost, won) == p


@given(st.integers(0, 25), st.integers(0, 25))
def test_mcnemar_equals_a_walk_over_all_coin_tosses(lost: int, won: int) -> None:
    heads = [Fraction(1)]
    for _ in range(lost + won):
        heads = [a / 2 + b / 2 for a, b in zip([Fraction(0), *heads], [*heads, Fraction(0)], strict=True)]
    uneven = sum(p for k, p in enumerate(heads) if abs(2 * k - lost - won) >= abs(lost - won))
    assert metrics.mcnemar(lost, won) == pytest.approx(float(uneven), rel=1e-12)


def test_mcnemar_of_thousands_does_not_overflow() -> None:
    assert metrics.mcnemar(900, 1100) < 1e-4


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="not negative"):
        metrics.mcnemar(-1, 2)


def _beyond(n: int, q: float, low: int, high: int) -> tuple[Fraction, Fraction]:
    """The chances that the quantile lies below the `low`-th smallest of `n` values, or above the `high`-th, exactly."""
    exact = Fraction(q).limit_denominator(1000)
    terms = [math.comb(n, k) * exact**k * (1 - exact) ** (n - k) for k in range(n + 1)]
    return sum(terms[:low], Fraction(0)), sum(terms[high:], Fraction(0))


@pytest.mark.parametrize("q", [0.5, 0.95, 0.1])
@pytest.mark.parametrize("n", [1, 5, 6, 20, 71, 72, 73, 256, 400])
def test_ends_of_a_quantile_are_the_innermost_with_95_percent(n: int, q: float) -> None:
    tail = Fraction(25, 1000)
    found = metrics.quantile(list(range(1, n + 1)), q)  # the value of an order statistic is its rank
    low, high = int(found.low), int(found.high)
    if found.method == "range":
        assert _beyond(n, q, 1, n)[0] > tail or _beyond(n, q, 1, n)[1] > tail  # even the extremes do not suffice
        assert (low, high)[q > 0.5] == (1, n)[q > 0.5]
        return
    assert max(_beyond(n, q, low, high)) <= tail
    assert _beyond(n, q, low + 1, high)[0] > tail
    assert _beyond(n, q, low, high - 1)[1] > tail


def test_the_fewest_values_of_quantiles() -> None:
    assert [metrics.quantile([1.0] * n, 0.5).method for n in (5, 6)] == ["range", "order statistics"]
    assert [metrics.quantile([1.0] * n, 0.95).method for n in (71, 72)] == ["range", "order statistics"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=120), st.sampled_from([0.5, 0.95]))
def test_a_quantile_lies_within_its_interval_and_orders_alike(values: list[float], q: float) -> None:
    found = metrics.quantile(values, q)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    assert metrics.quantile(values[::-1], q) == found


def test_the_interval_of_a_median_covers_it() -> None:
    """Of 400 samples of an exponential distribution, whose median is log 2."""
    random = np.random.default_rng(5)
    found = [metrics.quantile(random.exponential(size=31).tolist(), 0.5) for _ in range(400)]
    covered = sum(interval.low <= math.log(2) <= interval.high for interval in found)
    assert 0.93 <= covered / 400 <= 0.995


def test_a_ratio_is_of_the_sums() -> None:
    found = metrics.ratio([1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 5])
    assert found.value == pytest.approx(2.1)
    assert found.low < 2.1 < found.high
    assert (found.n, found.method) == (6, "bootstrap")
    assert metrics.ratio([1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 5]) == found  # the seed is fixed


def test_the_interval_of_a_mean_covers_it() -> None:
    """Of 60 samples of a skewed distribution with mean 1; the chance of fewer than 50 is below 0.1 %."""
    random = np.random.default_rng(6)
    found = [metrics.ratio(random.exponential(size=60).tolist()) for _ in range(60)]
    covered = sum(interval.low <= 1 <= interval.high for interval in found)
    assert 50 <= covered < 60


def test_few_pairs_have_a_range() -> None:
    found = metrics.ratio([1.0, 6.0], [1.0, 2.0])
    assert (found.low, found.high, found.method) == (1.0, 3.0, "range")
    assert found.value == pytest.approx(7 / 3)


@pytest.mark.parametrize(
    ("above", "below"),
    [([], []), ([1.0], [0.0]), ([1.0], [-1.0]), ([math.nan], None), ([math.inf], None), ([1.0], [1.0, 2.0])],
)
def test_what_has_no_ratio(above: list[float], below: list[float] | None) -> None:
    with pytest.raises(ValueError, match=r"no ratio|not finite"):
        metrics.ratio(above, below)


def test_trials_of_a_group_do_not_count_as_many() -> None:
    """Ten groups that succeed or fail as a whole: much less certain than a hundred trials."""
    clustered = metrics.share([10] * 8 + [0] * 2, [10] * 10)
    alone = metrics.share([1] * 80 + [0] * 20, [1] * 100)
    assert clustered.value == alone.value == 0.8
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_equal_shares_have_the_wilson_interval_of_their_groups() -> None:
    found = metrics.share([4] * 9, [4] * 9)
    assert (found.value, found.low, found.high) == (1.0, *metrics.wilson(1.0, 9))
    with pytest.raises(ValueError, match="more successes"):
        metrics.share([2], [1])


@pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.0), ([math.nan], 0.5), ([math.inf], 0.5)])
def test_what_has_no_quantile(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        metrics.quantile(values, q)
