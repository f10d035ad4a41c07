"""The dotted name of what is in a layer, as checkpoints and the nodes made of them have it."""

import re
from dataclasses import dataclass

_LAYER = re.compile(r"(?P<before>(?:.*?\.)?)(?P<stack>layers?)\.(?P<index>\d+)\.(?P<within>.+)")


@dataclass(frozen=True)
class LayerName:
    """A dotted name that leads through a layer: `model.layers.3.self_attn.q_proj.weight`.

    Attributes:
        before: what stands before the stack, with its dot, as "model."; may be empty.
        stack: the stack, as "layers".
        index: number of the layer.
        within: what stands after the number, as "self_attn.q_proj.weight".
    """

    before: str
    stack: str
    index: int
    within: str

    @classmethod
    def of(cls, name: str) -> "LayerName | None":
        """The parts of a name; None where it leads through no layer. Of several stacks, the outermost counts."""
        found = _LAYER.fullmatch(name)
        return cls(found["before"], found["stack"], int(found["index"]), found["within"]) if found else None

    def at(self, index: int) -> str:
        """The same name in another layer."""
        return f"{self.before}{self.stack}.{index}.{self.within}"
