"""Columns and number formats of evaluations, shared by all reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvlc.errors import UserError
from hvlc.results import Agreement, Evaluation, Interval, Score
from hvlc.results.comparison import SIGNIFICANCE

#: Sign for a number that was not measured.
ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """One column of a comparison.

    Attributes:
        title: its head, with the unit.
        short: its head where room is scarce, two lines at most; "" leaves it out there.
        cell: the text of an evaluation's cell, without unit; an interval follows in brackets.
        numeric: whether cells are aligned right.
        bare: leave the interval out where room is scarce.
    """

    title: str
    short: str
    cell: Callable[[Evaluation], str]
    numeric: bool = True
    bare: bool = False


def percent(share: float, digits: int = 1) -> str:
    """0.9876 as "98.8 %"."""
    return f"{100 * share:.{digits}f} %"


def interval(score: Score) -> str:
    """The ends of a score's interval in percent, e.g. "95.1–98.9"."""
    return f"{100 * score.low:.1f}–{100 * score.high:.1f}"


def scored(score: Score) -> str:
    """A score and its interval, e.g. "97.7 % (95.1–98.9)"."""
    return f"{percent(score.value)} ({interval(score)})"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or the sign for an absent one."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def rounded(value: float) -> str:
    """A number with a decimal below 100 and none from there."""
    return number(value, 1 if value < 99.95 else 0)


def megabytes(size: int | None) -> str:
    """Bytes in units of 10^6, without the unit."""
    return ABSENT if size is None else rounded(size / 1e6)


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, without the unit."""
    return rounded(1000 * seconds)


def verdict(agreement: Agreement) -> str:
    """Whether the difference from the reference can be told from noise, in words."""
    if agreement.lost == agreement.won == 0:
        return "no answer changed sides"
    p = "p < 0.001" if agreement.p_value < 0.001 else f"p = {agreement.p_value:.2g}"
    changed = f"lost {agreement.lost}, won {agreement.won}, {p}"
    if agreement.p_value >= SIGNIFICANCE:
        return f"{changed}: within noise"
    return f"{changed}: {'worse' if agreement.lost > agreement.won else 'better'}, not noise"


def _score(score: Score) -> str:
    return f"{number(100 * score.value)} ({interval(score)})"


def _against(evaluation: Evaluation, share: Callable[[Agreement], float | None]) -> str:
    value = share(evaluation.agreement) if evaluation.agreement else None
    return number(None if value is None else 100 * value)


def interval_text(found: Interval | None, digits: int = 0, factor: float = 1.0) -> str:
    """A number and its interval, e.g. "31 (28–35)", or "31 (~28–35)" where the ends are all that was seen."""
    return ABSENT if found is None else _bracketed(found, lambda value: number(factor * value, digits))


def significant(found: Interval | None) -> str:
    """A number of any size and its interval with three digits, e.g. "0.00212 (0.00198–0.00231)"."""
    return ABSENT if found is None else _bracketed(found, lambda value: f"{value:.3g}")


def _bracketed(found: Interval, text: Callable[[float], str]) -> str:
    kind = "~" if found.method == "range" else ""
    return f"{text(found.value)} ({kind}{text(found.low)}–{text(found.high)})"


def _seconds(found: Interval) -> str:
    return interval_text(found, 1 if found.value < 0.09995 else 0, 1000)


_VISUAL = Column("visual tokens", "vis.\ntok.", lambda e: interval_text(e.summary.visual_tokens, 1), bare=True)
_FIRST = Column("TTFT, ms", "TTFT\nms", lambda e: _seconds(e.summary.median_time_to_first_token), bare=True)
_RATE = Column("tokens/s", "tok\n/s", lambda e: interval_text(e.summary.tokens_per_second), bare=True)
_PEAK = Column("peak memory, MB", "", lambda e: megabytes(e.peak_memory_bytes))
_SIZE = Column("size, MB", "size\nMB", lambda e: megabytes(e.size_bytes))

#: Columns of an evaluation's costs.
COSTS: tuple[Column, ...] = (
    _VISUAL,
    Column("equal tiles, %", "", lambda e: interval_text(e.summary.equal_tiles, 1, 100)),
    Column("tiles saved, %", "", lambda e: interval_text(e.summary.saved_tiles, 1, 100)),
    Column("prompt tokens", "", lambda e: interval_text(e.summary.prompt_tokens, 1)),
    Column("generated tokens", "", lambda e: interval_text(e.summary.generated_tokens, 1)),
    Column("scale", "", lambda e: ABSENT if e.summary.mean_scale is None else percent(e.summary.mean_scale, 0)),
    _FIRST,
    Column("p95 TTFT, ms", "", lambda e: _seconds(e.summary.p95_time_to_first_token)),
    _RATE,
    _PEAK,
    _SIZE,
    Column("bits/weight", "", lambda e: number(e.bits_per_weight, 2)),
)

#: Columns of the distance of an evaluation's distributions from its reference's.
FIDELITY: tuple[Column, ...] = (
    Column("KL, nats", "", lambda e: significant(e.fidelity.kl if e.fidelity else None)),
    Column("same top-1, %", "", lambda e: _score(e.fidelity.top1) if e.fidelity else ABSENT),
)

#: The columns of a comparison, left to right.
COLUMNS: tuple[Column, ...] = (
    Column("model", "model", lambda e: e.name, numeric=False),
    Column("encoder", "enc.", lambda e: e.encoder or ABSENT, numeric=False),
    Column("VRC", "VRC", lambda e: "on" if e.vrc else "off", numeric=False),
    Column("n", "n", lambda e: str(e.summary.n)),
    Column("exact match, %", "exact\nmatch, %", lambda e: _score(e.summary.exact_match)),
    Column("ANLS, %", "ANLS,\n%", lambda e: _score(e.summary.anls)),
    _VISUAL,
    _FIRST,
    _RATE,
    _PEAK,
    _SIZE,
    Column("same answers, %", "same\n%", lambda e: _against(e, lambda a: a.same_text.value)),
    Column("kept, %", "kept\n%", lambda e: _against(e, lambda a: a.recovery)),
)


def notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """One sentence per comparison, then what the columns mean and what the numbers ran on."""
    lines = [
        f"{e.label} against {e.agreement.reference}: {_compared(e, e.agreement)}." for e in evaluations if e.agreement
    ]
    ran = ", ".join(sorted({f"{e.name} on {e.runs_on}" for e in evaluations}))
    tasks = ", ".join(sorted({f"{e.task} (n = {e.summary.n})" for e in evaluations}))
    meaning = (
        "Brackets are 95 % intervals, after ~ the range of too few numbers. TTFT: median time to first token. Peak "
        "memory: of the whole process, what it did before included. MB: 10^6 bytes. Same answers, kept: answers equal "
        "to the reference's, share of its exact match. p: exact McNemar test. KL: mean divergence from the reference "
        "per token of its own answers; top-1: share of these tokens that both find likeliest."
    )
    return [*lines, f"Task: {tasks}. Ran: {ran}. {emulation(evaluations)}{meaning}"]


def emulation(evaluations: Sequence[Evaluation]) -> str:
    """Note on the times of an emulated processor; "" where none is emulated."""
    emulated = any("emulated" in e.runs_on for e in evaluations)
    return "Times in emulation say nothing of a device's. " if emulated else ""


def _compared(evaluation: Evaluation, agreement: Agreement) -> str:
    """The verdict, and the distance of the distributions where it was measured."""
    found = evaluation.fidelity
    if found is None:
        return verdict(agreement)
    return f"{verdict(agreement)}; KL {significant(found.kl)} nats per token, same top-1 {scored(found.top1)}"


def require_same_examples(evaluations: Sequence[Evaluation]) -> None:
    """Refuse to show evaluations side by side that did not answer the same examples.

    Raises:
        UserError: there is no evaluation, or two answered different examples.
    """
    if not evaluations:
        raise UserError("report.empty", "there is no evaluation to report", "evaluate something first")
    first = evaluations[0]
    for other in evaluations[1:]:
        if other.examples_digest != first.examples_digest:
            cause = f"{first.label} and {other.label} answered different examples"
            raise UserError("report.unpaired", cause, "evaluate both on the same task and count")
