import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hvlc.errors import GateError, UserError
from hvlc.evaluation.gates import check, parse_gate, raise_broken
from hvlc.evaluation.gates.checking import verdict
from hvlc.results import Evaluation, Measured, Score
from hvlc.results.gates import GateOutcome, GateVerdict
from hvlc.results.measures import MEASURES
from tests.helpers.measurements import fidelity, measured, read_text

ENDS = st.floats(0, 2)
BOUND = st.decimals("0.01", "0.99", places=2)
OPERATOR = st.sampled_from([">=", "<=", ">", "<"])


def outcome(gate: str, evaluation: Measured, references: Sequence[Measured] = ()) -> GateOutcome:
    (found,) = check([parse_gate(gate)], [evaluation], references).outcomes
    return found


@cache
def scored(count: int, n: int = 100, **fields: Any) -> Evaluation:
    """An evaluation of `n` examples whose first `count` are right."""
    return measured([index < count for index in range(n)], **fields)


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ("exact_match >= 0.8", "passed"),  # 90 of 100: 0.826 to 0.945
        ("surely exact_match >= 0.8", "passed"),
        ("exact_match >= 0.9", "undecided"),
        ("exact_match >= 94%", "undecided"),
        ("surely exact_match >= 0.83", "broken"),
        ("surely exact_match >= 0.9", "broken"),
        ("exact_match >= 0.95", "broken"),
        ("exact_match <= 0.95", "passed"),
        ("exact_match < 0.8", "broken"),
        ("size <= 38.4MB", "passed"),
        ("size < 38.4MB", "broken"),
        ("size >= 38.4MB", "passed"),
        ("size > 38.4MB", "broken"),
        ("surely size <= 38.4MB", "passed"),
        ("bits_per_weight <= 4.4 bits", "broken"),
        ("p50_ttft <= 20ms", "passed"),
        ("p50_ttft < 20ms", "broken"),
        ("exact_match[base] >= 0.95", "broken"),
    ],
)
def test_the_interval_decides(gate: str, verdict: str) -> None:
    assert outcome(gate, scored(90)).verdict == verdict


@pytest.mark.parametrize(
    ("gate", "ours", "verdict"),
    [
        ("exact_match >= 0.98x", 90, "undecided"),  # the same answers: 0.979 to 1.02
        ("exact_match >= 0.97x", 90, "passed"),
        ("surely exact_match >= 0.98x", 90, "broken"),
        ("exact_match >= 0.98x", 80, "broken"),
        ("exact_match >= 0.98x", 89, "undecided"),
        ("exact_match >= 1.1x", 90, "broken"),
        ("size <= 0.3x", 90, "passed"),
        ("size <= 0.2x", 90, "broken"),
    ],
)
def test_the_ratio_to_the_reference_decides(gate: str, ours: int, verdict: str) -> None:
    reference = scored(90, name="float32", size_bytes=140_000_000)
    found = outcome(gate, scored(ours), [reference])
    assert (found.verdict, found.reference) == (verdict, "float32 · base")


@given(st.lists(ENDS, min_size=2, max_size=2), ENDS, BOUND, OPERATOR, st.booleans())
def test_a_better_interval_never_gets_a_worse_verdict(ends, shift: float, bound, operator: str, surely: bool) -> None:
    order = [GateVerdict.BROKEN, GateVerdict.UNDECIDED, GateVerdict.PASSED]
    gate = parse_gate(f"{'surely ' if surely else ''}size {operator} {bound}x")
    low, high = sorted(ends)
    better = shift if ">" in operator else -shift
    assert order.index(verdict(gate, low + better, high + better)) >= order.index(verdict(gate, low, high))
    narrow = order.index(verdict(gate, high, high)), order.index(verdict(gate, low, low))
    assert min(narrow) <= max(order.index(verdict(gate, low, high)), 0 if surely else min(narrow)) <= max(narrow)


@settings(max_examples=40)
@given(st.integers(1, 19), st.integers(1, 19), BOUND, st.booleans(), st.booleans())
def test_more_right_answers_never_break_a_gate(few: int, more: int, bound, relative: bool, surely: bool) -> None:
    assume(few < more)
    order = [GateVerdict.BROKEN, GateVerdict.UNDECIDED, GateVerdict.PASSED]
    gate = f"{'surely ' if surely else ''}exact_match >= {bound}{'x' if relative else ''}"
    worse, better = (outcome(gate, scored(count, 20), [scored(16, 20)]).verdict for count in (few, more))
    assert order.index(better) >= order.index(worse)


@given(ENDS, BOUND, OPERATOR, st.booleans())
def test_nan_never_passes(value: float, bound, operator: str, surely: bool) -> None:
    gate = parse_gate(f"{'surely ' if surely else ''}size {operator} {bound}x")
    assert verdict(gate, math.nan, math.nan) is GateVerdict.BROKEN
    for ends in ((math.nan, value), (value, math.nan)):
        assert verdict(gate, *ends) is not GateVerdict.PASSED


def test_nan_that_got_past_the_records_is_an_error() -> None:
    evaluation = scored(90)
    score = Score.model_construct(value=math.nan, low=math.nan, high=math.nan, n=100, method="wilson")
    summary = evaluation.summary.model_copy(update={"exact_match": score})
    with pytest.raises(UserError, match=r"gate\.metric.*is nan"):
        outcome("exact_match >= 0.1", evaluation.model_copy(update={"summary": summary}))


QUESTIONS = scored(90)


@pytest.mark.parametrize(
    ("gate", "evaluation", "references", "code", "words"),
    [
        ("peak_memory <= 1GB", QUESTIONS, (), "gate.metric", "peak_memory was not computed for w4a16 · base"),
        ("perplexity <= 9", QUESTIONS, (), "gate.metric", "computed were exact_match, anls"),
        ("kl <= 0.1", QUESTIONS, (), "gate.metric", "was not computed"),
        ("exact_match >= 0.9", read_text([1.0] * 8), (), "gate.metric", "was not computed"),
        ("exact_match[large] >= 0.9", QUESTIONS, (), "gate.encoder", "no evaluation is of the encoder 'large'"),
        ("exact_match >= 0.9x", QUESTIONS, (), "gate.reference", "there is no reference for w4a16 · base"),
        ("exact_match >= 0.9x", QUESTIONS, [scored(90, encoder="large")], "gate.reference", "no reference"),
        ("exact_match >= 0.9x", QUESTIONS, [read_text([1.0] * 8)], "gate.reference", "no reference"),
        ("exact_match >= 0.9x", QUESTIONS, [scored(0, name="r")], "gate.reference", "r · base is 0"),
        ("size <= 0.9x", QUESTIONS, [scored(9, size_bytes=None)], "gate.metric", "size was not computed"),
        ("kl <= 1.1x", scored(90, fidelity=fidelity(0.1, 9)), [QUESTIONS], "gate.metric", "not computed"),
        ("anls >= 0.9x", QUESTIONS, [scored(90, examples_digest="1" * 64)], "gate.unpaired", "different"),
        ("p50_ttft <= 1s", scored(4, 4), (), "gate.too_few", "4 observations"),
        ("p95_ttft <= 1s", scored(40, 40), (), "gate.too_few", "a 95th percentile 72"),
        ("p50_ttft <= 1x", scored(4, 4), [scored(4, 4)], "gate.too_few", "take 6"),
    ],
)
def test_what_cannot_be_decided_is_an_error(gate: str, evaluation, references, code: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        outcome(gate, evaluation, references)
    assert error.value.code == code
    assert words in f"{error.value.cause}; {error.value.fix}"


def test_no_evaluation_is_an_error() -> None:
    with pytest.raises(UserError, match=r"gate\.nothing"):
        check([parse_gate("size <= 4MB")], [])


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        check([parse_gate(text) for text in ("kl <= 0.1", "size <= 1x", "anls >= 0.9")], [QUESTIONS])
    assert [problem.code for problem in error.value.problems] == ["gate.metric", "gate.reference"]


def test_a_gate_speaks_of_every_setting_or_of_one() -> None:
    evaluations = [scored(90), scored(20, encoder="large")]
    gates = [parse_gate(text) for text in ("exact_match >= 0.5", "exact_match[large] >= 10%")]
    judgement = check(gates, evaluations)
    verdicts = [[outcome.verdict for outcome in judged.outcomes] for judged in judgement.evaluations]
    assert verdicts == [["passed"], ["broken", "passed"]]
    assert judgement.evaluations[0].seconds == pytest.approx(100 * 0.03)


def test_each_setting_has_its_own_reference() -> None:
    references = [scored(count, encoder=e, name="float32") for e, count in (("large", 40), ("base", 90))]
    evaluations = [scored(90), scored(36, encoder="large")]
    judgement = check([parse_gate("exact_match >= 0.9x")], evaluations, references)
    assert [outcome.reference for outcome in judgement.outcomes] == ["float32 · base", "float32 · large"]
    assert [outcome.verdict for outcome in judgement.outcomes] == ["passed", "undecided"]
    assert [reference.label for reference in judgement.references] == ["float32 · large", "float32 · base"]


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("exact_match >= 0.95", "exact_match of w4a16 · base is 0.800 (0.711 to 0.867, n = 100), below 0.95"),
        (
            "exact_match >= 0.98x",
            "exact_match of w4a16 · base is 0.800, 0.889x (0.825 to 0.958, n = 100) of float32 · base's 0.900, "
            "below 0.98x",
        ),
        ("size <= 38MB", "size of w4a16 · base is 38.4 MB, above 38MB"),
        ("size <= 38399kB", "size of w4a16 · base is 38.400 MB, above 38399kB"),
        ("size <= 0.2x", "size of w4a16 · base is 38.4 MB, 0.256x of float32 · base's 150 MB, above 0.2x"),
        ("size < 40MB", "size of w4a16 · base is 38.4 MB, below 40MB"),
        (
            "surely exact_match >= 75%",
            "exact_match of w4a16 · base is 0.800 (0.711 to 0.867, n = 100), and 75% lies within the interval "
            "(about 320 examples would tell)",
        ),
        ("perplexity <= 1.05x", None),
    ],
)
def test_messages_hold_the_numbers(gate: str, message: str | None) -> None:
    reference = scored(90, name="float32", size_bytes=150_000_000)
    if message is None:
        found = outcome(gate, read_text([1.2] * 8), [read_text([1.0] * 8, name="float32")])
        assert (
            found.message == "perplexity of w4a16 is 3.32, 1.22x (1.22 to 1.22, n = 8) of float32's 2.72, above 1.05x"
        )
        return
    assert outcome(gate, scored(80), [reference]).message == message


def test_fidelity_is_gated() -> None:
    evaluation = scored(90, fidelity=fidelity(0.1, 9))
    assert outcome("kl <= 0.2 nats", evaluation).verdict == "passed"
    assert outcome("kl <= 0.05", evaluation).verdict == "broken"
    assert outcome("top1_agreement >= 99.9%", evaluation).verdict == "broken"


def test_a_broken_gate_is_raised_with_its_reason() -> None:
    gates = [parse_gate(text) for text in ("size <= 38MB", "exact_match >= 0.8", "bits_per_weight <= 4")]
    raise_broken(check(gates[1:2], [QUESTIONS]))
    with pytest.raises(GateError) as error:
        raise_broken(check(gates[:2], [QUESTIONS]))
    assert (error.value.code, error.value.exit_code) == ("gate.broken", 4)
    assert error.value.cause == "size of w4a16 · base is 38.4 MB, above 38MB (1 of 2 gates broken)"
    with pytest.raises(GateError, match=r"2 of 3 gates broken:\n  size of .*\n  bits_per_weight of "):
        raise_broken(check(gates, [QUESTIONS]))


def test_an_undecided_gate_is_not_raised() -> None:
    judgement = check([parse_gate("exact_match >= 0.9")], [QUESTIONS])
    assert judgement.found(GateVerdict.UNDECIDED)
    raise_broken(judgement)


def test_a_share_is_what_reads_a_score() -> None:
    full = scored(90, fidelity=fidelity(0.1, 9))
    scores = {name for name, measure in MEASURES.items() if isinstance(measure.read(full), Score)}
    assert scores == {name for name, measure in MEASURES.items() if measure.share}


def test_what_a_measure_needs_is_what_it_takes() -> None:
    questions, text = scored(90, peak_memory_bytes=9), read_text([1.0] * 8, size_bytes=9)
    for name, measure in MEASURES.items():
        on_questions = measure.read(questions) is not None
        on_text = measure.read(text) is not None
        expected = {"questions": (True, False), "text": (False, True), "reference": (False, False)}.get(measure.needs)
        assert expected is None or (on_questions, on_text) == expected, name
        assert measure.needs or on_questions


def test_evaluations_are_made_as_the_loop_makes_them() -> None:
    assert Evaluation.model_validate_json(QUESTIONS.model_dump_json()) == QUESTIONS
