"""Lets images be resized to one of a few grids, for encoders that a compiler fixes."""

from dataclasses import dataclass, replace

from hvlc.graphs.bundle import Bundle
from hvlc.graphs.facts import ImageRule
from hvlc.passes.base import BundlePass, Outcome


@dataclass(frozen=True)
class FixGrids(BundlePass):
    """Replace the rule by which images become pieces; it runs before the front graph is made.

    Attributes:
        rule: of fixed grids.
    """

    rule: ImageRule

    def transform(self, bundle: Bundle) -> Outcome:
        """Write the rule into the facts, and the bound of visual tokens that it brings."""
        image = bundle.facts.sees
        most = min(image.max_visual_tokens, self.rule.most_visual_tokens)
        bundle.facts = replace(bundle.facts, image=replace(image, rule=self.rule, max_visual_tokens=most))
        return Outcome(len(self.rule.grids))
