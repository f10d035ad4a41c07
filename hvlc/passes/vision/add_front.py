"""Add the front graph, by which images become pieces for an encoder and tokens for the prompt."""

from dataclasses import dataclass

from hvlc.graphs.bundle import Bundle, Component, Role, Skip
from hvlc.graphs.facts import ImageRule
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class AddFront(BundlePass):
    """Add component "front"; what its rule cannot obey is declined with the reason.

    Attributes:
        rule: how an image becomes pieces and tokens.
    """

    rule: ImageRule
    promises = frozenset({Trait.FRONT_GRAPH, Trait.FRONT_PIXELS})

    def transform(self, bundle: Bundle) -> Outcome:
        """Add component "front".

        Inputs `image` uint8 `[height, width, 3]`, `scale` float32 `[1]` per side, `max_visual_tokens` int64 `[1]`.
        Outputs `pixel_values` float32 `[pieces, 3, H, W]`, `image_ids` int64 `[n]`, `grid` int64 `[2]`, `used_scale`
        float32 `[1]` (`hvlc.imaging`).
        """
        if "front" in bundle.components:
            return Outcome()
        bundle.add(Component("front", Role.FRONT, self.rule.front(), "front"))
        return Outcome(1, tuple(Skip(f"front.{name}", reason) for name, reason in self.rule.ignores))
