"""Differences of two packages as terminal tables: a summary, and on request every difference."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hvlc.report.columns import ABSENT
from hvlc.results.difference import ComponentDifference, Difference, FileChange, NodeChange, ValueChange

_LIKENESS = {
    "identical": "identical",
    "names": "equal but for names",
    "weights": "other weights",
    "structure": "other nodes",
    "compiled": "compiled, not readable",
    "only in A": "only in A",
    "only in B": "only in B",
}
_LONGEST = 60  # characters of a value


def summary(found: Difference) -> str:
    """One sentence: identical, equal but for names, or in what the two differ."""
    if found.identical:
        return f"{found.a} and {found.b} are identical to the last byte"
    parts = [
        f"{c.name} ({_LIKENESS[c.likeness]})" for c in found.components if c.likeness not in ("identical", "names")
    ]
    parts += [f"{name} ({_counted(len(changes), 'key')})" for name, changes in found.settings.items()]
    parts += [f"tokenizer ({_counted(len(found.tokenizer), 'entry')})"] if found.tokenizer else []
    if parts:
        return f"{found.a} and {found.b} differ in {', '.join(parts)}"
    if any(component.likeness == "names" for component in found.components):
        return f"{found.a} and {found.b} are equal but for names in their graphs"
    names = ", ".join(change.name for change in found.files)
    return f"{found.a} and {found.b} are equal but for the bytes of {names}"


def _counted(count: int, what: str) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("y") and what != "key" else f"{what}s"
    return f"{count} {what if count == 1 else plural}"


def difference_tables(found: Difference, *, details: bool, component: str | None = None) -> Group:
    """A difference.

    Args:
        found: what differs.
        details: whether to list every difference.
        component: the only one whose differences are listed.
    """
    parts: list[RenderableType] = [Text(summary(found), style="green" if found.identical else "bold")]
    if found.identical:
        return Group(*parts)
    parts += [Text(f"A is {found.a}, B is {found.b}", style="dim"), _components(found.components)]
    if component is not None:
        chosen = [c for c in found.components if c.name == component]
    else:
        parts += [_files(found.files)]
        chosen = list(found.components) if details else []
        for name, changes in (*found.settings.items(), ("tokenizer", found.tokenizer)):
            if changes:
                parts.append(_values(name, changes, len(changes) if details else 5))
    for one in chosen:
        parts += _details(one)
    return Group(*parts)


def _components(components: Sequence[ComponentDifference]) -> Table:
    table = _table("component", "", "nodes", "what differs", numeric=False)
    for one in components:
        likeness = Text(_LIKENESS[one.likeness], style="dim" if one.likeness == "identical" else "")
        table.add_row(Text(one.name), likeness, _pair(*map(str, one.nodes)), Text(_counts(one)))
    return table


def _counts(one: ComponentDifference) -> str:
    """Counts of differences in a component, e.g. "20 nodes changed, 20 weights up to 1.05e-01"."""
    alone = {"only in A": [c for c in one.changed if c.b is None], "only in B": [c for c in one.changed if c.a is None]}
    changed = len(one.changed) - sum(map(len, alone.values()))
    parts = [f"{_counted(changed, 'node')} changed"] if changed else []
    parts += [f"{_counted(len(nodes), 'node')} {where}" for where, nodes in alone.items() if nodes]
    parts += [_counted(len(one.facts), "fact")] if one.facts else []
    if one.tensors:
        errors = [t.relative_error for t in one.tensors if t.relative_error is not None]
        worst = f", relative error up to {_error(max(errors))}" if errors else ""
        parts.append(f"{_counted(len(one.tensors), 'tensor')}{worst}")
    return "; ".join([*parts, *([f"{_counted(one.renamed, 'node')} renamed"] if one.renamed else [])])


def _files(files: Sequence[FileChange]) -> Table:
    table = _table("file", "bytes in A", "bytes in B")
    for change in files:
        table.add_row(Text(change.name), *(ABSENT if size is None else f"{size:,}" for size in change.bytes))
    return table


def _values(title: str, changes: Sequence[ValueChange], count: int) -> Group:
    table = _table(title, "A", "B", numeric=False)
    for change in changes[:count]:
        table.add_row(Text(change.key), _value(change.a), _value(change.b))
    more = len(changes) - count
    return Group(table, *([Text(f"  and {more} more: --details lists them", style="dim")] if more > 0 else []))


def _details(one: ComponentDifference) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if one.facts:
        parts.append(_values(f"{one.name}: graph", one.facts, len(one.facts)))
    if one.changed:
        parts.append(_nodes(one))
    if one.tensors:
        parts.append(_tensors(one))
    return parts


def _nodes(one: ComponentDifference) -> Table:
    table = _table(f"{one.name}: node", "A", "B", "what", numeric=False)
    for change in one.changed:
        table.add_row(Text(change.place), _value(change.a), _value(change.b), Text(_what(change)))
    return table


def _what(change: NodeChange) -> str:
    if change.a is None or change.b is None:
        return "only in B" if change.a is None else "only in A"
    if change.reads:
        return "reads constants of another form"
    return ", ".join(f"{v.key}: {v.a or ABSENT} → {v.b or ABSENT}" for v in change.attributes)


def _tensors(one: ComponentDifference) -> Table:
    table = _table(f"{one.name}: tensor", "A", "B", "rel. error", "largest error")
    for change in one.tensors:
        name = change.name if change.other_name is None else f"{change.name} → {change.other_name}"
        about = " (dequantized)" if change.dequantized else ""
        errors = _error(change.relative_error), _error(change.largest_error)
        table.add_row(Text(f"{name}{about}"), _value(change.a), _value(change.b), *errors)
    return table


def _error(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2e}"


def _value(text: str | None) -> Text:
    shown = ABSENT if text is None else text
    return Text(shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…")


def _pair(a: str, b: str) -> str:
    return a if a == b else f"{a} → {b}"


def _table(first: str, *columns: str, numeric: bool = True) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(
            column, justify="left" if not numeric or column in ("", "A", "B") else "right", overflow="fold"
        )
    return table
