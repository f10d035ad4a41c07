"""Infer types and shapes of all values of a model that hvlc did not export, for passes that read them."""

from dataclasses import dataclass

from hvlc.graphs.bundle import Component
from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class InferShapes(ComponentPass):
    """Infer the dtype and shape of every value, as far as inputs and constants determine them."""

    promises = frozenset({Trait.INFERRED_SHAPES})

    def transform(self, component: Component) -> Outcome:
        """Infer them; what the model computes stays the same, so nothing counts as changed."""
        infer_shapes(component.graph)
        return Outcome()
