"""Drop what nothing reads of a front graph: without a compressor, most rules read bytes, not pixels in float.

onnxruntime runs such nodes all the same: 24 bytes for each pixel of the image, 400 MB for one of 4096 x 4096.
"""

from dataclasses import dataclass

from onnx_ir.passes.common import RemoveUnusedNodesPass

from hvlc.graphs.bundle import Component, Role
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait


@dataclass(frozen=True)
class DropUnreadPixels(ComponentPass):
    """Remove the front's nodes and constants that no output depends on."""

    roles = frozenset({Role.FRONT})
    requires = frozenset({Trait.FRONT_PIXELS})
    ends = frozenset({Trait.FRONT_PIXELS})

    def transform(self, component: Component) -> Outcome:
        """Remove what is unread; the number of nodes."""
        before = sum(1 for _ in component.graph.all_nodes())
        RemoveUnusedNodesPass()(component.model)
        return Outcome(before - sum(1 for _ in component.graph.all_nodes()))
