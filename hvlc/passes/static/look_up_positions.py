"""Look the positions of tokens up in a table that the host gives once, where a prompt runs in chunks of fixed length.

onnxruntime-genai makes positions in three axes of the whole prompt, and hands a `decoder.pipeline` those of its first
chunk, then others that count on from there (src/models/position_inputs.cpp, release 0.18). An image in a later chunk
would be placed as text. A named tensor of the host reaches every stage as it is, so the host gives the positions of all
rows of the cache, and each graph takes those of the tokens that it runs.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import LAST_INDEX, POSITIONS
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import make_node, register
from hvlc.graphs.shapes import infer_shapes
from hvlc.manifest.manifest import POSITION_TABLE
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait

_AXES = 3
_INT32 = ir.TensorType(ir.DataType.INT32)


@dataclass(frozen=True)
class LookUpPositions(ComponentPass):
    """Replace the positions of a chunk's tokens by those of their rows in the cache.

    Attributes:
        context: rows of the cache.
    """

    context: int
    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.DECODER_PARTS, Trait.HOST_LENGTHS, Trait.STATIC_SHAPES})

    def transform(self, component: Component) -> Outcome:
        """Replace input `position_ids` by input `position_table` int32 `[3, context]`."""
        graph = component.graph
        inputs = {str(value.name): value for value in graph.inputs}
        given = inputs.get(POSITIONS)
        if given is None or given.shape is None:
            return Outcome(0, (Skip("*", f"takes no {POSITIONS}"),))
        tokens = int(str(given.shape[-1]))
        table = ir.Value(name=POSITION_TABLE, type=_INT32, shape=ir.Shape([_AXES, self.context]))
        offsets = register(graph, ir.tensor(np.arange(1 - tokens, 1, dtype=np.int32)[None], name="row_offsets"))
        rows = make_node("Add", [inputs[LAST_INDEX], offsets], "position_rows")
        picked = make_node("Gather", [table, rows.outputs[0]], POSITIONS, axis=1)
        ir.convenience.replace_all_uses_with(given, picked.outputs[0])
        graph.inputs[graph.inputs.index(given)] = table
        graph.insert_before(next(iter(graph)), [rows, picked])
        infer_shapes(graph)
        return Outcome(1)
