"""Errors between the weights of two packages, layer by layer."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hvlc.graphs.layers import LayerName
from hvlc.package.distance import distance
from hvlc.package.weights import StoredWeight
from hvlc.results.comparison import LayerError, PlanChange

Kind = Literal["attention", "mlp", "norm", "other"]

#: In place of a format that is inside a binary.
COMPILED = "compiled, not readable"

_KINDS: tuple[tuple[str, Kind], ...] = ((r"norm", "norm"), (r"attn|attention", "attention"), (r"mlp|\bfc\d", "mlp"))


@dataclass(frozen=True)
class Pairing:
    """A weight that two packages have.

    Attributes:
        component: of the first package.
        name: of the parameter, or of the packed projection.
        first: what holds its rows in the first package, in order.
        second: the same in the second.
    """

    component: str
    name: str
    first: tuple[StoredWeight, ...]
    second: tuple[StoredWeight, ...]

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Both values, float32 of one shape."""
        return _stacked(self.first), _stacked(self.second)


def unique_weights(weights: Sequence[StoredWeight]) -> dict[str, StoredWeight]:
    """Each parameter once, whichever component has it first; tables that no checkpoint has are left out."""
    found: dict[str, StoredWeight] = {}
    for weight in weights:
        if not weight.name.startswith("rotary."):
            found.setdefault(weight.name, weight)
    return found


def paired(first: Mapping[str, StoredWeight], second: Mapping[str, StoredWeight]) -> tuple[list[Pairing], list[str]]:
    """Weights of both packages, packed or not, and the names of those that have no counterpart of their shape."""
    pairs: list[Pairing] = []
    alone: list[str] = []
    for name, weight in first.items():
        other = _rows(weight, second)
        if other is not None and _shape(other) == weight.shape:
            pairs.append(Pairing(weight.component, name, (weight,), other))
        elif other is not None or not _is_part(name, second):
            alone.append(name)
    for name, weight in second.items():
        own = _rows(weight, first)
        if name in first:
            continue
        if own is not None and _shape(own) == weight.shape:
            pairs.append(Pairing(own[0].component, name, own, (weight,)))
        elif not _is_part(name, first):
            alone.append(name)
    return pairs, alone


def _rows(weight: StoredWeight, others: Mapping[str, StoredWeight]) -> tuple[StoredWeight, ...] | None:
    """Weights that hold the same rows in another package: the weight itself, or the members that it stacks."""
    if weight.name in others:
        return (others[weight.name],)
    members = tuple(others[name] for name in weight.members if name in others)
    return members if len(members) == len(weight.members) > 1 else None


def _is_part(name: str, others: Mapping[str, StoredWeight]) -> bool:
    """Whether another package stacks the weight with others."""
    return any(name in other.members for other in others.values() if "+" in other.name)


def _shape(rows: Sequence[StoredWeight]) -> tuple[int, ...]:
    return (sum(weight.shape[0] for weight in rows), *rows[0].shape[1:])


def _stacked(rows: Sequence[StoredWeight]) -> np.ndarray:
    return rows[0].load() if len(rows) == 1 else np.concatenate([weight.load() for weight in rows])


def layer_errors(contestant: str, pairs: Sequence[Pairing]) -> tuple[list[LayerError], list[str]]:
    """Errors of the weights by layer and kind, in the reference's order, and the names of weights that have none.

    A weight has none where a number is not finite or the reference is 0 everywhere and the weight is not.
    """
    groups: dict[tuple[str, Kind], list[tuple[str, float, float, float]]] = {}
    without: list[str] = []
    for pair in pairs:
        found = distance(*pair.load())
        if found.relative is None:
            without.append(pair.name)
            continue
        key = place_of_weight(pair.component, pair.name)
        groups.setdefault(key, []).append((pair.name, found.relative, found.error_squares, found.reference_squares))
    return [_summed(contestant, *key, rows) for key, rows in groups.items()], without


def _summed(contestant: str, layer: str, kind: Kind, rows: Sequence[tuple[str, float, float, float]]) -> LayerError:
    worst = max(rows, key=lambda row: row[1])
    errors, size = math.fsum(row[2] for row in rows), math.fsum(row[3] for row in rows)
    return LayerError(
        contestant=contestant,
        layer=layer,
        kind=kind,
        weights=len(rows),
        relative_error=math.sqrt(errors / size) if size else 0.0,
        worst=worst[0],
        worst_error=worst[1],
    )


def place_of_weight(component: str, name: str) -> tuple[str, Kind]:
    """Layer and kind of a weight, e.g. ("model.layers.3", "mlp")."""
    kind: Kind = next((kind for pattern, kind in _KINDS if re.search(pattern, name)), "other")
    found = LayerName.of(name)
    if found:
        return f"{component}.layers.{found.index}", kind
    parts = [part for part in name.split(".") if part not in ("weight", "bias")]
    part = next((p for p in parts if p in ("projector", "lm_head", "embed_tokens")), parts[-1])
    return f"{component}.{part}", kind


def plan_changes(
    packages: Mapping[str, Mapping[str, StoredWeight]], compiled: Collection[str] = ()
) -> list[PlanChange]:
    """Weights whose formats differ between packages.

    Args:
        packages: the weights of each by name, by contestant.
        compiled: contestants that keep weights inside binaries; of what they do not show, that is said.
    """
    formats: dict[str, dict[str, str]] = {}
    components: dict[str, str] = {}
    for contestant, weights in packages.items():
        for weight in weights.values():
            for member in weight.members:
                formats.setdefault(member, {})[contestant] = weight.format
                components.setdefault(member, weight.component)
    for found in formats.values():
        found |= {contestant: COMPILED for contestant in compiled if contestant not in found}
    return [
        PlanChange(component=components[member], weight=member, formats=found)
        for member, found in formats.items()
        if len(set(found.values())) > 1 or len(found) < len(packages)
    ]
