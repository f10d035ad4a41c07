"""Remove the slice to the last position, so that a decoder returns logits at every position.

Calibration and perplexity read the last layer's inputs and logits at all positions.
"""

from dataclasses import dataclass

from hvlc.graphs.builder import keep_all_logits
from hvlc.graphs.bundle import Component, Role
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class KeepAllLogits(ComponentPass):
    """Remove the slices to the last position."""

    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.SYMBOLIC_SHAPES})
    promises = frozenset({Trait.ALL_POSITIONS})

    def transform(self, component: Component) -> Outcome:
        """Join what lies on both sides of every cut."""
        return Outcome(keep_all_logits(component.graph))
