"""Language of gates: `[surely] METRIC[ENCODER] OPERATOR BOUND`, on a command line or in a file.

`docs/gates.md` describes the language. A bound is in the metric's unit, or `0.98x`: times the reference's value. What
could never break, never hold, or not be understood is an error before anything is measured.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Literal, cast

from pydantic import Field

from hvlc.errors import Collector, UserError, nearest
from hvlc.files.reading import SOURCE, read_text
from hvlc.inputs.documents import read_yaml, yaml_lines
from hvlc.inputs.records import StrictModel
from hvlc.results.gates import Gate, Operator, SourceLine
from hvlc.results.measures import MEASURES, Measure
from hvlc.results.units import factors, split_quantity

_GATE = re.compile(
    r"(?P<surely>surely\s+)?(?P<metric>[A-Za-z][\w-]*)\s*(?:\[\s*(?P<encoder>[\w.-]+)\s*\]\s*)?"
    r"(?P<operator>>=|<=|>|<)(?P<bound>[^<>=]+)",
    re.ASCII,
)
_LONGEST = 300  # characters of a gate
_MOST_GATES = 1000
_LEAST, _MOST = Decimal("1E-30"), Decimal("1E+30")
_FORM = 'write METRIC >= BOUND, for example "exact_match >= 0.98x" or "size <= 40MB"; operators are >= <= > <'


def parse_gate(text: str, *, reason: str = "", place: SourceLine | None = None) -> Gate:
    """Read a gate.

    Args:
        text: the gate.
        reason: why there is this gate.
        place: where it is written, for the record.

    Raises:
        UserError: "gate.syntax", "gate.metric", "gate.unit", or "gate.bound" for one that nothing can break or keep.
    """
    if len(text) > _LONGEST:
        raise UserError("gate.syntax", f"{text[:80]!r}… has {len(text)} characters, {_LONGEST} are the most", _FORM)
    found = _GATE.fullmatch(text.strip())
    if found is None:
        raise UserError("gate.syntax", f"{text!r} is not a gate", _FORM)
    measure = MEASURES.get(found["metric"])
    if measure is None:
        cause = f"{text!r}: there is no metric {found['metric']!r}"
        raise UserError("gate.metric", cause, nearest(found["metric"], MEASURES))
    bound, relative = _bound(text, found["bound"], measure)
    gate = Gate(
        metric=measure.name,
        encoder=found["encoder"],
        operator=cast(Operator, found["operator"]),
        bound=bound,
        relative=relative,
        surely=found["surely"] is not None,
        written=" ".join(found["bound"].split()),
        reason=reason,
        place=place,
    )
    _require_sense(text, gate, measure)
    return gate


def _bound(text: str, written: str, measure: Measure) -> tuple[float, bool]:
    """The bound in the measure's unit, or times the reference's value, and which of the two it is."""
    try:
        number, unit = split_quantity(written)
    except ValueError as error:
        raise UserError("gate.syntax", f"{text!r}: {error}", _FORM) from error
    if unit.lower() == "x":
        return _within(text, number), True
    known = factors(measure.unit, share=measure.share)
    factor = {name.lower(): factor for name, factor in known.items()}.get(unit.lower())
    if factor is None:
        named = ", ".join(name or "no unit" for name in known)
        cause = f"{text!r}: {measure.name} is not measured in {unit}" if unit else f"{text!r}: the bound has no unit"
        raise UserError("gate.unit", cause, f"write the bound in {named}, or as 0.9x for nine tenths of the reference")
    return _within(text, number * factor), False


def _within(text: str, number: Decimal) -> float:
    """A bound as a float.

    Raises:
        UserError: a float that large or small has no digits left to compare.
    """
    if number and not _LEAST <= number <= _MOST:
        cause = f"{text!r}: the bound is not 0 and not within {_LEAST} and {_MOST}"
        raise UserError("gate.bound", cause, "choose a bound that a model can keep and break")
    return float(number)


def _require_sense(text: str, gate: Gate, measure: Measure) -> None:
    """Refuse a gate that nothing can break, or nothing can keep: measures are never negative, shares never above 1."""
    at_most_one = measure.share and not gate.relative
    below = gate.bound == 0 and gate.operator in (">=", "<")
    above = at_most_one and (gate.bound > 1 or (gate.bound == 1 and gate.operator in (">", "<=")))
    if below or above:
        always = gate.operator == ">=" if below else gate.operator in ("<=", "<")
        range_ = "within 0 and 1" if at_most_one else "at least 0"
        cause = f"{text!r} {'always holds' if always else 'can never hold'}: {measure.name} is {range_}"
        hint = ", for example 98% or 0.98" if at_most_one else ""
        raise UserError("gate.bound", cause, f"choose a bound that a model can keep and break{hint}")


class _Entry(StrictModel):
    """One gate of a file.

    Attributes:
        gate: the gate.
        reason: why there is this gate; reports show it.
    """

    gate: str
    reason: str = ""


class _File(StrictModel):
    """A file of gates.

    Attributes:
        schema_version: of this format.
        gates: at least one.
    """

    schema_version: Literal[1]
    gates: tuple[_Entry, ...] = Field(min_length=1, max_length=_MOST_GATES)


def read_gates(texts: Sequence[str], file: Path | None = None) -> list[Gate]:
    """The gates of a file and of a command line, each once.

    Raises:
        UserError: the file cannot be read, a gate cannot be understood, or two contradict each other; all of the
            gates' problems come in one error.
    """
    if len(texts) > _MOST_GATES:
        raise UserError("gate.syntax", f"{len(texts)} gates, and {_MOST_GATES} are the most", "leave some out")
    problems, gates = Collector(), []
    for text, reason, place in [*_entries(file), *((text, "", None) for text in texts)]:
        with problems:
            gates.append(_placed(text, reason, place))
    problems.raise_all()
    once: dict[tuple[object, ...], Gate] = {}
    for gate in gates:
        once.setdefault((gate.subject, gate.operator, gate.bound, gate.relative, gate.surely), gate)
    require_consistent(once.values())
    return list(once.values())


def _entries(file: Path | None) -> list[tuple[str, str, SourceLine | None]]:
    """Text, reason and place of every gate of a file."""
    if file is None:
        return []
    read = _File.parse(read_yaml(file), str(file))
    source = read_text(file, "spec.unreadable", limit=SOURCE)
    places = (SourceLine(file=str(file), line=line) for line in yaml_lines(source, "gates"))
    return [(entry.gate, entry.reason, place) for entry, place in zip(read.gates, places, strict=True)]


def _placed(text: str, reason: str, place: SourceLine | None) -> Gate:
    """A gate whose problems name its place."""
    try:
        return parse_gate(text, reason=reason, place=place)
    except UserError as error:
        where = f"{place.file}:{place.line}: " if place else ""
        raise UserError(error.code, where + error.cause, error.fix) from error


def require_consistent(gates: Iterable[Gate]) -> None:
    """Refuse gates that no number can keep together.

    Raises:
        UserError: "gate.contradiction", for each such pair.
    """
    problems = Collector()
    for one, other in combinations(gates, 2):
        with problems:
            if _contradict(one, other):
                cause = f"{one.text!r} and {other.text!r} cannot both hold"
                raise UserError("gate.contradiction", cause, "drop one of them, or correct its bound")
    problems.raise_all()


def _contradict(one: Gate, other: Gate) -> bool:
    same = one.metric == other.metric and one.relative == other.relative
    apart = one.encoder != other.encoder and None not in (one.encoder, other.encoder)
    lower, upper = (one, other) if ">" in one.operator else (other, one)
    if not same or apart or ">" not in lower.operator or "<" not in upper.operator:
        return False
    inclusive = "=" in lower.operator and "=" in upper.operator
    return lower.bound > upper.bound or (lower.bound == upper.bound and not inclusive)


def require_checkable(
    gates: Iterable[Gate],
    *,
    kind: Literal["questions", "text"],
    reference: bool,
    fidelity: bool,
    encoders: Sequence[str],
) -> None:
    """Refuse gates that an evaluation will not be able to answer, before it runs.

    Args:
        gates: what is demanded.
        kind: of the task.
        reference: whether there is a reference.
        fidelity: whether its distributions are compared too.
        encoders: vision encoders that will be evaluated.

    Raises:
        UserError: "gate.metric" for a metric that will not be computed, "gate.reference" for one that takes a
            reference, "gate.encoder" for an encoder that is not evaluated; all of them in one error.
    """
    problems = Collector()
    for gate in gates:
        with problems:
            needs = MEASURES[gate.metric].needs
            if (gate.relative or needs == "reference") and not reference:
                raise UserError("gate.reference", f"{gate.text!r} takes a reference", "name one with --reference")
            if needs == "reference" and not fidelity:
                cause = f"{gate.text!r}: {gate.metric} takes the reference's distributions"
                raise UserError("gate.reference", cause, "leave out --no-fidelity")
            if needs in ("questions", "text") and needs != kind:
                task = "questions (JSON Lines, or documents)" if needs == "questions" else "a text (.txt)"
                cause = f"{gate.text!r}: {gate.metric} is not computed on this task"
                raise UserError("gate.metric", cause, f"it takes a task of {task}")
            if gate.encoder is not None and gate.encoder not in encoders:
                cause = f"{gate.text!r}: the encoder {gate.encoder!r} is not evaluated"
                known = nearest(gate.encoder, [e for e in encoders if e]) if any(encoders) else "there is none"
                raise UserError("gate.encoder", cause, known)
    problems.raise_all()
