"""Remove sliding windows that are at least as long as the KV cache, since they mask nothing.

Qwen2 and SmolLM3 may have layers with a sliding window, often longer than a phone's cache. Qualcomm's compiler takes no
window (onnxruntime-qnn 2.7).
"""

from dataclasses import dataclass

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait

_WINDOW, _NONE = "local_window_size", -1


@dataclass(frozen=True)
class DropWindows(ComponentPass):
    """Remove every window that is not shorter than the cache.

    A window of W positions, the token's own included, reaches back to the first of W positions: where the last
    possible one is the W-th, every token sees everything before it.

    Attributes:
        context: positions of the KV cache.
    """

    context: int
    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.GROUP_ATTENTION})
    promises = frozenset({Trait.NARROW_WINDOWS})

    def transform(self, component: Component) -> Outcome:
        """Look at every attention."""
        changed, skipped = 0, []
        for node in [n for n in component.graph if n.op_type == "GroupQueryAttention" and n.domain == MICROSOFT]:
            window = node.attributes.get_int(_WINDOW, _NONE)
            if window == _NONE:
                continue
            if window < self.context:
                skipped.append(Skip(str(node.name), f"sees {window} of {self.context} positions"))
            else:
                node.attributes.pop(_WINDOW)
                changed += 1
        return Outcome(changed, tuple(skipped))
