import math
from fractions import Fraction
from functools import cache

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
        ("ab", ["ax"], 0.0),  # a distance of exactly half
        ("abc", ["axc"], 1 - 1 / 3),
        ("", ["a"], 0.0),
        ("12.51", ["zzzzz", "12.50"], 0.8),
    ],
)
def test_anls(prediction: str, answers: list[str], score: float) -> None:
    assert metrics.anls(prediction, answers) == pytest.approx(score, abs=1e-12)


@given(words, st.lists(words.filter(str.strip), min_size=1, max_size=3))
def test_anls_is_0_or_above_half_and_1_for_an_exact_match(prediction: str, answers: list[str]) -> None:
    score = metrics.anls(prediction, answers)
    assert score == 0 or 0.5 < score <= 1
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
