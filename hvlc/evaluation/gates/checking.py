"""Judgement of evaluations by gates.

A gate speaks of the model, a measurement of some examples. So it is the 95 % interval that is held against the bound:

- all of it keeps the bound: passed;
- none of it does: broken;
- the bound lies within: undecided, which breaks a gate only if it says "surely".

So noise breaks no gate: a model that is exactly as good as the bound breaks it about once in forty draws of the
examples, a better one less often. And luck passes none: what is called passed is told from the bound. Sizes and the
like have no interval; their value decides. What was not computed, or has nothing to decide it by (examples, a
reference), is an error.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

from hvlc.errors import Collector, GateError, UserError, nearest
from hvlc.evaluation.gates import ratios
from hvlc.results import Evaluation, Interval, Measured
from hvlc.results.gates import Gate, GateOutcome, GateVerdict, JudgedEvaluation, Judgement, Ratio
from hvlc.results.measures import MEASURES
from hvlc.results.units import written_apart, written_ends

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_MISSED = {">=": "below", ">": "not above", "<=": "above", "<": "not below"}
_KEPT = {">=": "at least", ">": "above", "<=": "at most", "<": "below"}
_MOST = 10**6  # examples worth naming


def check(gates: Sequence[Gate], evaluations: Sequence[Measured], references: Sequence[Measured] = ()) -> Judgement:
    """Hold every gate against every evaluation that it speaks of.

    Args:
        gates: what is demanded.
        evaluations: what was measured.
        references: what relative gates refer to, one for each setting; the encoder and the compressor must be the same.

    Raises:
        UserError: a gate has nothing to decide on: its metric was not computed, there are too few examples for an
            interval, the reference is missing, 0, or answered other examples, or no evaluation is of its encoder. All
            problems come in one error.
    """
    problems = Collector()
    outcomes: list[list[GateOutcome]] = [[] for _ in evaluations]
    with problems:
        _require_spoken_of(gates, evaluations)
    for evaluation, found in zip(evaluations, outcomes, strict=True):
        for gate in gates:
            if gate.encoder in (None, _encoder(evaluation)):
                with problems:
                    found.append(_outcome(gate, evaluation, references))
    problems.raise_all()
    return Judgement(
        evaluations=tuple(map(_judged, evaluations, outcomes)),
        references=tuple(_judged(reference, ()) for reference in references),
    )


def raise_broken(judgement: Judgement) -> None:
    """Raise when a gate is broken; call it after every file is written.

    Raises:
        GateError: "gate.broken", with the reasons.
    """
    reasons = [outcome.message for outcome in judgement.found(GateVerdict.BROKEN)]
    if reasons:
        count = f"{len(reasons)} of {len(judgement.outcomes)} gates broken"
        cause = f"{reasons[0]} ({count})" if len(reasons) == 1 else "\n  ".join([f"{count}:", *reasons])
        raise GateError("gate.broken", cause, "hvlc compare shows what changed, hvlc bisect where it starts")


def _require_spoken_of(gates: Sequence[Gate], evaluations: Sequence[Measured]) -> None:
    if not evaluations:
        raise UserError("gate.nothing", "no evaluation to hold the gates against", "evaluate something first")
    encoders = {_encoder(evaluation) for evaluation in evaluations}
    for gate in gates:
        if gate.encoder is not None and gate.encoder not in encoders:
            cause = f"{gate.text!r}: no evaluation is of the encoder {gate.encoder!r}"
            raise UserError("gate.encoder", cause, nearest(gate.encoder, [e for e in encoders if e] or ["none"]))


def _encoder(measured: Measured) -> str:
    return measured.encoder if isinstance(measured, Evaluation) else ""


def _judged(evaluation: Measured, outcomes: Iterable[GateOutcome]) -> JudgedEvaluation:
    read = {name: measure.read(evaluation) for name, measure in MEASURES.items()}
    seconds = None
    if isinstance(evaluation, Evaluation):
        seconds = math.fsum(e.time_to_first_token + e.decode_seconds for e in evaluation.examples)
    return JudgedEvaluation(
        name=evaluation.name,
        label=evaluation.label,
        task=evaluation.task,
        runs_on=evaluation.runs_on,
        seconds=seconds,
        measures={name: number for name, number in read.items() if number is not None},
        outcomes=tuple(outcomes),
    )


def _outcome(gate: Gate, evaluation: Measured, references: Sequence[Measured]) -> GateOutcome:
    """One gate on one evaluation."""
    measured = _number(gate, evaluation)
    if not gate.relative:
        found = verdict(gate, measured.low, measured.high)
        message = _absolute_message(gate, evaluation, measured, found)
        return GateOutcome(gate=gate, verdict=found, measured=measured, message=message)
    reference = _reference(gate, evaluation, references)
    theirs = _number(gate, reference)
    if theirs.value == 0:
        cause = f"{gate.text!r}: {gate.metric} of {reference.label} is 0, and nothing is a multiple of it"
        raise UserError("gate.reference", cause, "give an absolute bound, or a reference that works")
    ratio = ratios.compare(gate.metric, evaluation, reference, (measured, theirs))
    found = verdict(gate, ratio.low, ratio.high)
    message = _relative_message(gate, (evaluation, measured), (reference, theirs), ratio, found)
    return GateOutcome(
        gate=gate, verdict=found, measured=measured, ratio=ratio, reference=reference.label, message=message
    )


def _number(gate: Gate, evaluation: Measured) -> Interval:
    """Interval of the gate's metric, if that can decide anything."""
    found = MEASURES[gate.metric].read(evaluation)
    if found is None:
        computed = [name for name, measure in MEASURES.items() if measure.read(evaluation) is not None]
        cause = f"{gate.text!r}: {gate.metric} was not computed for {evaluation.label} on {evaluation.task}"
        raise UserError("gate.metric", cause, f"computed were {', '.join(computed)}")
    if not all(math.isfinite(number) for number in (found.low, found.value, found.high)):
        cause = f"{gate.text!r}: {gate.metric} of {evaluation.label} is {found.value}"
        raise UserError("gate.metric", cause, "find out why it is not a number; a gate cannot pass on it")
    if found.method == "range":
        cause = f"{gate.text!r}: {found.n} observations of {evaluation.label} are too few for a 95 % interval"
        fix = "ask for more examples: a mean and a median take 6, a 95th percentile 72"
        raise UserError("gate.too_few", cause, fix)
    return found


def _reference(gate: Gate, evaluation: Measured, references: Sequence[Measured]) -> Measured:
    for reference in references:
        if type(reference) is type(evaluation) and _setting(reference) == _setting(evaluation):
            return reference
    cause = f"{gate.text!r}: there is no reference for {evaluation.label}"
    raise UserError("gate.reference", cause, "evaluate the reference on the same task, encoder and compressor")


def _setting(measured: Measured) -> tuple[str, bool]:
    return (measured.encoder, measured.vrc) if isinstance(measured, Evaluation) else ("", False)


def verdict(gate: Gate, low: float, high: float | None) -> GateVerdict:
    """Verdict of an interval on a bound.

    Args:
        gate: the bound.
        low: lower end of the interval.
        high: upper end, None if it has none.
    """
    ends = (low, math.inf if high is None else high)
    kept = [_keeps(gate, end) for end in ends]
    if all(kept):
        return GateVerdict.PASSED
    return GateVerdict.UNDECIDED if any(kept) and not gate.surely else GateVerdict.BROKEN


def _keeps(gate: Gate, value: float) -> bool:
    return _OPERATORS[gate.operator](value, gate.bound)


def _absolute_message(gate: Gate, evaluation: Measured, measured: Interval, found: GateVerdict) -> str:
    unit = MEASURES[gate.metric].unit
    value = written_apart(measured.value, gate.bound, unit)
    around = "" if measured.method == "exact" else _around(measured.low, measured.high, measured.n, unit)
    stands = _stands(gate, measured.value, (measured.low, measured.high), measured.n, found)
    return f"{gate.metric} of {evaluation.label} is {value}{around}, {stands}"


def _relative_message(
    gate: Gate, ours: tuple[Measured, Interval], theirs: tuple[Measured, Interval], ratio: Ratio, found: GateVerdict
) -> str:
    unit = MEASURES[gate.metric].unit
    (evaluation, measured), (reference, other) = ours, theirs
    around = "" if ratio.method == "exact" else _around(ratio.low, ratio.high, ratio.n, "")
    return (
        f"{gate.metric} of {evaluation.label} is {written_apart(measured.value, other.value, unit)}, "
        f"{written_apart(ratio.value, gate.bound, '')}x{around} of {reference.label}'s "
        f"{written_apart(other.value, measured.value, unit)}, "
        f"{_stands(gate, ratio.value, (ratio.low, ratio.high), ratio.n, found)}"
    )


def _around(low: float, high: float | None, n: int, unit: str) -> str:
    return f" ({written_ends(low, high, unit)}, n = {n})"


def _stands(gate: Gate, value: float, ends: tuple[float, float | None], n: int, found: GateVerdict) -> str:
    """Relation of a number to its bound, in words."""
    if found is GateVerdict.PASSED:
        return f"{_KEPT[gate.operator]} {gate.written}"
    low, high = ends
    within = _keeps(gate, low) or _keeps(gate, math.inf if high is None else high)
    if not within:
        return f"{_MISSED[gate.operator]} {gate.written}"
    return f"and {gate.written} lies within the interval{_more(gate.bound, value, ends, n)}"


def _more(bound: float, value: float, ends: tuple[float, float | None], n: int) -> str:
    """About how many examples would decide: an interval narrows with the square root of their number."""
    end = ends[0] if bound < value else ends[1]
    if end is None or bound == value:
        return ""
    wanted = n * ((end - value) / (bound - value)) ** 2
    if not n < wanted <= _MOST:
        return ""
    digits = 10 ** max(0, math.floor(math.log10(wanted)) - 1)
    return f" (about {math.ceil(wanted / digits) * digits} examples would tell)"
