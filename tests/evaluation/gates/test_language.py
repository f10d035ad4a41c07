import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.evaluation.gates import parse_gate, read_gates, require_checkable
from hvlc.results.gates import ACCURACY, SourceLine
from hvlc.results.measures import MEASURES, Measure
from hvlc.results.units import factors

SPACES = st.sampled_from(["", " ", "  ", "\t"])
MEASURE = st.sampled_from(sorted(MEASURES.values(), key=lambda measure: measure.name))
OPERATOR = st.sampled_from([">=", "<=", ">", "<"])


@st.composite
def gates(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    """A gate's text with some spacing, and what it must be read as."""
    measure: Measure = draw(MEASURE)
    relative = draw(st.booleans())
    known = {"x": 1} if relative else factors(measure.unit, share=measure.share)
    unit = draw(st.sampled_from(sorted(known)))
    number = draw(st.decimals("0.01", "0.99", places=2))
    surely, encoder = draw(st.booleans()), draw(st.none() | st.sampled_from(["base", "large", "a-1.b_2"]))
    operator, space = draw(OPERATOR), lambda: draw(SPACES)
    scope = "" if encoder is None else f"{space()}[{space()}{encoder}{space()}]"
    text = f"{space()}{'surely ' if surely else ''}{measure.name}{scope}{space()}{operator}{space()}"
    text += f"{number}{space()}{unit.upper() if draw(st.booleans()) else unit}{space()}"
    bound = float(number) if relative else float(number * known[unit])
    fields = {"metric": measure.name, "encoder": encoder, "operator": operator, "bound": bound}
    return text, fields | {"relative": relative, "surely": surely}


@given(gates())
def test_a_gate_is_read_and_written_the_same(case: tuple[str, dict[str, object]]) -> None:
    text, fields = case
    gate = parse_gate(text)
    assert gate.model_dump(include=set(fields)) == fields
    again = parse_gate(gate.text)
    assert again == gate
    assert again.text == gate.text


@given(st.text(max_size=40))
def test_any_text_is_a_gate_or_an_error_with_a_way_out(text: str) -> None:
    refusal = None
    try:
        assert parse_gate(text).metric in MEASURES
    except UserError as error:
        refusal = error
    assert refusal is None or (refusal.code.startswith("gate.") and refusal.fix)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("exact_match >= 95%", 0.95),
        ("size <= 40MB", 40e6),
        ("size<=1.5 GiB", 1.5 * 2**30),
        ("size <= 40mb", 40e6),
        ("p50_ttft <= 120ms", 0.12),
        ("p95_ttft < 0.3 s", 0.3),
        ("tokens_per_second >= 20 tokens/s", 20),
        ("tokens_per_second >= 20", 20),
        ("bits_per_weight <= 4.6 bits", 4.6),
        ("kl <= 2e-2 nats", 0.02),
        ("kl <= 0", 0),
        ("perplexity <= 1.05x", 1.05),
    ],
)
def test_bounds_are_in_the_measures_unit(text: str, bound: float) -> None:
    assert parse_gate(text).bound == bound


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "gate.syntax", "is not a gate"),
        ("exact_match", "gate.syntax", "is not a gate"),
        ("exact_match >=", "gate.syntax", "is not a gate"),
        ("size <= 1e308GB", "gate.bound", "not within 1E-30 and 1E+30"),
        ("size <= 1e31B", "gate.bound", "not within 1E-30 and 1E+30"),
        ("kl <= 1e-999", "gate.bound", "not within 1E-30 and 1E+30"),
        ("exact_match >= 1e-400x", "gate.bound", "not within 1E-30 and 1E+30"),
        ("exact_match >= 1e300x", "gate.bound", "not within 1E-30 and 1E+30"),
        ("exact_match >= 1e-99999999999999999999", "gate.syntax", "is not a number"),
        ("exact_match >= 1e99999999999999999999", "gate.syntax", "is not a number"),
        (f"size <= {'9' * 100}B", "gate.syntax", "more than 40 digits"),
        (f"size <= {'9' * 5000}B", "gate.syntax", "300 are the most"),
        ("exact_match == 1", "gate.syntax", "operators are"),
        ("exact_match => 0.9", "gate.syntax", "is not a gate"),
        ("exact_match >= 0.9 >= 0.8", "gate.syntax", "is not a gate"),
        ("exact_match >= high", "gate.syntax", "'high' is not a number"),
        ("size <= -3MB", "gate.syntax", "'-3MB' is not a number"),
        ("size <= nan", "gate.syntax", "'nan' is not a number"),
        ("size <= 1e999 MB", "gate.syntax", "is not a number"),
        ("exact_match[] >= 0.9", "gate.syntax", "is not a gate"),
        ("exact_mach >= 0.9", "gate.metric", "did you mean 'exact_match'?"),
        ("Exact-Match >= 0.9", "gate.metric", "exact_match"),
        ("surely >= 0.9", "gate.metric", "no metric 'surely'"),
        ("size <= 120ms", "gate.unit", "size is not measured in ms"),
        ("size <= 40", "gate.unit", "has no unit"),
        ("p50_ttft <= 120", "gate.unit", "has no unit"),
        ("visual_tokens <= 98%", "gate.unit", "not measured in %"),
        ("exact_match >= 98", "gate.bound", "can never hold"),
        ("exact_match > 1", "gate.bound", "can never hold"),
        ("exact_match <= 100%", "gate.bound", "always holds"),
        ("anls < 1.5", "gate.bound", "always holds"),
        ("exact_match >= 0", "gate.bound", "always holds"),
        ("size >= 0x", "gate.bound", "always holds"),
        ("size < 0MB", "gate.bound", "can never hold"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, code: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        parse_gate(text)
    assert error.value.code == code
    assert words in f"{error.value.cause}; {error.value.fix}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("size <= 40MB", "size >= 50MB"),
        ("size < 40MB", "size >= 40MB"),
        ("exact_match[base] >= 0.9", "exact_match < 80%"),
        ("perplexity > 1.1x", "surely perplexity <= 1x"),
    ],
)
def test_gates_that_no_number_keeps_are_refused(one: str, other: str) -> None:
    for texts in ((one, other), (other, one)):
        with pytest.raises(UserError, match=r"gate\.contradiction.*cannot both hold"):
            read_gates(texts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("size <= 40MB", "size >= 40MB"),
        ("size <= 40MB", "size <= 30MB"),
        ("size[base] <= 40MB", "size[large] >= 50MB"),
        ("size <= 40MB", "size >= 1.1x"),
        ("size <= 40MB", "peak_memory >= 50MB"),
    ],
)
def test_gates_that_a_number_can_keep_are_taken(one: str, other: str) -> None:
    assert len(read_gates([one, other])) == 2


def test_a_file_says_where_and_why(tmp_path: Path) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text(
        "# of the app\nschema_version: 1\ngates:\n"
        "  - gate: exact_match >= 0.98x\n    reason: what the app promises\n"
        "  - {gate: 'surely size <= 40MB'}\n"
    )
    first, second, third = read_gates(["size <= 40 mb", "exact_match >= 0.98x", "size <= 41MB"], file)[:3]
    assert (first.reason, first.place) == ("what the app promises", SourceLine(file=str(file), line=4))
    assert (second.text, second.place) == ("surely size <= 40MB", SourceLine(file=str(file), line=6))
    assert (third.text, third.place) == ("size <= 40 mb", None)  # "surely" is another gate
    assert [gate.text for gate in read_gates(["size <= 40MB", "size<=40000 kB"])] == ["size <= 40MB"]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ("schema_version: 2\ngates: [{gate: size <= 4MB}]", "spec.invalid", "schema_version"),
        ("schema_version: 1\ngates: []", "spec.invalid", "gates"),
        ("schema_version: 1\ngates: [{gat: size <= 4MB}]", "spec.invalid", "did you mean 'gate'?"),
        ("schema_version: 1\nschema_version: 1\ngates: [{gate: size <= 4MB}]", "spec.unreadable", "duplicate key"),
        ("schema_version: 1\ngates:\n- gate: size <= 4MB\n- gate: sise <= 4MB\n", "gate.metric", "gates.yaml:4: "),
        ("!!python/object/apply:os.system [true]", "spec.unreadable", "could not determine a constructor"),
        ("", "spec.invalid", "gates.yaml"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, content: str, code: str, words: str) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read_gates([], file)
    assert (error.value.code, words in error.value.cause + error.value.fix) == (code, True), error.value


def test_all_wrong_gates_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_gates(["sise <= 4MB", "anls >= 0.9", "size <= 4"])
    assert [problem.code for problem in error.value.problems] == ["gate.metric", "gate.unit"]


@pytest.mark.parametrize(
    ("text", "kind", "reference", "code"),
    [
        ("size <= 1.1x", "questions", False, "gate.reference"),
        ("kl <= 0.1", "questions", False, "gate.reference"),
        ("kl <= 0.2", "questions", True, "gate.reference"),  # without its distributions
        ("kl <= 0.1", "questions", True, None),
        ("perplexity <= 9", "questions", True, "gate.metric"),
        ("exact_match >= 0.9", "text", True, "gate.metric"),
        ("exact_match[bas] >= 0.9", "questions", True, "gate.encoder"),
        ("size[base] <= 9MB", "text", True, "gate.encoder"),
        ("exact_match[base] >= 0.9x", "questions", True, None),
        ("perplexity <= 1.1x", "text", True, None),
        ("size <= 9MB", "text", False, None),
    ],
)
def test_what_will_have_no_answer_is_refused_before_the_work(text, kind, reference: bool, code: str | None) -> None:
    encoders = ["base", "large"] if kind == "questions" else []
    how: Any = {"kind": kind, "reference": reference, "fidelity": not text.endswith("0.2"), "encoders": encoders}
    if code is None:
        require_checkable([parse_gate(text)], **how)
        return
    with pytest.raises(UserError) as error:
        require_checkable([parse_gate(text)], **how)
    assert error.value.code == code


def test_accuracy_is_measured() -> None:
    assert set(MEASURES) >= ACCURACY


def test_what_is_documented_is_what_is_read() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gates.md").read_text("utf-8")
    (row,) = re.findall(r"^\| `METRIC` \| (.*) \|$", page, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == list(MEASURES)
    examples = re.findall(r"--gate \"([^\"]+)\"|- gate: (.+)|`((?:surely )?\w+(?:\[\w+\])? >= [^`]+)`", page)
    texts = [text for groups in examples for text in groups if text]
    assert len(texts) > 8
    for text in texts:
        if text != "exact_match >= 98":  # the example of what is refused
            parse_gate(text)


def test_a_thousand_gates_are_the_most(tmp_path: Path) -> None:
    """Every two of them are compared, and each has its line looked up."""
    lines = [f"- gate: size <= {number}MB" for number in range(1, 1001)]
    (tmp_path / "gates.yaml").write_text("\n".join(["schema_version: 1", "gates:", *lines]))
    found = read_gates([], tmp_path / "gates.yaml")
    assert [gate.place.line for gate in found if gate.place] == list(range(3, 1003))
    (tmp_path / "gates.yaml").write_text("\n".join(["schema_version: 1", "gates:", *lines, "- gate: size <= 1001MB"]))
    with pytest.raises(UserError, match="at most 1000"):
        read_gates([], tmp_path / "gates.yaml")
    with pytest.raises(UserError, match="1000 are the most"):
        read_gates(["size <= 1MB"] * 1001)
