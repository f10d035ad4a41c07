"""Gates as a SARIF 2.1.0 file, which code hosts show as alerts beside the lines they are about.

A rule is a metric, a result a gate that did not pass. Its location is the line that a reader would change: the rule of
the recipe that quantized the worst weight, where an accuracy gate broke and the weights' errors are known; else the
line of the gates' file; else the file that stands for the model. SARIF: OASIS, "Static Analysis Results Interchange
Format (SARIF) Version 2.1.0", 2020; sections are named where they decide something.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from hvlc.errors import GateError
from hvlc.inputs.documents import yaml_line
from hvlc.results.gates import (
    ACCURACY,
    GateOutcome,
    GateVerdict,
    JudgedEvaluation,
    Judgement,
    Origin,
    RecipeText,
    Suspect,
)
from hvlc.results.measures import MEASURES

#: Schema of SARIF files.
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "%SRCROOT%"


def sarif_json(judgement: Judgement, origins: Mapping[str, Origin] | None = None) -> str:
    """The file's text.

    Args:
        judgement: what came of the gates.
        origins: what is known of each model, by its name.
    """
    driver = {"name": "hvlc", "version": version("hvlc"), "rules": list(map(_rule, _metrics(judgement)))}
    run = {
        "tool": {"driver": driver},
        "invocations": [_invocation(judgement)],
        "columnKind": "unicodeCodePoints",
        "results": list(_results(judgement, origins or {})),
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def recipe_line(recipe: str, rule_index: int) -> int:
    """The line, from 1, on which a rule of a recipe begins.

    Args:
        recipe: the recipe's YAML.
        rule_index: from 0.

    Raises:
        KeyError: the recipe has no such rule.
    """
    return yaml_line(recipe, "rules", rule_index)


def _metrics(judgement: Judgement) -> list[str]:
    """Metrics of all gates, each once, in the order in which they are judged."""
    return list(dict.fromkeys(outcome.gate.metric for outcome in judgement.outcomes))


def _rule(metric: str) -> dict[str, Any]:
    title = MEASURES[metric].title
    return {
        "id": f"gate/{metric}",
        "name": "".join(word.capitalize() for word in metric.split("_")),
        "shortDescription": {"text": f"Gate on {title}"},
        "fullDescription": {"text": f"The model's {title} must keep the bound that the project sets."},
        "help": {"text": "hvlc compare shows what changed, hvlc bisect where it starts; or change the gate."},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["hvlc", "accuracy" if metric in ACCURACY else "cost"]},
    }


def _invocation(judgement: Judgement) -> dict[str, Any]:
    broken = bool(judgement.found(GateVerdict.BROKEN))
    return {"executionSuccessful": True, "exitCode": GateError.exit_code if broken else 0}


def _results(judgement: Judgement, origins: Mapping[str, Origin]) -> Iterable[dict[str, Any]]:
    rules = _metrics(judgement)
    for evaluation in judgement.evaluations:
        for outcome in evaluation.outcomes:
            if outcome.verdict is not GateVerdict.PASSED:
                index = rules.index(outcome.gate.metric)
                yield _result(evaluation, outcome, index, origins.get(evaluation.name))


def _result(
    evaluation: JudgedEvaluation, outcome: GateOutcome, rule_index: int, origin: Origin | None
) -> dict[str, Any]:
    gate = outcome.gate
    suspects = origin.suspects if origin and gate.metric in ACCURACY else ()
    recipe = origin.recipe if origin else None
    # A kind other than "fail" has no level (section 3.27.10); "open" is what could not be determined (3.27.9).
    failed = outcome.verdict is GateVerdict.BROKEN
    fingerprint = "\n".join([gate.text, evaluation.label, evaluation.task])
    result = {
        "ruleId": f"gate/{gate.metric}",
        "ruleIndex": rule_index,
        "kind": "fail" if failed else "open",
        "level": "error" if failed else "none",
        "message": {"text": _message(outcome, suspects, recipe)},
        "partialFingerprints": {"gate/v1": sha256(fingerprint.encode("utf-8", "replace")).hexdigest()},
    }
    places = _places(outcome, suspects, origin)
    if suspects:
        logical = [_logical(suspect) for suspect in suspects]
        places[:1] = [{**(places[0] if places else {}), "logicalLocations": logical}]
    return {**result, "locations": places[:1], "relatedLocations": places[1:]}


def _message(outcome: GateOutcome, suspects: Sequence[Suspect], recipe: RecipeText | None) -> str:
    parts = [f"{outcome.message}."]
    if outcome.gate.reason:
        parts.append(f"Why the gate: {outcome.gate.reason}.")
    if suspects:
        parts.append(f"Largest errors: {', '.join(_suspected(suspect, recipe) for suspect in suspects)}.")
    return " ".join(parts)


def _suspected(suspect: Suspect, recipe: RecipeText | None) -> str:
    text = f"{suspect.weight} of {suspect.layer} ({suspect.error:.2g})"
    if recipe is None or suspect.rule_index is None:
        return text
    return f"{text}, by line {recipe_line(recipe.text, suspect.rule_index)} of the recipe {recipe.name}"


def _places(outcome: GateOutcome, suspects: Sequence[Suspect], origin: Origin | None) -> list[dict[str, Any]]:
    """Physical locations, the one to change first."""
    found: dict[tuple[str, int], None] = {}
    recipe = origin.recipe if origin else None
    if recipe and recipe.path:
        for suspect in suspects:
            if suspect.rule_index is not None:
                found[recipe.path, recipe_line(recipe.text, suspect.rule_index)] = None
    if outcome.gate.place:
        found[outcome.gate.place.file, outcome.gate.place.line] = None
    if not found and origin:
        found[origin.path, 1] = None
    return [
        {"physicalLocation": {"artifactLocation": artifact(file), "region": {"startLine": line}}}
        for file, line in found
    ]


def artifact(file: str) -> dict[str, str]:
    """A file as a URI: relative to the working directory, which is a CI's checkout, where it lies within."""
    path, here = Path(file).resolve(), Path.cwd().resolve()
    if not path.is_relative_to(here):
        return {"uri": path.as_uri()}
    return {"uri": quote(PurePath(path.relative_to(here)).as_posix()), "uriBaseId": _ROOT}


def _logical(suspect: Suspect) -> dict[str, str]:
    return {"name": suspect.layer, "fullyQualifiedName": suspect.weight, "kind": "module"}
