"""Rotate the values of an attention within each head (R2 of SpinQuant, arXiv 2405.16406; QuaRot, arXiv 2404.00456).

The output of an attention is a weighted mean of values, so rotating the value projection's output rotates the output
projection's input, and the inverse rotation folded into the latter cancels it. It costs nothing when the graph runs,
and spreads outliers of the output projection's input and of the value cache.
"""

from dataclasses import dataclass

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import replace_weight
from hvlc.graphs.linears import linear_groups, operand, values_of
from hvlc.graphs.producers import attends, producer_of
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.rotation import Rotated, Rotation, is_rotated


@dataclass(frozen=True)
class RotateHeads(ComponentPass):
    """Rotate value projections, and the linears that read attentions.

    Attributes:
        seed: of the rotation.
    """

    seed: int = 0
    roles = frozenset({Role.DECODER, Role.VISION_ENCODER})
    requires = frozenset({Trait.FLOAT_WEIGHTS, Trait.UNSCALED_CHANNELS, Trait.SEPARATE_ENCODERS, Trait.GROUP_ATTENTION})

    def transform(self, component: Component) -> Outcome:
        """Rotate every attention between two linears."""
        changed, skipped = 0, []
        for group in linear_groups(component.graph):
            if not attends(group):
                continue
            producer = producer_of(group)
            if isinstance(producer, str):
                skipped.append(Skip(", ".join(str(node.name) for node in group.nodes), producer))
                continue
            rotation = Rotation(producer.head_size or 1, self.seed)
            places = [*producer.places, *((operand(node, 1), 0) for node in group.nodes)]
            if not all(is_rotated(values_of(constant), rotation, axis) for constant, axis in places):
                for constant, axis in places:
                    replace_weight(constant, Rotated(values_of(constant), rotation, axis))
                changed += 1
        return Outcome(changed, tuple(skipped))
