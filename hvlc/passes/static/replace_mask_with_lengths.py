"""Replace the attention mask by sequence lengths that the host computes.

com.microsoft.GroupQueryAttention takes two numbers: the position of the last token (`seqlens_k`) and the longest
sequence (`total_sequence_length`). Where shapes are fixed, a mask that grows cannot be an input, and onnxruntime-genai
hands both numbers to the stages of a `decoder.pipeline` (src/models/io/input_ids.cpp, WindowedInputIDs).
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hvlc.graphs.builder import LAST_INDEX, MICROSOFT, MOST_TOKENS
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait

_MASK = "attention_mask"
_LENGTHS = {5: (LAST_INDEX, (1, 1)), 6: (MOST_TOKENS, (1,))}  # by input of GroupQueryAttention


@dataclass(frozen=True)
class ReplaceMaskWithLengths(ComponentPass):
    """Replace the lengths that are computed from the attention mask by two inputs, and remove the mask."""

    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.GROUP_ATTENTION, Trait.WHOLE_DECODER})
    promises = frozenset({Trait.HOST_LENGTHS})

    def transform(self, component: Component) -> Outcome:
        """Wire the two inputs to every attention."""
        graph = component.graph
        masks = [value for value in graph.inputs if value.name == _MASK]
        if not masks:
            return Outcome(0, (Skip("*", f"has no {_MASK}"),))
        if any(value.name == LAST_INDEX for value in graph.inputs):
            return Outcome(0, (Skip(_MASK, "its lengths are inputs already"),))
        attentions = [n for n in graph if n.op_type == "GroupQueryAttention" and n.domain == MICROSOFT]
        for position, (name, dims) in _LENGTHS.items():
            length = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(dims))
            graph.inputs.append(length)
            for node in attentions:
                node.replace_input_with(position, length)
        RemoveUnusedNodesPass()(component.model)
        for mask in masks:
            if mask.uses():
                return Outcome(len(attentions), (Skip(_MASK, "other nodes read it too"),))
            graph.inputs.remove(mask)
        return Outcome(len(attentions))
