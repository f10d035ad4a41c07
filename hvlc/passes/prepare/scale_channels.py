"""Scale input channels of linears and fold the inverse into their producer: `x @ W == (x / s) @ (s * W)`.

Exact in real numbers; it moves quantization difficulty between activations and weights (SmoothQuant, arXiv 2211.10438;
AWQ, arXiv 2306.00978).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hvlc.graphs.bundle import Bundle, Component, Skip
from hvlc.graphs.editing import replace_weight
from hvlc.graphs.linears import LinearGroup, inverse_factors, is_tied, linear_groups, operand, stored_tables, values_of
from hvlc.graphs.producers import Producer, producer_of
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.checkpoint import StoredTensor
from hvlc.weights.lazy import Constant, Expression, Scaled


@dataclass(frozen=True)
class Factors:
    """Factors that need not be known before weights are evaluated.

    Attributes:
        direct: float32 `[in]`, of the linears' input channels.
        inverse: float32 `[channels of the producer]` (`hvlc.graphs.linears.inverse_factors`).
    """

    direct: Expression
    inverse: Expression


@dataclass(frozen=True)
class ScaleChannels(BundlePass):
    """Multiply linears by factors of their input channels, and divide the channels' producer by them.

    Attributes:
        factors: by component and name of the value that a group of linears reads: float32 `[in]`, above 0, or lazy.
    """

    factors: Mapping[tuple[str, str], np.ndarray | Factors]
    requires = frozenset({Trait.FLOAT_WEIGHTS, Trait.SEPARATE_ENCODERS, Trait.GROUP_ATTENTION})
    ends = frozenset({Trait.UNSCALED_CHANNELS})

    def transform(self, bundle: Bundle) -> Outcome:
        """Fold the factors of every group that was given some; the others are left alone."""
        shared = stored_tables(component.graph for component in bundle.components.values())
        changed, skipped, missing = 0, [], dict.fromkeys(self.factors)
        for component in bundle.components.values():
            for group in linear_groups(component.graph):
                key = component.name, str(group.input.name)
                missing.pop(key, None)
                if key not in self.factors or _is_scaled(group, self.factors[key]):
                    continue
                producer = scalable(group, shared)
                reason = producer if isinstance(producer, str) else fold(group, producer, self.factors[key])
                if reason:
                    skipped.append(declined(component, group, reason))
                changed += not reason
        skipped += [Skip(f"{component}: {value}", "no linear reads it") for component, value in missing]
        return Outcome(changed, tuple(skipped))


def scalable(group: LinearGroup, shared: frozenset[StoredTensor]) -> Producer | str:
    """Find what takes the factors of a group's input, or say why the group gets none.

    Args:
        group: linears that share an input.
        shared: what the checkpoint stores of the bundle's tables (`hvlc.graphs.linears.stored_tables`).
    """
    if is_tied(group, shared):
        return "it shares its bytes with a table, which would be stored again"
    return producer_of(group)


def declined(component: Component, group: LinearGroup, reason: str) -> Skip:
    """A group without factors, for the journal."""
    return Skip(f"{component.name}: {', '.join(str(node.name) for node in group.nodes)}", reason)


def fold(group: LinearGroup, producer: Producer, factors: np.ndarray | Factors) -> str | None:
    """Fold the factors of one group in place.

    Args:
        group: linears that share an input.
        producer: of the input.
        factors: float32 `[in]`, above 0, or lazy.

    Returns:
        Why nothing was done, or None.
    """
    lazy = factors if isinstance(factors, Factors) else _constants(producer, factors)
    if isinstance(lazy, str):
        return lazy
    for constant, axis in producer.places:
        replace_weight(constant, values_of(constant).scale(lazy.inverse, axis))
    for node in group.nodes:
        weight = operand(node, 1)
        replace_weight(weight, values_of(weight).scale(lazy.direct, 0))
    return None


def _constants(producer: Producer, factors: np.ndarray) -> Factors | str:
    """Known factors as expressions, or what is wrong with them."""
    if factors.shape != producer.channels.shape or not (np.isfinite(factors) & (factors > 0)).all():
        return f"the factors are no {producer.channels.size} finite numbers above 0"
    made = np.ones(int(producer.channels.max()) + 1, np.float32)
    made[producer.channels] = factors
    if not np.array_equal(made[producer.channels], factors):
        return "heads that share their values have different factors"
    return Factors(Constant(factors), Constant(inverse_factors(factors, producer.channels)))


def _is_scaled(group: LinearGroup, factors: np.ndarray | Factors) -> bool:
    """Whether the weights have these factors already."""
    return all(_holds(values_of(operand(node, 1)), factors) for node in group.nodes)


def _holds(expression: Expression, factors: np.ndarray | Factors) -> bool:
    while isinstance(expression, Scaled):
        if expression.axis == 0 and _are(expression.factors, factors):
            return True
        expression = expression.of
    return False


def _are(found: Expression, factors: np.ndarray | Factors) -> bool:
    if isinstance(factors, Factors):
        return found == factors.direct
    return isinstance(found, Constant) and np.array_equal(found.values, factors)
