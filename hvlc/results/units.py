"""Parse and format quantities with units: "40MB", "98%", "12.3 ms"."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal

#: Spellings of a measure's unit, each with its factor to the unit. "" is a bare number. Decimals, so that 95% is
#: the float nearest to 0.95, which 95 * 0.01 is not.
_WRITTEN: Mapping[str, Mapping[str, Decimal]] = {
    "": {"": Decimal(1)},
    "bytes": {
        "B": Decimal(1),
        "kB": Decimal(10**3),
        "MB": Decimal(10**6),
        "GB": Decimal(10**9),
        "KiB": Decimal(2**10),
        "MiB": Decimal(2**20),
        "GiB": Decimal(2**30),
    },
    "s": {"s": Decimal(1), "ms": Decimal("0.001")},
    "tokens/s": {"tokens/s": Decimal(1), "": Decimal(1)},
    "nats": {"nats": Decimal(1), "": Decimal(1)},
    "bits": {"bits": Decimal(1), "": Decimal(1)},
}
_PERCENT: Mapping[str, Decimal] = {"%": Decimal("0.01")}

_QUANTITY = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([a-z/%]*)", re.ASCII | re.IGNORECASE)
_DIGITS = 3  # significant ones
_LONGEST, _EXPONENT = 40, 5  # characters of a number, and of its exponent with the sign


def split_quantity(text: str) -> tuple[Decimal, str]:
    """The number of a quantity, and its unit as written, "" if it has none.

    Raises:
        ValueError: it is not a quantity, too large for a float, or has more than 40 digits, or 4 of the exponent.
    """
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text.strip()[:100]!r} is not a number with a unit")
    if len(found[1]) > _LONGEST or len(found[1].lower().partition("e")[2]) > _EXPONENT:
        raise ValueError(f"{text.strip()[:100]!r} is not a number: it has more than {_LONGEST} digits")
    if not math.isfinite(float(found[1])):
        raise ValueError(f"{text.strip()!r} is not a number that a float holds")
    return Decimal(found[1]), found[2]


def factors(unit: str, *, share: bool = False) -> Mapping[str, Decimal]:
    """Spellings of a unit with the factor to the unit itself; case does not count.

    Args:
        unit: of a measure (`hvlc.results.measures`).
        share: whether the measure is a share, for which percent make sense.
    """
    return {**_WRITTEN[unit], **(_PERCENT if share else {})}


def written(value: float, unit: str, digits: int = _DIGITS) -> str:
    """A value for people.

    Args:
        value: in `unit`, finite.
        unit: of a measure.
        digits: significant ones.
    """
    if unit == "bytes":
        name = next((name for name in ("GB", "MB", "kB") if abs(value) >= _WRITTEN[unit][name]), "B")
        return f"{_rounded(value / float(_WRITTEN[unit][name]), digits)} {name}"
    if unit == "s" and abs(value) < 1:
        return f"{_rounded(1000 * value, digits)} ms"
    return f"{_rounded(value, digits)} {unit}".rstrip()


def written_ends(low: float, high: float | None, unit: str) -> str:
    """The ends of an interval, the unit once where they share it; None: no upper end."""
    if high is None:
        return f"{written(low, unit)} or more"
    first, last = written(low, unit), written(high, unit)
    name = last.partition(" ")[2]
    return f"{first.removesuffix(f' {name}')} to {last}"


def written_apart(value: float, other: float, unit: str) -> str:
    """A value with as many digits as it takes to tell it from another, where they differ."""
    for digits in range(_DIGITS, 17):
        if value == other or written(value, unit, digits) != written(other, unit, digits):
            return written(value, unit, digits)
    return f"{value!r} {unit}".rstrip()


def _rounded(value: float, digits: int) -> str:
    """Significant digits, without an exponent where a number reads well without one."""
    if value == 0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
