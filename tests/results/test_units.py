import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hvlc.results.measures import MEASURES
from hvlc.results.units import factors, split_quantity, written, written_apart, written_ends

UNITS = sorted({measure.unit for measure in MEASURES.values()})
POSITIVE = st.floats(1e-9, 1e15)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9125, "", "0.912"),
        (0, "", "0"),
        (1234567, "", "1234567"),
        (38_400_000, "bytes", "38.4 MB"),
        (999, "bytes", "999 B"),
        (2_000_000_000, "bytes", "2.00 GB"),
        (0.0123, "s", "12.3 ms"),
        (1.5, "s", "1.50 s"),
        (57.25, "tokens/s", "57.2 tokens/s"),
        (0.0000213, "nats", "2.13e-05 nats"),
    ],
)
def test_quantities_read_well(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


@given(POSITIVE, st.sampled_from(UNITS))
def test_what_is_written_is_read_as_nearly_the_same(value: float, unit: str) -> None:
    number, name = split_quantity(written(value, unit))
    assert float(number * factors(unit)[name]) == pytest.approx(value, rel=0.006)


@given(POSITIVE, POSITIVE, st.sampled_from(UNITS))
def test_different_numbers_are_told_apart(value: float, other: float, unit: str) -> None:
    assume(value != other)
    assert written_apart(value, other, unit) != written(other, unit)


@pytest.mark.parametrize(
    ("low", "high", "unit", "text"),
    [
        (0.1, 0.25, "nats", "0.100 to 0.250 nats"),
        (0.9, 1.5, "s", "900 ms to 1.50 s"),
        (1e6, 2e6, "bytes", "1.00 to 2.00 MB"),
        (0.5, 0.75, "", "0.500 to 0.750"),
        (40, None, "", "40.0 or more"),
    ],
)
def test_ends_share_their_unit(low: float, high: float | None, unit: str, text: str) -> None:
    assert written_ends(low, high, unit) == text


def test_near_numbers_get_as_many_digits_as_it_takes() -> None:
    assert written_apart(0.97996, 0.98, "") == "0.97996"
    assert written_apart(0.98, 0.98, "") == "0.980"


@pytest.mark.parametrize("text", ["", "MB", "-1 MB", "1..2", "1 MB 2", "١", "nan", "inf", "1e999", "1,5"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        split_quantity(text)


def test_percent_are_of_shares_alone() -> None:
    assert "%" in factors("", share=True)
    assert "%" not in factors("")
    number, name = split_quantity("95%")
    assert float(number * factors("", share=True)[name]) == 0.95
