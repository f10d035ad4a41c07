"""Gates as a JUnit XML file, which CI servers show as tests.

A suite is an evaluation, a test case one of its gates. A broken gate is a failure, an undecided one is skipped: it
neither passed nor failed. Jenkins' schema is what the tests hold this against.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from hvlc.results.gates import GateOutcome, GateVerdict, JudgedEvaluation, Judgement
from hvlc.results.measures import MEASURES
from hvlc.results.units import written

#: Characters that XML 1.0 cannot hold, even escaped (section 2.2, Char). Names and tasks are text of others.
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(judgement: Judgement) -> str:
    """The file's text."""
    root = Element("testsuites", {"name": "hvlc gates", **_counts(judgement.outcomes)})
    for evaluation in judgement.evaluations:
        _add_suite(root, evaluation)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _add_suite(root: Element, evaluation: JudgedEvaluation) -> None:
    name = _clean(f"{evaluation.label} on {evaluation.task}")
    time = {} if evaluation.seconds is None else {"time": f"{evaluation.seconds:.3f}"}
    skipped = str(len([o for o in evaluation.outcomes if o.verdict is GateVerdict.UNDECIDED]))
    suite = SubElement(root, "testsuite", {"name": name, **_counts(evaluation.outcomes), "skipped": skipped, **time})
    properties = SubElement(suite, "properties")
    facts = {"hvlc": version("hvlc"), "task": evaluation.task, "runs on": evaluation.runs_on}
    numbers = {metric: written(number.value, MEASURES[metric].unit) for metric, number in evaluation.measures.items()}
    for key, value in {**facts, **numbers}.items():
        SubElement(properties, "property", name=key, value=_clean(value))
    for outcome in evaluation.outcomes:
        _add_case(suite, name, outcome)


def _add_case(suite: Element, classname: str, outcome: GateOutcome) -> None:
    gate = outcome.gate
    case = SubElement(suite, "testcase", name=_clean(gate.text), classname=classname)
    kind = {GateVerdict.BROKEN: "failure", GateVerdict.UNDECIDED: "skipped"}.get(outcome.verdict)
    if kind:
        found = SubElement(case, kind, type=f"gate.{outcome.verdict}", message=_clean(outcome.message))
        found.text = _clean("\n".join([outcome.message, *([f"why: {gate.reason}"] if gate.reason else [])]))
    else:
        SubElement(case, "system-out").text = _clean(outcome.message)


def _counts(outcomes: Sequence[GateOutcome]) -> dict[str, str]:
    broken = [outcome for outcome in outcomes if outcome.verdict is GateVerdict.BROKEN]
    return {"tests": str(len(outcomes)), "failures": str(len(broken)), "errors": "0"}


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
