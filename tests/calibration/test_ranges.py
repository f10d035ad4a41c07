"""Ranges against sorted samples and brute force: what they hold, what they cost, and that no order matters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hvlc.calibration.ranges import CacheObserver, RangeObserver
from hvlc.errors import UserError
from hvlc.graphs.plan import RangeMethod

BIN = 1 + 2**-5  # widest bin of a histogram, as the ratio of its edges
FINITE = st.floats(-1e6, 1e6, width=32)
SAMPLES = st.lists(arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=FINITE), min_size=1, max_size=5)
NORMAL = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
OUTLIER = np.append(NORMAL, np.float32(40))


def observed(method: RangeMethod, *samples: np.ndarray, **settings: float) -> tuple[float, float]:
    observer = RangeObserver(method, **settings)  # type: ignore[arg-type]
    for sample in samples:
        observer.observe("x", sample)
    return observer.ranges()["x"]


def rounding_error(values: np.ndarray, low: float, high: float, bits: int) -> float:
    """Squared error of really rounding the values to the levels of a range."""
    if high == low:
        return float((values.astype(np.float64) ** 2).sum())
    step = (high - low) / (2**bits - 1)
    zero = np.round(-low / step)
    levels = np.clip(np.round(values.astype(np.float64) / step) + zero, 0, 2**bits - 1)
    return float((((levels - zero) * step - values) ** 2).sum())


@given(SAMPLES)
def test_minmax_holds_zero_and_everything_and_no_more(samples: list[np.ndarray]) -> None:
    flat = np.concatenate([sample.reshape(-1) for sample in samples])
    assert observed(RangeMethod.MINMAX, *samples) == (min(0, flat.min()), max(0, flat.max()))


@given(SAMPLES, st.sampled_from(RangeMethod))
def test_the_order_and_the_cut_of_samples_do_not_matter(samples: list[np.ndarray], method: RangeMethod) -> None:
    flat = np.concatenate([sample.reshape(-1) for sample in samples])
    assert observed(method, *samples) == observed(method, *samples[::-1]) == observed(method, flat)


@given(SAMPLES, st.sampled_from(RangeMethod))
def test_no_range_leaves_what_was_seen(samples: list[np.ndarray], method: RangeMethod) -> None:
    flat = np.concatenate([sample.reshape(-1) for sample in samples])
    low, high = observed(method, *samples)
    assert min(0, flat.min()) <= low <= 0 <= high <= max(0, flat.max())


@given(SAMPLES, st.floats(50, 100))
def test_a_percentile_keeps_its_share_and_no_more_than_a_bin_beyond(samples: list[np.ndarray], percent: float) -> None:
    flat = np.sort(np.concatenate([sample.reshape(-1) for sample in samples]).astype(np.float64))
    low, high = observed(RangeMethod.PERCENTILE, *samples, percentile=percent)
    outside = int((1 - percent / 100) * flat.size + 1e-9)  # values that may lie beyond an end
    for end, ordered in ((high, flat), (-low, -flat[::-1])):
        needed = max(0.0, ordered[flat.size - 1 - outside])
        assert (ordered > end).sum() <= outside
        assert needed <= end <= max(needed * BIN, np.finfo(np.float32).tiny)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("values", [NORMAL, OUTLIER, np.abs(OUTLIER), -np.abs(OUTLIER), NORMAL**3], ids=len)
def test_the_least_error_is_near_that_of_brute_force(values: np.ndarray, bits: int) -> None:
    low, high = observed(RangeMethod.MSE, values, bits=bits)
    ends = np.geomspace(1e-3, 1, 60)
    candidates = [(float(values.min() * a), float(values.max() * b)) for a in ends for b in ends]
    candidates = [(min(a, 0), max(b, 0)) for a, b in dict.fromkeys(candidates)]
    sample = values if bits < 16 else np.append(values[:2000], values[-1])  # brute force is slow
    best = min(rounding_error(sample, *candidate, bits) for candidate in candidates[:: 1 if bits < 16 else 7])
    assert rounding_error(sample, low, high, bits) <= 1.35 * best


def test_few_levels_are_worth_a_cut_and_many_are_not() -> None:
    assert observed(RangeMethod.MSE, OUTLIER, bits=4)[1] < 10
    assert observed(RangeMethod.MSE, OUTLIER, bits=16)[1] == 40


def test_a_massive_activation_stays_in_16_bits_where_a_percentile_cuts_it() -> None:
    """One value of 23,000 in 256 tokens by 576 channels with a median of 150, as real decoders have them."""
    stream = np.random.default_rng(1).normal(scale=220, size=(256, 576)).astype(np.float32)
    stream[0, 100] = 23_000
    assert observed(RangeMethod.MSE, stream)[1] == 23_000
    assert observed(RangeMethod.PERCENTILE, stream)[1] < 1_500
    assert np.median(np.abs(stream)) == pytest.approx(150, rel=0.02)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("make", [RangeObserver, lambda: CacheObserver(frozenset())])
def test_what_is_not_finite_is_refused_by_name(make, wrong: float) -> None:
    with pytest.raises(UserError, match=r"calibration\.not_finite.*layer\.1") as error:
        make().observe("layer.1", np.array([[[[1.0, wrong]]]]))
    assert error.value.exit_code == 2


def test_an_empty_sample_says_nothing() -> None:
    observer = RangeObserver()
    observer.observe("x", np.zeros((0, 4), np.float32))
    assert observer.ranges() == {}


def test_the_largest_float_has_a_range() -> None:
    largest = float(np.finfo(np.float32).max)
    values = np.array([largest, -largest, 1], np.float32)
    for method in RangeMethod:
        assert observed(method, values) == (-largest, largest)


def test_a_cache_has_a_magnitude_for_each_channel() -> None:
    random = np.random.default_rng(0)
    samples = [random.normal(size=(2, 3, positions, 8)) for positions in (5, 0, 9)]
    observer = CacheObserver(frozenset())
    for sample in samples:
        observer.observe("v", sample)
    expected = np.zeros((3, 8))
    for sample in samples:
        for row in sample.transpose(0, 2, 1, 3).reshape(-1, 3, 8):
            expected = np.maximum(expected, np.abs(row))
    np.testing.assert_array_equal(observer.magnitudes()["v"], expected.astype(np.float32))


def test_a_rotated_key_is_bounded_at_every_position() -> None:
    key = np.random.default_rng(0).normal(size=(1, 2, 6, 8))
    observer, unaware = CacheObserver(frozenset({"k"})), CacheObserver(frozenset())
    for some in (observer, unaware):
        some.observe("k", key)
    beyond = {"k": False, "unaware": False}
    for angle in np.linspace(0, 2 * np.pi, 33):
        first, second = key[..., :4], key[..., 4:]
        turned = np.concatenate(
            [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
        )
        reached = np.abs(turned).max((0, 2))
        beyond["k"] |= bool((reached > observer.magnitudes()["k"] * (1 + 1e-6)).any())
        beyond["unaware"] |= bool((reached > unaware.magnitudes()["k"] * (1 + 1e-6)).any())
    assert beyond == {"k": False, "unaware": True}
