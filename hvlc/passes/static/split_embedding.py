"""Split the merge of visual tokens off the token embedding: the host merges them.

In a `decoder.pipeline` onnxruntime-genai itself copies the rows of `image_features` over the image placeholders of what
the first stage gives (src/models/qwen_vl_model.cpp), so that stage must not merge them. It hands tokens over as int32.
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hvlc.graphs.bundle import Bundle, Component, Role, Skip
from hvlc.passes.base import BundlePass, Outcome
from hvlc.passes.traits import Trait

_IDS, _FEATURES = "input_ids", "image_features"


@dataclass(frozen=True)
class SplitEmbedding(BundlePass):
    """Remove the merge of visual tokens from the embedding, and narrow its token ids to int32."""

    requires = frozenset({Trait.DECODER_PARTS})
    promises = frozenset({Trait.PLAIN_LOOKUP})

    def transform(self, bundle: Bundle) -> Outcome:
        """Change every embedding."""
        embeddings = bundle.with_role(Role.EMBEDDING)
        if not embeddings:
            return Outcome(0, (Skip("*", "the tokens are looked up elsewhere"),))
        changed = 0
        for component in embeddings:
            changed += _without_merge(component)
            changed += _narrow_ids(component.graph)
            ends = {f"{component.name}.{value.name}" for value in component.graph.inputs}
            lost = f"{component.name}."
            bundle.wires = [w for w in bundle.wires if not w.target.startswith(lost) or w.target in ends]
        return Outcome(changed)


def _without_merge(component: Component) -> int:
    """Hand out the looked-up tokens themselves."""
    graph = component.graph
    features = [value for value in graph.inputs if value.name == _FEATURES]
    merged = graph.outputs[0]
    merge = merged.producer()
    if not features or merge is None or merge.op_type != "ScatterND":
        return 0
    tokens = merge.inputs[0]
    if tokens is None:
        return 0
    graph.outputs[0] = tokens
    merge.replace_input_with(0, None)
    tokens.name, merged.name = merged.name, tokens.name
    tokens.type, tokens.shape = merged.type, merged.shape
    RemoveUnusedNodesPass()(component.model)
    for value in features:
        graph.inputs.remove(value)
    return 1


def _narrow_ids(graph: ir.Graph) -> int:
    """Make int64 token ids int32: every vocabulary fits."""
    found = [value for value in graph.inputs if value.name == _IDS and value.dtype == ir.DataType.INT64]
    for value in found:
        value.type = ir.TensorType(ir.DataType.INT32)
    return len(found)
