"""Replace com.microsoft.RotaryEmbedding by the standard operator of opset 23, where a target supports only that.

Both rotate pairs of features by angles that tables give for each position; inputs come in another order, and the
standard operator has neither a scale nor packed batches. Qualcomm's compiler (onnxruntime-qnn 2.7) rejects the contrib
operator, which its documentation lists, and constant positions: their rows of the tables are looked up here.
"""

from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Skip
from hvlc.graphs.editing import register, replace_node
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator
from hvlc.passes.traits import Trait

_NAME = "RotaryEmbedding"
_SINCE = 23  # opset
_FLAT = 3  # dimensions of [batch, sequence, heads * width]


@dataclass(frozen=True)
class ReplaceContribRotary(ComponentPass):
    """Replace onnxruntime's RotaryEmbedding by the standard one where the target does not support it.

    Attributes:
        takes: operators that the target takes.
    """

    takes: TakesOperator
    requires = frozenset({Trait.LATE_OPSET})

    def transform(self, component: Component) -> Outcome:
        """Replace every contrib operator that the target refuses."""
        changed, skipped = 0, []
        opset = component.model.opset_imports.get("", 0)
        for node in list(component.graph):
            if node.domain != MICROSOFT or node.op_type != _NAME or self.takes(_NAME, MICROSOFT):
                continue
            found = self._attributes(node, opset)
            if isinstance(found, str):
                skipped.append(Skip(str(node.name), found))
                continue
            new = ir.node(_NAME, [node.inputs[0], *_turns(component.graph, node)], found, name=str(node.name))
            replace_node(node, new)
            changed += 1
        return Outcome(changed, tuple(skipped))

    def _attributes(self, node: ir.Node, opset: int) -> dict[str, int] | str:
        """Attributes of the standard operator, or why it cannot say the same."""
        verdict = self.takes(_NAME)
        if not verdict:
            return verdict.reason
        if opset < _SINCE:
            return f"RotaryEmbedding needs opset {_SINCE}, the model has {opset}"
        if node.attributes.get_float("scale", 1.0) != 1.0 or node.attributes.get_int("is_packed_batching", 0) != 0:
            return "it scales or packs batches"
        x, positions, cosines = node.inputs[:3]
        if x is None or positions is None or cosines is None or x.shape is None or cosines.shape is None:
            return "its shapes are unknown"
        if positions.shape is None or len(positions.shape) != 2:
            return "its positions are one offset, not a position for each token"
        turned = node.attributes.get_int("rotary_embedding_dim", 0)
        heads = node.attributes.get_int("num_heads", 0)
        if len(x.shape) == _FLAT and not heads:
            # onnxruntime takes the width of a head from the tables then.
            width, features = cosines.shape[1], x.shape[2]
            if turned or not isinstance(width, int) or not isinstance(features, int):
                return "its number of heads is unknown"
            heads = features // (2 * width)
        attributes = {"interleaved": node.attributes.get_int("interleaved", 0), "rotary_embedding_dim": turned}
        return attributes | ({"num_heads": heads} if len(x.shape) == _FLAT else {})


def _turns(graph: ir.Graph, node: ir.Node) -> list[ir.Value | None]:
    """Both tables and the positions; where all of them are constants, the rows of both tables."""
    positions, *tables = node.inputs[1:4]
    constants = [
        value.const_value for value in (positions, *tables) if value is not None and value.const_value is not None
    ]
    if len(constants) < len(tables) + 1:
        return [*tables, positions]
    at, *rows = (constant.numpy() for constant in constants)
    named = zip(("cosines", "sines"), rows, strict=True)
    return [register(graph, ir.tensor(table[at], name=f"{node.name}.{name}")) for name, table in named]
