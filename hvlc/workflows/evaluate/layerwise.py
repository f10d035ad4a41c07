"""Differences of packages layer by layer: in their weights, and in the values that they compute."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hvlc.errors import Progress, UserError
from hvlc.evaluation.deviation import centered_logits, deviation
from hvlc.manifest.manifest import Manifest
from hvlc.package.layers import COMPILED, layer_errors, paired, plan_changes, unique_weights
from hvlc.package.weights import stored_weights
from hvlc.results import trace_points
from hvlc.results.comparison import LayerError, PlanChange, StageError
from hvlc.results.difference import ValueChange
from hvlc.results.trace_points import Question, Values
from hvlc.workflows.bisect.opening import open_tracer

#: Stages that are not values of a layer: labels, and rows of no meaning at placeholders.
_LABELS = (
    trace_points.TOKENIZATION,
    trace_points.RESOLUTION,
    trace_points.EMBEDDING,
    trace_points.SAMPLING,
)
_NAMED = 3  # weights in a note


@dataclass(frozen=True)
class WeightDifferences:
    """Differences between the weights of packages.

    Attributes:
        layers: errors by layer and kind.
        plan: weights in different formats.
        notes: what was not compared, and why.
    """

    layers: tuple[LayerError, ...] = ()
    plan: tuple[PlanChange, ...] = ()
    notes: tuple[str, ...] = ()


def weigh(
    packages: Mapping[str, Path], settings: Mapping[str, Mapping[str, Sequence[ValueChange]]], progress: Progress
) -> WeightDifferences:
    """Compare the weights of packages with the first one's.

    Args:
        packages: by name, the reference first.
        settings: what each was made from otherwise than the reference.
        progress: told before each package.

    Raises:
        UserError: a package is damaged, or stores a weight in a way that this version does not read.
    """
    manifests = {name: Manifest.load(directory) for name, directory in packages.items()}
    compiled = [n for n, manifest in manifests.items() if any(e.compiled for e in manifest.components.values())]
    weights = {name: unique_weights(stored_weights(packages[name], manifest)) for name, manifest in manifests.items()}
    reference, *others = weights
    layers: list[LayerError] = []
    notes: list[str] = []
    for done, name in enumerate(others):
        progress(f"weights of {name}", done, len(others))
        if any(change.key.startswith("prepare") for change in settings.get(name, {}).get("recipe", ())):
            notes.append(f"{name}: its recipe prepares the weights otherwise, so they are in another basis and scale")
            continue
        pairs, alone = paired(weights[reference], weights[name])
        found, without = layer_errors(name, pairs)
        layers += found
        hidden = [one for one in (reference, name) if one in compiled]
        why = f"{COMPILED} ({' and '.join(hidden)})" if hidden else "without counterpart"
        notes += [f"{name}: {len(alone)} weights are not compared: {why}: {_some(alone)}"] if alone else []
        notes += [f"{name}: not finite, or 0 everywhere in {reference}: {_some(without)}"] if without else []
    return WeightDifferences(tuple(layers), tuple(plan_changes(weights, compiled)), tuple(notes))


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def trace(
    packages: Mapping[str, Path], questions: Sequence[Question], progress: Progress
) -> tuple[list[StageError], list[str]]:
    """Compare what stages of packages make with what the first package's make, each from its own inputs.

    Args:
        packages: by name, the reference first.
        questions: that are asked.
        progress: told before each package.

    Returns:
        The errors in the order of stages, and what was not compared, and why.
    """
    reference, *others = packages
    try:
        expected = _traces(packages[reference], questions)
    except UserError as error:
        return [], [f"{reference}: no values of layers: {error.cause}"]
    errors: list[StageError] = []
    notes: list[str] = []
    for done, name in enumerate(others):
        progress(f"values of {name}", done, len(others))
        try:
            errors += _errors(name, _traces(packages[name], questions), expected)
        except UserError as error:
            notes.append(f"{name}: no values of layers: {error.cause}")
    return errors, notes


def _traces(directory: Path, questions: Sequence[Question]) -> list[Values]:
    """The values of layers for each question."""
    tracer = open_tracer(directory)
    found: list[Values] = []
    for question in questions:
        values = tracer.trace(tracer.resolved(question))
        found.append({name: value for name, value in values.items() if name not in _LABELS})
    return found


def _errors(contestant: str, found: Sequence[Values], expected: Sequence[Values]) -> Iterator[StageError]:
    """Errors of one package's values, over the questions."""
    for stage in dict.fromkeys(name for values in expected for name in values):
        pairs = [(f.get(stage), e[stage]) for f, e in zip(found, expected, strict=True) if stage in e]
        relative = [None if f is None else _relative(stage, f, e) for f, e in pairs]
        known = [one for one in relative if one is not None]
        total = math.sqrt(math.fsum(one * one for one in known) / len(known)) if len(known) == len(pairs) else None
        yield StageError(contestant=contestant, stage=stage, relative_error=total, questions=len(pairs))


def _relative(stage: str, found: np.ndarray, expected: np.ndarray) -> float | None:
    if stage == trace_points.HEAD:
        found, expected = centered_logits(found), centered_logits(expected)
    return deviation(found, expected).relative
