import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.evaluation.gates.ratios import bonett_price, compare
from hvlc.results import Evaluation, Measured
from hvlc.results.gates import Ratio
from hvlc.results.measures import MEASURES
from tests.helpers.measurements import fidelity, measured, read_text

RIGHT = [True] * 90 + [False] * 10


def ratio(metric: str, ours: Measured, theirs: Measured) -> Ratio:
    read = MEASURES[metric].read
    numbers = read(ours), read(theirs)
    assert numbers[0] is not None
    assert numbers[1] is not None
    return compare(metric, ours, theirs, (numbers[0], numbers[1]))


def test_shares_of_pairs_have_bonett_and_prices_interval() -> None:
    # Table of Bentur et al. 2009, worked by hand: 1 both, 1 and 7 one alone, of 21.
    z = 1.959963984540054 * math.sqrt(10 / (3 * 9)) / (math.sqrt((1 - 3 / 11) / 3) + math.sqrt((1 - 9 / 11) / 9))

    def wilson(right: int) -> tuple[float, float]:
        middle, half = 2 * right + z**2, z * math.sqrt(z**2 + 4 * right * (1 - right / 9))
        return (middle - half) / (2 * (9 + z**2)), (middle + half) / (2 * (9 + z**2))

    found = bonett_price(1, 1, 7, n=21)
    assert found.value == 0.25
    assert (found.low, found.high) == pytest.approx((wilson(2)[0] / wilson(8)[1], wilson(2)[1] / wilson(8)[0]))


@pytest.mark.parametrize(("ours", "both", "n"), [(0.95, 0.9, 30), (0.9, 0.85, 200), (0.6, 0.58, 60)])
def test_the_interval_covers_the_truth_as_often_as_it_says(ours: float, both: float, n: int) -> None:
    theirs = 0.95
    chances = [both, ours - both, theirs - both, 1 - ours - theirs + both]
    drawn = np.random.default_rng(0).multinomial(n, chances, 2000)
    intervals = [bonett_price(b, won, lost, n) for b, won, lost, _ in drawn.tolist()]
    covered = np.mean([i.low <= ours / theirs <= (i.high or math.inf) for i in intervals])
    assert 0.935 <= covered <= 0.995


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_exchanging_the_models_inverts_the_ratio(both: int, won: int, lost: int) -> None:
    if min(both + won, both + lost) == 0:
        return
    one, other = (bonett_price(both, *split, n=200) for split in ((won, lost), (lost, won)))
    assert one.value == pytest.approx(1 / other.value)
    assert one.high == pytest.approx(1 / other.low)


def test_equal_answers_claim_no_certainty() -> None:
    same = measured(RIGHT)
    for metric in ("exact_match", "anls"):
        found = ratio(metric, same, same)
        assert found.value == 1
        assert 0.9 < found.low < 1 < (found.high or 0) < 1.1
    few = ratio("exact_match", measured([True] * 4), measured([True] * 4))
    assert few.low < 0.8


def test_pairs_tell_more_than_two_intervals() -> None:
    ours, theirs = measured([False] * 4 + RIGHT[4:]), measured(RIGHT)
    found, apart = ratio("exact_match", ours, theirs), ours.summary.exact_match
    assert found.high is not None
    assert found.high - found.low < (apart.high - apart.low) / 0.9
    # The same 86 and 90 of other examples: no pair agrees by more than chance, and the interval says so.
    mixed = ratio("exact_match", measured(RIGHT[::-1][:14] + RIGHT[:86]), theirs)
    assert (mixed.high or 9) - mixed.low > found.high - found.low


def test_times_are_compared_pair_by_pair() -> None:
    lengths = np.random.default_rng(0).uniform(0.01, 1, 80)
    theirs = measured([True] * 80, seconds=lengths.tolist(), name="float32")
    slower = measured([True] * 80, seconds=(1.2 * lengths).tolist(), tokens=5)
    for metric in ("p50_ttft", "p95_ttft"):
        found = ratio(metric, slower, theirs)
        assert (found.value, found.low, found.high) == pytest.approx((1.2, 1.2, 1.2))
        assert found.method == "paired bootstrap"
    assert ratio("tokens_per_second", slower, theirs).value == pytest.approx(2)
    assert ratio("generated_tokens", slower, theirs).value == pytest.approx(5 / 3)
    noisy = measured([True] * 80, seconds=(lengths * np.random.default_rng(1).uniform(0.8, 1.2, 80)).tolist())
    found = ratio("p50_ttft", noisy, theirs)
    assert found.low < 1 < (found.high or 0) < 1.4
    assert ratio("p50_ttft", noisy, theirs) == found


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(0), 0
    base = measured([True] * 60)
    for _ in range(40):
        theirs, noise = generator.uniform(0.2, 1, 60), generator.uniform(0.8, 1.2, 60)
        ours, other = (with_anls(base, values) for values in (0.8 * theirs * noise, theirs))
        found = compare("anls", ours, other, (ours.summary.anls, other.summary.anls))
        covered += found.low <= 0.8 <= (found.high or math.inf)
    assert 34 <= covered < 40


def with_anls(evaluation: Evaluation, values: np.ndarray) -> Evaluation:
    """The evaluation with other scores, and a mean of them without an interval of its own."""
    examples = tuple(
        example.model_copy(update={"anls": value})
        for example, value in zip(evaluation.examples, values.tolist(), strict=True)
    )
    mean = evaluation.summary.anls.model_copy(update={"value": float(values.mean())})
    summary = evaluation.summary.model_copy(update={"anls": mean})
    return evaluation.model_copy(update={"examples": examples, "summary": summary})


def test_perplexities_are_compared_window_by_window() -> None:
    nll = np.random.default_rng(0).uniform(1, 5, 20)
    found = ratio("perplexity", read_text((nll + math.log(1.1)).tolist()), read_text(nll.tolist()))
    assert (found.value, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))


def test_sizes_have_no_interval() -> None:
    found = ratio("size", measured(RIGHT, size_bytes=10), measured(RIGHT, size_bytes=40))
    assert (found.value, found.low, found.high, found.method) == (0.25, 0.25, 0.25, "exact")


def test_a_reference_that_is_nearly_0_leaves_the_interval_open() -> None:
    theirs = measured([False] * 40, anls=[1.0] + [0.0] * 39)
    found = ratio("anls", measured([True] * 40), theirs)
    assert found.value == 40
    assert found.high is None


def test_other_examples_are_no_pairs() -> None:
    with pytest.raises(UserError, match=r"gate\.unpaired.*different examples"):
        ratio("exact_match", measured(RIGHT), measured(RIGHT, examples_digest="1" * 64))
    with pytest.raises(UserError, match=r"gate\.unpaired"):
        ratio("perplexity", read_text([1.0] * 8), read_text([1.0] * 8, text_digest="1" * 64))


def test_every_measure_is_paired_exact_or_says_why_not() -> None:
    questions, text = (measured(RIGHT, peak_memory_bytes=9, fidelity=fidelity(0.1, 9)), read_text([1.0] * 8))
    for name, measure in MEASURES.items():
        evaluation: Measured = questions if measure.read(questions) else text
        if measure.needs == "reference":
            with pytest.raises(UserError, match=r"gate\.relative"):
                ratio(name, evaluation, evaluation)
        else:
            assert ratio(name, evaluation, evaluation).value == 1
