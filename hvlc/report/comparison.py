"""Comparison of models, for the terminal and as Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hvlc.report.columns import ABSENT, megabytes, number, percent
from hvlc.report.gates import quantity
from hvlc.report.markdown import escaped, table
from hvlc.report.terminal import comparison_table, text_table
from hvlc.results import Evaluation, Measured, TextEvaluation
from hvlc.results.comparison import SIGNIFICANCE, Comparison, LayerError, ModelSummary, PairedTest, StageError
from hvlc.results.difference import ValueChange
from hvlc.results.measures import MEASURES
from hvlc.results.trace_points import ANSWER, SAMPLING
from hvlc.results.units import written

_STYLES = {"noise": "dim", "worse": "red", "better": "green"}
_FIDELITY = ("kl", "top1_agreement")
_SHOWN = 10  # rows of what may be long
_NAMED = 2  # models whose names fit above columns
_LONGEST = 60  # characters of a value


def headline(comparison: Comparison) -> list[str]:
    """For each contestant: whether it is worse, better, or within noise, and from where on its values differ."""
    return [
        " ".join([_sentence(comparison, contestant), *_departure(comparison, contestant.name)])
        for contestant in comparison.contestants[1:]
    ]


def _departure(comparison: Comparison, name: str) -> Iterator[str]:
    """First place at which values differ."""
    stages = [row for row in comparison.stages if row.contestant == name and row.stage not in (SAMPLING, ANSWER)]
    first = next((row for row in stages if row.relative_error != 0), None)
    if first is not None:
        last = "" if stages[-1] is first else f", {error(stages[-1].relative_error)} at {stages[-1].stage}"
        yield f"Its values differ from {first.stage} on: {error(first.relative_error)} there{last}."
    elif stages:
        yield "Its values are the same in every layer."


def _sentence(comparison: Comparison, contestant: ModelSummary) -> str:
    labels = {run.label for run in comparison.runs if run.contestant == contestant.name}
    tests = [test for test in comparison.tests if test.run in labels]
    told = [test for test in tests if test.verdict != "noise"]
    size = _smaller(contestant, comparison.contestants[0])
    if not tests:
        return f"{contestant.name} was not tested against {comparison.reference}{size}."
    if not told:
        same = all(test.difference.low == test.difference.high == 0 for test in tests)
        verdict = f"scores as {comparison.reference} does on every example" if same else "is within noise of "
        return f"{contestant.name} {verdict}{'' if same else comparison.reference}{size}."
    parts = [f"{test.verdict} in {MEASURES[test.measure].title}{_where(test, labels)}" for test in told]
    return f"{contestant.name} is {', '.join(parts)} than {comparison.reference}{size}."


def _where(test: PairedTest, labels: set[str]) -> str:
    """By how much, and in which run where there are several."""
    by = gap(test).replace(" (", ", ").removesuffix(")")
    return f" ({test.run}: {by})" if len(labels) > 1 else f" ({by})"


def _smaller(contestant: ModelSummary, reference: ModelSummary) -> str:
    if not contestant.size_bytes or not reference.size_bytes or contestant.size_bytes == reference.size_bytes:
        return ""
    return f", at {percent(contestant.size_bytes / reference.size_bytes, 0)} of its size"


def gap(test: PairedTest) -> str:
    """A difference with its sign and interval: in points of percent for shares, in its unit else."""
    found, share = test.difference, MEASURES[test.measure].share
    if found.low == found.high == 0:
        return "0"
    if share:
        value, low, high = (f"{100 * end:+.1f}" for end in (found.value, found.low, found.high))
        return f"{value} points ({low} to {high})"
    return f"{found.value:+.4f} nats ({found.low:+.4f} to {found.high:+.4f})"


def chance(p_value: float) -> str:
    """A p-value for people."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def lost_and_won(comparison: Comparison, run: str) -> tuple[int, int]:
    """Examples that a run lost and won."""
    directions = [flip.direction for flip in comparison.flips if flip.run == run]
    return directions.count("lost"), directions.count("won")


def tests_rows(comparison: Comparison) -> list[list[str]]:
    """Every test: run, measure, difference, lost and won, p, corrected p, verdict."""
    rows = []
    for test in comparison.tests:
        lost, won = lost_and_won(comparison, test.run)
        changed = f"lost {lost}, won {won}" if test.method == "McNemar" else ABSENT
        chances = chance(test.p_value), chance(test.adjusted)
        rows.append([test.run, MEASURES[test.measure].title, gap(test), changed, *chances, test.verdict])
    return rows


TESTS_HEAD = ("run", "score", "difference", "examples", "p", "corrected p", "verdict")

CONTESTANTS_HEAD = ("model", "size, MB", "bits/weight", "recipe", "target", "checkpoint")


def contestants_rows(comparison: Comparison) -> list[list[str]]:
    """Every model: size, bits, and what it was made from."""
    return [
        [
            contestant.name,
            megabytes(contestant.size_bytes),
            number(contestant.bits_per_weight, 2),
            *(contestant.facts.get(fact, ABSENT) for fact in ("recipe", "target", "checkpoint")),
        ]
        for contestant in comparison.contestants
    ]


def fidelity_rows(comparison: Comparison) -> list[list[str]]:
    """Rows of each run's divergence from the reference's distributions."""
    held = [run for run in comparison.runs if any(name in run.measures for name in _FIDELITY)]
    return [[run.label, *(quantity(run.measures.get(name), name) for name in _FIDELITY)] for run in held]


def tests_note(comparison: Comparison) -> str:
    """Note on the tests of significance."""
    methods = {test.method for test in comparison.tests}
    parts = ["McNemar's exact test on examples that changed sides"] if "McNemar" in methods else []
    parts += ["random signs of paired differences (10,000 draws)"] if "sign flips" in methods else []
    count = len(comparison.tests)
    return (
        f"Differences are to {comparison.reference}'s run on the same examples; brackets are 95 % intervals. "
        f"p: {' and '.join(parts)}; corrected for {count} test{'' if count == 1 else 's'} (Holm). "
        f"Noise: corrected p of {SIGNIFICANCE} or more."
    )


def by_contestant(
    rows: Sequence[LayerError] | Sequence[StageError],
) -> Iterator[tuple[str, Mapping[str, float | None]]]:
    """Errors of each place, by contestant, in order."""
    found: dict[str, dict[str, float | None]] = {}
    for row in rows:
        place = row.stage if isinstance(row, StageError) else f"{row.layer} {row.kind}"
        found.setdefault(place, {})[row.contestant] = row.relative_error
    yield from found.items()


def error(value: float | None) -> str:
    """A relative error in percent."""
    if value is None:
        return ABSENT
    return "0" if value == 0 else f"{written(100 * value, '', 2)} %"


def change_rows(changes: Sequence[ValueChange]) -> list[list[str]]:
    """Keys and both values, shortened."""
    return [[change.key, _value(change.a), _value(change.b)] for change in changes]


def _value(text: str | None) -> str:
    shown = ABSENT if text is None else text
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def plan_summary(comparison: Comparison) -> list[list[str]]:
    """Number of weights for each change of format, by contestant against the reference."""
    counts: dict[tuple[str, str, str], int] = {}
    for change in comparison.plan:
        before = change.formats.get(comparison.reference, ABSENT)
        for contestant in comparison.contestants[1:]:
            after = change.formats.get(contestant.name, ABSENT)
            if contestant.source == "package" and after != before:
                key = contestant.name, before, after
                counts[key] = counts.get(key, 0) + 1
    return [[name, before, after, str(count)] for (name, before, after), count in counts.items()]


def summary_tables(comparison: Comparison, evaluations: Sequence[Measured]) -> Group:
    """The scores of a comparison for the terminal, and which differences are noise."""
    parts: list[RenderableType] = [Text(sentence, style="bold") for sentence in headline(comparison)]
    parts.append(_scores(evaluations))
    if comparison.tests:
        parts += [_tests(comparison), Text(tests_note(comparison), style="dim")]
    return Group(*parts)


def comparison_tables(comparison: Comparison, evaluations: Sequence[Measured]) -> Group:
    """A comparison for the terminal."""
    numbered = [[str(number), *row] for number, row in enumerate(contestants_rows(comparison), 1)]
    parts: list[RenderableType] = [summary_tables(comparison, evaluations), _table(("", *CONTESTANTS_HEAD), numbered)]
    if any("kl" in run.measures for run in comparison.runs):
        parts.append(_table(("run", *(MEASURES[name].title for name in _FIDELITY)), fidelity_rows(comparison)))
    if comparison.flips:
        parts.append(_flips(comparison))
    names = [contestant.name for contestant in comparison.contestants[1:]]
    for title, rows in (("weights", comparison.layers), ("values", comparison.stages)):
        if rows:
            parts.append(_errors(title, rows, names))
    if comparison.plan:
        parts.append(_table(("model", "stored as", "instead of", "weights"), _swapped(plan_summary(comparison))))
    for name, sections in comparison.settings.items():
        for section, changes in sections.items():
            parts.append(_table((f"{name}: {section}", comparison.reference, name), change_rows(changes[:_SHOWN])))
            if len(changes) > _SHOWN:
                parts.append(Text(f"  and {len(changes) - _SHOWN} more", style="dim"))
    return Group(*parts, *(Text(f"note: {note}", style="yellow") for note in comparison.notes))


def _swapped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[name, after, before, count] for name, before, after, count in rows]


def _scores(evaluations: Sequence[Measured]) -> Group:
    asked = [e for e in evaluations if isinstance(e, Evaluation)]
    read = [e for e in evaluations if isinstance(e, TextEvaluation)]
    return Group(*([comparison_table(asked, verdicts=False)] if asked else []), *([text_table(read)] if read else []))


def _tests(comparison: Comparison) -> Table:
    made = _frame(*TESTS_HEAD)
    for test, row in zip(comparison.tests, tests_rows(comparison), strict=True):
        *cells, verdict = (Text(cell.replace(" (", "\n(")) for cell in row)
        verdict.stylize(_STYLES[test.verdict])
        made.add_row(*cells, verdict)
    return made


def _flips(comparison: Comparison) -> Group:
    made = _frame("run", "", "example", "question", comparison.reference, "run's answer")
    for flip in comparison.flips[:_SHOWN]:
        style = "red" if flip.direction == "lost" else "green"
        cells = (flip.run, Text(flip.direction, style=style), flip.id, flip.question, flip.before, flip.after)
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    more = len(comparison.flips) - _SHOWN
    return Group(made, *([Text(f"  and {more} more examples that changed sides", style="dim")] if more > 0 else []))


def _errors(title: str, rows: Sequence[LayerError] | Sequence[StageError], names: Sequence[str]) -> Group:
    """Relative errors by layer: the largest ones of weights, all stages of values."""
    places = list(by_contestant(rows))
    if title == "weights":
        places = sorted(places, key=lambda place: -max((v or 0 for v in place[1].values()), default=0))[:_SHOWN]
    heads = names if len(names) <= _NAMED else [f"model {number}" for number in range(2, len(names) + 2)]
    made = _frame(f"relative error of {title}", *heads)
    for place, errors in places:
        made.add_row(
            Text(place), *(Text(error(errors.get(name))) if name in errors else Text(ABSENT) for name in names)
        )
    return Group(made)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = _frame(*head)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def _frame(*head: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in head:
        made.add_column(Text(title), overflow="fold")
    return made


def comparison_markdown(comparison: Comparison, evaluations: Sequence[Measured]) -> str:
    """A comparison for a pull request: what is worse first, then scores, tests, flips and differences."""
    names = [name for name in MEASURES if any(name in run.measures for run in comparison.runs)]
    scores = [[MEASURES[n].title, *(quantity(run.measures.get(n), n) for run in comparison.runs)] for n in names]
    ran = sorted({f"{run.label} ran on {run.runs_on} (n = {run.n})" for run in comparison.runs})
    lines = [
        *(f"- {escaped(sentence)}" for sentence in headline(comparison)),
        *table(["score", *(run.label for run in comparison.runs)], scores, left=1),
        f"Brackets are 95 % intervals. {escaped('; '.join(ran))}.",
        *table(CONTESTANTS_HEAD, contestants_rows(comparison), left=1),
    ]
    if comparison.tests:
        lines += [*table(TESTS_HEAD, tests_rows(comparison), left=2), escaped(tests_note(comparison))]
    if comparison.flips:
        head = ("run", "", "example", "question", "before", "after")
        rows = [[f.run, f.direction, f.id, f.question, f.before, f.after] for f in comparison.flips[:_SHOWN]]
        lines += [f"\n{len(comparison.flips)} examples changed sides.", *table(head, rows, left=6)]
    others = [contestant.name for contestant in comparison.contestants[1:]]
    for title, errors in (("weights", comparison.layers), ("values", comparison.stages)):
        rows = [[place, *(error(e.get(n)) for n in others)] for place, e in by_contestant(errors)]
        lines += table([f"relative error of {title}", *others], rows, left=1) if rows else []
    for name, sections in comparison.settings.items():
        for section, changes in sections.items():
            lines += table([f"{name}: {section}", comparison.reference, name], change_rows(changes), left=3)
    return "\n".join([*lines, *(f"- {escaped(note)}" for note in comparison.notes)]) + "\n"
