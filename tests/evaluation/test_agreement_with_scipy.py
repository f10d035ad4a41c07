"""Intervals and tests of significance equal scipy's: hvlc computes them at run time, where scipy is not installed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hvlc.evaluation import metrics
from hvlc.evaluation.gates.ratios import bonett_price
from hvlc.evaluation.significance import holm, sign_flip_p_value
from hvlc.results.base import Z, wilson

shares = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_z_is_the_normal_quantile() -> None:
    assert stats.norm.ppf(0.975) == Z


@given(shares, st.floats(0.5, 0.999))
def test_wilsons_interval(case: tuple[int, int], level: float) -> None:
    successes, n = case
    ends = stats.binomtest(successes, n).proportion_ci(level, "wilson")
    found = wilson(successes / n, n, float(stats.norm.ppf((1 + level) / 2)))
    assert found == pytest.approx((ends.low, ends.high), abs=1e-12)


@given(shares)
def test_a_proportions_interval_is_wilsons_of_95_percent(case: tuple[int, int]) -> None:
    successes, n = case
    ends = stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
    found = metrics.proportion(successes, n)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemars_test_is_the_binomial_test_of_the_pairs_that_differ(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert metrics.mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [2, 5, 9, 60])
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_sign_flips_are_the_paired_permutation_test(n: int, shift: float) -> None:
    gaps = np.random.default_rng(n).normal(shift, 1, n)
    expected = stats.permutation_test(
        (gaps,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    # Both draw signs where there are many of them: the standard error of each is at most 0.005.
    assert sign_flip_p_value(gaps.tolist()) == pytest.approx(expected.pvalue, abs=0.02)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("n", [6, 7, 20, 72, 73, 400])
def test_the_interval_of_a_quantile(n: int, q: float) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    found = metrics.quantile(values.tolist(), q)
    ends = stats.quantile_test(values, p=q).confidence_interval(0.95)
    assert found.value == pytest.approx(stats.quantile(values, q))
    if found.method == "range":
        assert math.isnan(ends.low) or math.isnan(ends.high)  # scipy gives no end where there are too few values
    else:
        assert (found.low, found.high) == (ends.low, ends.high)


def _resampled(values: np.ndarray, statistic: object) -> tuple[float, float]:
    rng = np.random.default_rng(2)
    found = stats.bootstrap(
        tuple(values), statistic, paired=True, method="percentile", n_resamples=5000, rng=rng, vectorized=False
    )
    return found.confidence_interval.low, found.confidence_interval.high


def test_the_bootstrap_of_a_mean() -> None:
    values = np.random.default_rng(0).beta(3, 1, 150)
    found, (low, high) = metrics.mean_score(values.tolist()), _resampled(values[None], np.mean)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_the_bootstrap_of_a_ratio() -> None:
    random = np.random.default_rng(0)
    pairs = np.stack([random.exponential(size=120), random.uniform(1, 2, 120)])
    found = metrics.ratio(*pairs.tolist())
    low, high = _resampled(pairs, lambda above, below: above.sum() / below.sum())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holms_correction_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    """scipy has Benjamini and Hochberg's correction, which is never above Holm's, and the bound of Bonferroni's."""
    below = stats.false_discovery_control(p_values)
    for adjusted, least, p in zip(holm(p_values), below, p_values, strict=True):
        assert least - 1e-12 <= adjusted <= min(1.0, len(p_values) * p)


@pytest.mark.parametrize(("both", "won", "lost"), [(80, 4, 9), (12, 3, 1), (200, 0, 0), (1, 1, 7)])
def test_the_ratio_of_paired_shares_is_made_of_wilsons_intervals(both: int, won: int, lost: int) -> None:
    counted, ours, theirs = both + won + lost, both + won, both + lost
    errors = [math.sqrt((1 - (right + 1) / (counted + 2)) / (right + 1)) for right in (ours, theirs)]
    z = stats.norm.ppf(0.975) * math.sqrt((won + lost + 2) / ((ours + 1) * (theirs + 1))) / sum(errors)
    level = 2 * stats.norm.cdf(z) - 1
    mine, other = (stats.binomtest(right, counted).proportion_ci(level, "wilson") for right in (ours, theirs))
    found = bonett_price(both, won, lost, n=counted + 5)
    assert (found.low, found.high) == pytest.approx((mine.low / other.high, mine.high / other.low), rel=1e-9)
