"""Small models, good and bad for an NPU: one operator or one block each, made without randomness.

They are rows of tables (`tables.py`) and of two draws (`draws.py`); a row's id is the key of its verdict. The rules of
`hvlc/targets` were written from the compiler's verdicts on all but the second draw, which is held out
(`Case.held_out`): the agreement on it is the one to expect for a model that nobody looked at.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache

from tests.lint import draws
from tests.lint.tables import Row, table
from tests.lint.tape import Case

#: Tables from the first to the last; `types` repeats rows of those before it.
TABLES = ("elementwise", "movement", "layers", "quantized", "blocks", "fresh")


@cache
def corpus() -> tuple[Case, ...]:
    """Every case, names distinct."""
    cases = [row.case() for name in TABLES for row in table(name)]
    cases += _other(cases, table("types"))
    cases += [row.case() for rows in (table("forms"), draws.unseen(), table("unseen")) for row in rows]
    cases += [replace(case, held_out=True) for case in _other(cases, draws.later())]
    assert len({case.name for case in cases}) == len(cases)
    return tuple(cases)


def _other(cases: Iterable[Case], rows: Iterable[Row]) -> Iterator[Case]:
    """Cases of rows, without those whose model is there already."""
    known = {case.model.SerializeToString() for case in cases}
    return (case for case in (row.case() for row in rows) if case.model.SerializeToString() not in known)
