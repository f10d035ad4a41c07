"""Gates as terminal tables, Markdown, JUnit XML and SARIF."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from hvlc.evaluation.gates import check, parse_gate
from hvlc.report.gates import headline, judgement_tables
from hvlc.report.junit import junit_xml
from hvlc.report.markdown import judgement_markdown
from hvlc.report.sarif import recipe_line, sarif_json
from hvlc.results.gates import Judgement, Origin, RecipeText, SourceLine, Suspect
from tests.helpers.measurements import measured, read_text

SCHEMAS = Path(__file__).parents[1] / "schemas"
JUNIT = xmlschema.XMLSchema(SCHEMAS / "junit-10.xsd")
SARIF = jsonschema.Draft4Validator(json.loads((SCHEMAS / "sarif-2.1.0.json").read_text()))
HOSTILE = "a|b\n<script>\"'&]]>\x00\x1b\ud800\uffff @team #1 `x` ✓"
RECIPE = """\
schema_version: 1
name: mine
description: a test
rules:
  # The head.
  - role: decoder
    weights: "lm_head.weight"
  - {role: decoder, quantize: {bits: 4, block_size: 32}}
"""


def right(count: int) -> list[bool]:
    return [index < count for index in range(100)]


def judged(name: str = "w4a16", reason: str = "", **fields: Any) -> Judgement:
    """One gate of each verdict on the base encoder, and a passed one on a text."""
    place = SourceLine(file="ci/gates file.yaml", line=4)
    gates = [
        parse_gate("exact_match[base] >= 0.98x", reason=reason, place=place),
        parse_gate("exact_match[base] >= 0.8"),
        parse_gate("size <= 0.5x", reason=reason, place=place),
        parse_gate("size <= 30MB"),
    ]
    reference = measured(right(90), name="float32", size_bytes=90_000_000)
    evaluations = [measured(right(80), name=name, **fields)]
    return check(gates, evaluations, [reference])


@pytest.fixture(scope="module")
def judgement() -> Judgement:
    found = judged()
    assert [outcome.verdict for outcome in found.outcomes] == ["broken", "undecided", "passed", "broken"]
    return found


def shown(judgement: Judgement, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(judgement_tables(judgement))
    return file.getvalue()


def test_the_terminal_says_what_broke_first(judgement: Judgement) -> None:
    lines = [line.rstrip() for line in shown(judgement).splitlines()]
    text = " ".join(" ".join(lines).split())
    assert text.startswith("❌ exact_match of w4a16 · base is 0.800, 0.889x (0.825 to 0.958, n = 100) of float32 · ")
    assert text.index("above 30MB") < text.index("lies within the interval") < text.index("times the reference")
    assert max(map(len, lines)) <= 80
    for words in ("broken", "undecided", "passed", "38.4 MB", "0.427x"):
        assert words in text


def test_names_are_not_markup() -> None:
    assert "[red]x" in shown(judged("[red]x"), width=200)


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (["size <= 40MB"], "✅ 1 gate passed"),
        (["size <= 40MB", "size <= 30MB"], "❌ 1 of 2 gates broken"),
        (["size <= 40MB", "exact_match >= 0.8"], "⚠️ 1 of 2 gates undecided, none broken"),
    ],
)
def test_the_headline_counts(gates: list[str], words: str) -> None:
    assert headline(check([parse_gate(gate) for gate in gates], [measured(right(80))])) == words


# Markdown


def cells(markdown: str) -> list[list[list[str]]]:
    """The text of every cell of every table that a renderer makes."""
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    root = ElementTree.fromstring(f"<page>{html}</page>")
    return [[["".join(cell.itertext()) for cell in row] for row in table.iter("tr")] for table in root.iter("table")]


def test_markdown_renders_as_tables(judgement: Judgement) -> None:
    text = judgement_markdown(judgement)
    assert text.startswith("### ❌ 2 of 4 gates broken\n\n- ❌ exact\\_match of w4a16 · base is 0.800")
    gates, scores = cells(text)
    assert [row[:3] for row in gates] == [
        ["", "model", "gate"],
        ["❌", "w4a16 · base", "exact_match[base] >= 0.98x"],
        ["⚠️", "w4a16 · base", "exact_match[base] >= 0.8"],
        ["✅", "w4a16 · base", "size <= 0.5x"],
        ["❌", "w4a16 · base", "size <= 30MB"],
    ]
    assert gates[1][3:5] == ["0.800 (0.711 to 0.867)", "0.889x (0.825 to 0.958)"]
    assert scores[0] == ["metric", "float32 · base", "w4a16 · base"]
    assert ["size", "90.0 MB", "38.4 MB"] in scores
    assert len({len(row) for row in gates}) == len({len(row) for row in scores}) == 1


def test_markdown_holds_whatever_the_names_are() -> None:
    text = judgement_markdown(judged(HOSTILE.replace("\x00", "").replace("\x1b", ""), reason="a|b\n<b>"))
    gates, scores = cells(text.encode("utf-8", "replace").decode().replace("\uffff", ""))
    assert {len(row) for row in gates} == {6}
    assert {len(row) for row in scores} == {3}
    assert "<script>" in gates[1][1]
    assert "@" not in text.replace("\\@", "")


def test_a_range_is_no_interval() -> None:
    text = judgement_markdown(check([parse_gate("size <= 40MB")], [measured([True] * 6, seconds=[0.1] * 5 + [0.2])]))
    rows = {row[0]: row[1] for row in cells(text)[1]}
    assert rows["p95_ttft"] == "175 ms (~100 to 200 ms)"
    assert rows["p50_ttft"] == "100 ms (100 to 200 ms)"


def test_texts_and_questions_share_a_table() -> None:
    text = check([parse_gate("size <= 40MB")], [measured(right(80)), read_text([1.0] * 8, size_bytes=9)])
    (row,) = [row for row in cells(judgement_markdown(text))[1] if row[0] == "perplexity"]
    assert row == ["perplexity", "–", "2.72 (2.72 to 2.72)"]


# JUnit


def junit(judgement: Judgement) -> ElementTree.Element:
    text = junit_xml(judgement)
    JUNIT.validate(text)
    return ElementTree.fromstring(text.encode())


def test_junit_has_a_case_of_every_gate(judgement: Judgement) -> None:
    root = junit(judgement)
    (suite,) = root
    assert root.attrib == {"name": "hvlc gates", "tests": "4", "failures": "2", "errors": "0"}
    assert suite.attrib == {
        "name": "w4a16 · base on documents",
        "tests": "4",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
        "time": "3.000",
    }
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [outcome.gate.text for outcome in judgement.outcomes]
    assert [case[0].tag for case in cases] == ["failure", "skipped", "system-out", "failure"]
    for case, outcome in zip(cases, judgement.outcomes, strict=True):
        assert outcome.message in (case[0].text or "")
    assert cases[0][0].attrib == {"type": "gate.broken", "message": judgement.outcomes[0].message}
    properties = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert properties["runs on"] == "onnxruntime CPU"
    assert properties["size"] == "38.4 MB"


def test_junit_has_a_suite_of_every_evaluation() -> None:
    text = check([parse_gate("size <= 40MB")], [measured(right(80)), read_text([1.0] * 8, size_bytes=9)])
    assert [suite.get("name") for suite in junit(text)] == ["w4a16 · base on documents", "w4a16 on novel"]
    assert "time" not in junit(text)[1].attrib


def test_junit_is_xml_whatever_the_names_are() -> None:
    root = junit(judged(HOSTILE, reason=HOSTILE, task=HOSTILE, runs_on=HOSTILE))
    case = root[0].findall("testcase")[0]
    assert "<script>\"'&]]>\ufffd\ufffd\ufffd\ufffd @team" in (case[0].text or "")


@given(st.text(st.characters(codec=None), max_size=20))
def test_junit_is_xml_whatever_a_reason_holds(reason: str) -> None:
    outcome = SAMPLE.evaluations[0].outcomes[0]
    gate = outcome.gate.model_copy(update={"reason": reason})
    changed = outcome.model_copy(update={"gate": gate, "message": reason})
    evaluation = SAMPLE.evaluations[0].model_copy(update={"outcomes": (changed,), "task": reason})
    ElementTree.fromstring(junit_xml(SAMPLE.model_copy(update={"evaluations": (evaluation,)})).encode())


SAMPLE = judged()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("<testcase name", "<testcase title"),
        lambda text: text.replace('failures="2"', ""),
        lambda text: text.replace('time="3.000"', 'time="3.0001"'),
        lambda text: text.replace("<failure", "<fault").replace("</failure", "</fault"),
    ],
)
def test_the_junit_schema_rejects_what_is_wrong(judgement: Judgement, damage: Callable[[str], str]) -> None:
    text = junit_xml(judgement)
    assert damage(text) != text
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        JUNIT.validate(damage(text))


# SARIF


def sarif(judgement: Judgement, **origin: Any) -> Any:
    origins = {"w4a16": Origin(path="build/package/hvlc.json", **origin)}
    found = json.loads(sarif_json(judgement, origins))
    SARIF.validate(found)
    return found["runs"][0]


def location(result: Any) -> tuple[str, int]:
    place = result["locations"][0]["physicalLocation"]
    return place["artifactLocation"]["uri"], place["region"]["startLine"]


SUSPECTS = (
    Suspect(layer="decoder.layers.1", weight="model.layers.1.mlp.up_proj.weight", rule_index=1, error=0.312),
    Suspect(layer="decoder", weight="lm_head.weight", rule_index=0, error=0.1),
    Suspect(layer="vision_encoder", weight="patch.weight", error=0.05),
)


def test_sarif_has_what_did_not_pass(judgement: Judgement) -> None:
    run = sarif(judgement)
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["gate/exact_match", "gate/size"]
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 4}]
    first, second, third = run["results"]
    assert [(r["ruleId"], r["ruleIndex"], r["kind"], r["level"]) for r in run["results"]] == [
        ("gate/exact_match", 0, "fail", "error"),
        ("gate/exact_match", 0, "open", "none"),
        ("gate/size", 1, "fail", "error"),
    ]
    assert first["message"]["text"].startswith("exact_match of w4a16 · base is 0.800, 0.889x")
    assert location(first) == ("ci/gates%20file.yaml", 4)
    assert location(second) == location(third) == ("build/package/hvlc.json", 1)
    assert len({result["partialFingerprints"]["gate/v1"] for result in run["results"]}) == 3
    assert run == sarif(judged())


def test_sarif_points_at_the_rule_that_chose_the_worst_weights_format(judgement: Judgement) -> None:
    recipe = RecipeText(name="mine", text=RECIPE, path="recipes/mine.yaml")
    first, _, third = sarif(judgement, recipe=recipe, suspects=SUSPECTS)["results"]
    assert location(first) == ("recipes/mine.yaml", 8)
    related = [place["physicalLocation"]["region"]["startLine"] for place in first["relatedLocations"]]
    assert related == [6, 4]  # of the second suspect, and of the gate
    logical = first["locations"][0]["logicalLocations"]
    assert [place["name"] for place in logical] == ["decoder.layers.1", "decoder", "vision_encoder"]
    assert logical[0]["fullyQualifiedName"] == "model.layers.1.mlp.up_proj.weight"
    assert "up_proj.weight of decoder.layers.1 (0.31), by line 8 of the recipe mine" in first["message"]["text"]
    assert location(third)[0] == "build/package/hvlc.json"  # a size is not a weight's error
    assert "logicalLocations" not in third["locations"][0]


def test_without_the_recipes_file_sarif_names_its_line(judgement: Judgement) -> None:
    first = sarif(judgement, recipe=RecipeText(name="mine", text=RECIPE), suspects=SUSPECTS)["results"][0]
    assert location(first) == ("ci/gates%20file.yaml", 4)
    assert "by line 8 of the recipe mine" in first["message"]["text"]


def test_sarif_without_any_place_is_valid(judgement: Judgement) -> None:
    found = json.loads(sarif_json(judgement))
    SARIF.validate(found)
    assert found["runs"][0]["results"][2]["locations"] == []


def test_a_file_elsewhere_has_an_absolute_uri(judgement: Judgement, tmp_path: Path) -> None:
    found = json.loads(sarif_json(judgement, {"w4a16": Origin(path=str(tmp_path / "a b.json"))}))
    SARIF.validate(found)
    uri = found["runs"][0]["results"][2]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == (tmp_path / "a b.json").as_uri()


def test_sarif_is_valid_whatever_the_names_are() -> None:
    found = sarif_json(judged(HOSTILE, reason=HOSTILE, task=HOSTILE))
    SARIF.validate(json.loads(found.encode()))


def test_nothing_to_say_is_a_valid_file() -> None:
    run = sarif(check([parse_gate("size <= 40MB")], [measured(right(80))]))
    assert (run["results"], run["invocations"][0]["exitCode"]) == ([], 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda log: log.update(version="2.0.0"),
        lambda log: log["runs"][0].pop("tool"),
        lambda log: log["runs"][0]["results"][0].update(level="fatal"),
        lambda log: log["runs"][0]["results"][0].pop("message"),
        lambda log: log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"].update(startLine=0),
        lambda log: log["runs"][0]["results"][0].update(note="unknown"),
    ],
)
def test_the_sarif_schema_rejects_what_is_wrong(judgement: Judgement, damage: Callable[[Any], None]) -> None:
    log = json.loads(sarif_json(judgement))
    SARIF.validate(log)
    damage(log)
    with pytest.raises(jsonschema.ValidationError):
        SARIF.validate(log)


def test_lines_of_rules() -> None:
    assert [recipe_line(RECIPE, index) for index in (0, 1)] == [6, 8]
    for missing in (2, -1):
        with pytest.raises(KeyError):
            recipe_line(RECIPE, missing)
    with pytest.raises(KeyError):
        recipe_line("", 0)
