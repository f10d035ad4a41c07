"""The rules for a Snapdragon against what its compiler said of the corpus.

HVLC_REGEN=1 asks the compiler again, which takes an hour and needs onnxruntime-qnn.
"""

import fnmatch
import os
import re
from functools import cache
from pathlib import Path

import pytest

from hvlc import targets
from hvlc.lint.engine import JudgedNode, judge
from hvlc.lint.graphs import nodes_of
from hvlc.lint.partitions import count_partitions
from hvlc.qnn.isolation import is_installed
from hvlc.targets import Evidence, Severity, load_target
from tests.lint.corpus import corpus
from tests.lint.recording import TARGET, ask, record, recorded
from tests.lint.tape import Case

TARGETS = Path(targets.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "targets.md"
NPU = load_target(TARGET)
CASES = {case.name: case for case in corpus()}
REQUIRED = 0.95

#: Cases that rules and compiler judge differently: whether the rules take it.
DISAGREEMENTS = {
    "five-ReduceMax": True,
    "five-ReduceMin": True,
    "five-ReduceMax--2--1-keep0": True,
    "five-ReduceMin--2--1-keep0": True,
    "later-053-Cast-bool-float32-rank5": True,
    "later-093-ScatterND-int64-int64-constant-max": True,
    "later-095-ReduceL1-float16-rank4-1axes-keep0": False,
    "later-111-BatchNormalization-q-uint16-rank4": True,
    "later-115-BatchNormalization-q-int16-rank4": True,
    "later-139-Resize-q-uint16-nearest-half_pixel-rank3-2": True,
    "later-148-Resize-q-int16-linear-asymmetric-rank3-0.5": True,
}

#: Emulated, these compute something else than onnxruntime on a CPU: the rules must call them hazards.
WRONG = (
    "Add-70000",
    "Conv-bare-uint8-int4-channel",
    "Conv-negative-uint16-int8-channel",
    "Conv-negative-uint8-int4-tensor",
    "Gemm-uint16-LPBQ32-transB0-bias-float",
    "Gemm-uint16-LPBQ32-transB1-bias-float",
    "Gather-bare-int4",
    "MatMul-bare-float32-int4-tensor",
    "MatMul-bare-uint16-int4-channel",
    "MatMul-dynamic-uint16-uint16",
    "MatMul-negative-uint16-int16-tensor",
    "MatMul-negative-uint16-int4-lpbq32",
    "MatMul-negative-uint16-int8-channel",
    "Mul-bare-int4",
    "Pad-edge",
    "RMSNormalization-rows-1x64x2x32",
    "RMSNormalization-rows-64x2x32",
    "Sigmoid-int16-integer-output",
    "Sigmoid-uint16-integer-output",
    "Tanh-int16-integer-output",
    "Tanh-uint16-integer-output",
    "resized-nearest-ceil-half_pixel-uint8",
    "resized-nearest-floor-align_corners-float32",
    "resized-nearest-round_prefer_ceil-asymmetric-float32",
    "shaped-ConvTranspose-3d-depthwise",
    "shaped-ConvTranspose-3d-groups",
    "typed-CumSum-int32",
)
#: Their neighbours that are right.
RIGHT = (
    "Add-60000",
    "Conv-bare-uint16-int8-channel",
    "MatMul-bare-uint16-int4-block32",
    "MatMul-dynamic-uint16-uint8",
    "MatMul-negative-float32-int8-tensor",
    "MatMul-negative-uint16-int4-block32",
    "MatMul-uint16-LPBQ32",
    "MatMul-uint16-int4-channel",
    "Pad-reflect",
    "RMSNormalization-rows-1x128x32",
    "RMSNormalization-rows-1x4x2x32",
    "RMSNormalization-rows-1x64x2x64",
    "Sigmoid-int16",
    "Sigmoid-uint16-exact",
    "Softmax-masked",
    "Tanh-uint16",
    "fresh-CumSum-int32",
    "resized-nearest-floor-asymmetric-float32",
    "resized-nearest-round_prefer_floor-half_pixel-float32",
    "shaped-ConvTranspose-2d-groups",
)


@cache
def verdicts() -> dict[str, dict]:
    if os.environ.get("HVLC_REGEN") == "1":
        record(CASES.values(), {})
    return recorded()


@cache
def judged(name: str) -> tuple[JudgedNode, ...]:
    return judge(nodes_of(CASES[name].model, Path()), NPU)


def taken(name: str) -> bool:
    return all(one.taken for one in judged(name))


def hazards(name: str) -> set[str]:
    return {f.rule for one in judged(name) for f in one.findings if f.severity == Severity.HAZARD}


def of(held_out: bool) -> list[Case]:
    return [case for case in CASES.values() if case.held_out is held_out]


def agreement(cases: list[Case]) -> float:
    return sum(taken(case.name) is verdicts()[case.name]["taken"] for case in cases) / len(cases)


def test_the_verdicts_are_of_this_corpus() -> None:
    assert list(verdicts()) == list(CASES)
    assert (len(CASES), len(of(held_out=True))) == (2221, 154)
    both = [verdict["taken"] for verdict in verdicts().values()]
    assert 100 < sum(both) < len(both) - 100


def test_the_disagreements_are_the_known_ones() -> None:
    found = {name: taken(name) for name in CASES if taken(name) is not verdicts()[name]["taken"]}
    assert found == DISAGREEMENTS
    assert len(CASES) - len(found) == 2210


def test_the_rules_predict_the_compiler() -> None:
    assert agreement(list(CASES.values())) >= REQUIRED


def test_the_rules_predict_it_for_models_that_they_were_not_written_from() -> None:
    assert len(of(held_out=True)) > 150
    assert agreement(of(held_out=True)) >= REQUIRED


@pytest.mark.parametrize(
    ("held_out", "takes", "least"), [(False, True, 0.99), (False, False, 0.98), (True, True, 0.98), (True, False, 0.8)]
)
def test_what_is_refused_is_predicted_too(held_out: bool, takes: bool, least: float) -> None:
    """Rules that take everything agree with most models, and with none of those that are refused."""
    cases = [case for case in of(held_out) if verdicts()[case.name]["taken"] is takes]
    assert agreement(cases) >= least


def test_rules_that_take_everything_would_be_seen() -> None:
    assert sum(verdict["taken"] for verdict in verdicts().values()) / len(CASES) < REQUIRED - 0.1


@pytest.mark.parametrize("name", WRONG)
def test_what_computes_wrong_numbers_is_a_hazard(name: str) -> None:
    assert verdicts()[name]["taken"]
    assert verdicts()[name]["difference"] > 0.01
    assert hazards(name)


@pytest.mark.parametrize("name", RIGHT)
def test_its_neighbour_that_is_right_is_none(name: str) -> None:
    assert verdicts()[name]["taken"]
    assert not hazards(name)


def test_an_operator_that_is_said_to_have_run_did() -> None:
    made = {True: set(), False: set()}
    for name, case in CASES.items():
        made[verdicts()[name]["taken"]] |= {(node.domain, node.op_type) for node in case.model.graph.node}
    known = {name: group for name, group in NPU.operators.items() if group.evidence is Evidence.RUN}
    unproved = [
        (name, operator)
        for name, group in known.items()
        for operator in group.names
        if (group.domain, operator) not in made[group.taken]
    ]
    assert unproved == [("context", "EPContext")]  # made by the compiler, no input of it


def test_a_rule_that_is_said_to_have_run_is_borne_out_by_the_compiler() -> None:
    """A refusal by a case that the compiler refuses, a hazard by one that it takes."""
    borne_out = {
        finding.rule.removeprefix("rules.")
        for name in CASES
        for one in judged(name)
        for finding in one.findings
        if verdicts()[name]["taken"] is (finding.severity == Severity.HAZARD)
    }
    said = {name for name, rule in NPU.rules.items() if rule.evidence is Evidence.RUN}
    # Elsewhere: onnxruntime-qnn's message names g_idx with the bias; a decoder with an int8 cache; graphs of
    # tests/compilation, which are compiled and run there.
    elsewhere = {"nbits-groups", "attention-quantized-cache", "lpbq-factors", "sixteen-rows"}
    assert said - borne_out == elsewhere


def unknown_rows(source: str) -> list[str]:
    """Names and patterns in a source, before "in tests/lint/corpus.py", that no row has."""
    said = source.partition(" in tests/lint/corpus.py")[0].rpartition("; ")[2]
    names = [name for name in re.split(r", | and ", said) if re.fullmatch(r"[\w*.]+(?:-[\w*.]*)+", name)]
    return [name for name in names if not fnmatch.filter(CASES, name)]


def test_a_source_names_rows_of_the_corpus() -> None:
    text = (TARGETS / "families" / "qnn-htp.toml").read_text("utf-8")
    sources = [source for source in re.findall(r'source = "(.*)"', text) if "in tests/lint/corpus.py" in source]
    assert len(sources) > 80
    assert {source: unknown for source in sources if (unknown := unknown_rows(source))} == {}
    assert unknown_rows("typed-*-int7 and five-Gelu-same-*, Pad-edges in tests/lint/corpus.py") == [
        "typed-*-int7",
        "Pad-edges",
    ]


def test_partitions_are_those_that_the_compiler_makes() -> None:
    """Of the blocks with a refused node in the middle; nodes that onnxruntime rewrites first are not comparable."""
    compared = []
    for name in ("block-residual-rms-fused", "block-residual-layer-fused", "fresh-block-mobile-celu"):
        nodes = [one for one in judged(name) if not one.node.folded and one.node.depth == 0]
        count = count_partitions([one.node for one in nodes], [one.taken for one in nodes])
        compared.append((name, count, verdicts()[name]["partitions"]))
    assert [(name, count) for name, count, _ in compared] == [(name, made) for name, _, made in compared]


def test_the_document_lists_the_disagreements_and_the_agreement() -> None:
    text = DOCUMENT.read_text("utf-8")
    listed = re.findall(r"^\| `([\w.-]+)` \| (taken|refused) \| (taken|refused) \|", text, re.MULTILINE)
    words = {True: "taken", False: "refused"}
    assert listed == [(name, words[rules], words[not rules]) for name, rules in DISAGREEMENTS.items()]
    figures = []
    for name, cases in (("all", list(CASES.values())), ("held out", of(held_out=True))):
        parts = [[case for case in cases if verdicts()[case.name]["taken"] is takes] for takes in (True, False)]
        agreeing = [sum(taken(case.name) is verdicts()[case.name]["taken"] for case in part) for part in parts]
        pairs = [(sum(agreeing), len(cases)), *zip(agreeing, map(len, parts), strict=True)]
        figures.append(f"| {name} | " + " | ".join(f"{ours} of {count}" for ours, count in pairs) + " |")
    assert [line for line in text.splitlines() if line in figures] == figures


@pytest.mark.skipif(not is_installed(), reason="needs Qualcomm's compiler: pip install 'hvlc[qnn]' on x86-64 Linux")
@pytest.mark.parametrize("name", list(CASES)[7::140])
def test_the_compiler_still_says_what_is_recorded(name: str) -> None:
    assert ask(CASES[name]).taken is verdicts()[name]["taken"]
