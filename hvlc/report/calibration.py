"""Description of a calibration set, as terminal tables and as JSON values."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hvlc.report.columns import percent
from hvlc.results.calibration_set import Balance, Spread

_SPREADS = (
    ("tokens of a sample", "tokens"),
    ("tiles of an image", "tiles"),
    ("visual tokens of an image", "visual_tokens"),
)


def balance_record(balance: Balance) -> dict[str, Any]:
    """A balance as JSON values."""
    return asdict(balance)


def balance_tables(balance: Balance) -> Group:
    """A balance: counts, shares and warnings."""
    head = Text(f"{balance.name}: {balance.samples} samples, {balance.digest[:12]}", style="bold")
    tables = [_spreads(balance), _shares("kind", balance.kinds), _shares("width to height", balance.aspects)]
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in balance.warnings]
    return Group(head, *(table for table in tables if table.row_count), *warnings)


def _spreads(balance: Balance) -> Table:
    table = _table("", "least", "median", "most", "total")
    for title, name in _SPREADS:
        spread: Spread | None = getattr(balance, name)
        if spread is not None:
            numbers = (spread.least, spread.median, spread.most, spread.total)
            table.add_row(title, *(f"{number:,.10g}" for number in numbers))
    return table


def _shares(what: str, counts: Mapping[str, int]) -> Table:
    table = _table(what, "samples", "share")
    for name, count in counts.items():
        table.add_row(Text(name), str(count), percent(count / sum(counts.values()), 0))
    return table


def _table(first: str, *numeric: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for column in numeric:
        table.add_column(column, justify="right")
    return table
