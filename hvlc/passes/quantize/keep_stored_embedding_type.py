"""Keep unquantized embedding tables in the checkpoint's dtype, and cast after the look-up.

A Gather copies rows, so a bfloat16 or float16 table can stay as it is and only the gathered rows be cast to float32:
exact, and half the bytes. onnxruntime's CPU provider gathers every element type
(tests/passes/quantize/test_keep_stored_embedding_type.py runs it).
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import make_node, register, replace_node
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.targets import SupportAnswer
from hvlc.weights.lazy import Cast, LazyTensor, expression_of


@dataclass(frozen=True)
class KeepStoredEmbeddingType(ComponentPass):
    """Move the cast of a table from before its look-up to after it.

    Attributes:
        takes: whether a table of an element type can be looked up where a component of a role runs, or why not.
    """

    takes: Callable[[Role, str], SupportAnswer]
    roles = frozenset({Role.EMBEDDING, Role.DECODER})
    requires = frozenset({Trait.QUANTIZED_WEIGHTS})

    def transform(self, component: Component) -> Outcome:
        """Narrow every float table that was stored narrow and that nothing else reads."""
        changed, skipped = 0, list[Skip]()
        for node in [n for n in component.graph if n.op_type == "Gather" and not n.domain]:
            table = node.inputs[0]
            if table is None or table.const_value is None or table.const_value.dtype != ir.DataType.FLOAT:
                continue
            widened = expression_of(table.const_value)
            stored = widened.of if isinstance(widened, Cast) else widened
            verdict = self.takes(component.role, str(stored.dtype))
            if stored.dtype.itemsize >= widened.dtype.itemsize:
                skipped.append(Skip(str(table.name), f"the checkpoint stores it in {stored.dtype}"))
            elif not verdict:
                skipped.append(Skip(str(table.name), verdict.reason))
            elif len(table.uses()) > 1:
                skipped.append(Skip(str(table.name), "other nodes read it too"))
            else:
                _narrow(component.graph, node, LazyTensor(str(table.name), stored))
                changed += 1
        return Outcome(changed, tuple(skipped))


def _narrow(graph: ir.Graph, node: ir.Node, stored: LazyTensor) -> None:
    """`Gather(Cast(table))` becomes `Cast(Gather(table))`."""
    ids = node.inputs[1]
    node.replace_input_with(0, None)
    del graph.initializers[str(stored.name)]
    rows = make_node("Gather", [register(graph, stored), ids], f"{node.name}.stored", axis=0)
    replace_node(node, [rows, make_node("Cast", rows.outputs, str(node.name), to=ir.DataType.FLOAT)])
