"""Gather the last token's hidden state before the head, where the prompt runs in padded chunks.

onnxruntime-genai (0.18) reads the logits of one position, and takes them as `[1, 1, vocabulary]` where the head's file
says so (run: tests/workflows/test_fixed.py). Which row that is, its lengths do not tell: they count the padding. The
tokens do, because nothing but padding follows the last one. So the embedding, which runs on the CPU and reads them,
counts, and the head computes one row instead of a chunk's.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import LAST_ROW
from hvlc.graphs.bundle import Bundle, Component, Role, Skip, Wire
from hvlc.graphs.editing import make_node, redirect, register
from hvlc.graphs.placement import Phase
from hvlc.graphs.shapes import infer_shapes
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait

_IDS, _LOGITS = "input_ids", "logits"
_INT32 = ir.TensorType(ir.DataType.INT32)


@dataclass(frozen=True)
class GatherLastToken(BundlePass):
    """Compute the last token's index in the embedding, and only that row in the prompt's head.

    Attributes:
        padding: token id that fills the last chunk, and that no prompt holds.
    """

    padding: int
    requires = frozenset({Trait.DECODER_PARTS, Trait.PLAIN_LOOKUP, Trait.STATIC_SHAPES, Trait.COMPUTED_SHAPES})

    def transform(self, bundle: Bundle) -> Outcome:
        """Change the one embedding and the one head of the prompt."""
        heads = [c for c in bundle.with_role(Role.DECODER) if c.phase is Phase.PROMPT and _logits(c.graph) is not None]
        embeddings = [c for c in bundle.with_role(Role.EMBEDDING) if any(v.name == _IDS for v in c.graph.inputs)]
        if len(heads) != 1 or len(embeddings) != 1:
            return Outcome(0, (Skip("*", "there is no head of its own for prompts, or nothing that reads tokens"),))
        (head,), (embedding,) = heads, embeddings
        if any(value.name == LAST_ROW for value in head.graph.inputs):
            return Outcome(0, (Skip(head.name, "computes one row already"),))
        _tell_row(embedding.graph, self.padding)
        _pick_row(head)
        bundle.wires.append(Wire(f"{embedding.name}.{LAST_ROW}", f"{head.name}.{LAST_ROW}"))
        return Outcome(1)


def _logits(graph: ir.Graph) -> ir.Value | None:
    return next((value for value in graph.outputs if value.name == _LOGITS), None)


def _tell_row(graph: ir.Graph, padding: int) -> None:
    """Add an output int32 `[batch]`: how many tokens are not padding, less one."""
    ids = next(value for value in graph.inputs if value.name == _IDS)
    dtype = (ids.dtype or ir.DataType.INT32).numpy()
    constants = {"padding": np.array(padding, dtype), "axis": np.array([1], np.int64), "one": np.array(1, np.int32)}
    held = {name: register(graph, ir.tensor(a, name=f"{LAST_ROW}.{name}")) for name, a in constants.items()}
    padded = make_node("Equal", [ids, held["padding"]], f"{LAST_ROW}.padded")
    real = make_node("Not", padded.outputs, f"{LAST_ROW}.real")
    ones = make_node("Cast", real.outputs, f"{LAST_ROW}.ones", to=ir.DataType.INT32)
    count = make_node("ReduceSum", [ones.outputs[0], held["axis"]], f"{LAST_ROW}.count", keepdims=0)
    row = make_node("Sub", [count.outputs[0], held["one"]], f"{LAST_ROW}.row")
    nodes = [padded, real, ones, count, row]
    output = row.outputs[0]
    output.name, output.type, output.shape = LAST_ROW, _INT32, ir.Shape([(ids.shape or ["batch"])[0]])
    graph.extend(nodes)
    graph.outputs.append(output)
    infer_shapes(graph)


def _pick_row(head: Component) -> None:
    """Gather one row of the hidden states before all that the head does, of their levels' values where they are
    rounded there.
    """
    graph = head.graph
    row = ir.Value(name=LAST_ROW, type=_INT32, shape=ir.Shape([1]))
    hidden = graph.inputs[0]
    graph.inputs.append(row)
    readers = [use.node for use in hidden.uses()]
    rounded = len(readers) == 1 and readers[0].op_type == "DequantizeLinear"
    value = readers[0].outputs[0] if rounded else hidden
    uses = list(value.uses())
    nodes = [make_node("Gather", [value, row], f"{head.name}.{LAST_ROW}", axis=1)]
    if rounded:  # on the same levels, so that compilers see an integer operator; the values are on them already
        levels = readers[0].inputs[1:]
        for op_type in ("QuantizeLinear", "DequantizeLinear"):
            picked = nodes[-1].outputs[0]
            nodes.append(make_node(op_type, [picked, *levels], f"{head.name}.{LAST_ROW}.{op_type}"))
    redirect(uses, nodes[-1].outputs[0])
    if rounded:
        graph.insert_after(readers[0], nodes)
    else:
        graph.insert_before(graph[0], nodes)
    _infer_anew(graph)


def _infer_anew(graph: ir.Graph) -> None:
    """Shapes of one row for everything behind."""
    logits = _logits(graph)
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    if logits is not None and logits.shape is not None:
        logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])
    infer_shapes(graph)
