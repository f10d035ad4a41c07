"""The embedding of a decoder: tokens, and visual tokens in the place of their placeholders."""

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import EMBEDDED_TOKENS, GraphBuilder


def look_up(b: GraphBuilder, table: str, ids: ir.Value, vocabulary: int, hidden: int, factor: float = 1) -> ir.Value:
    """Rows float `[batch, sequence, hidden]` of the table at `table` for ids int64 `[batch, sequence]`.

    They are multiplied by `factor`; the table itself is not, because a head may be tied to it.
    """
    weight, name = b.weight(table, (vocabulary, hidden)), EMBEDDED_TOKENS
    if factor == 1:
        return b.op("Gather", weight, ids, axis=0, name=name)
    rows = b.op("Gather", weight, ids, axis=0, name=f"{name}.rows")
    return b.op("Mul", rows, b.constant(np.array(factor, np.float32)), name=name)


def embedding(
    b: GraphBuilder, name: str, vocabulary: int, hidden: int, image_token_id: int, factor: float = 1
) -> ir.Model:
    """Token embedding with the image placeholders replaced, in order, by visual tokens.

    Rows of tokens, visual ones excepted, are multiplied by `factor`.

    Inputs `input_ids` int64 `[batch, sequence]`, `image_features` float `[visual_tokens, hidden]` (may be
    empty); output `inputs_embeds` float `[batch, sequence, hidden]`.
    """
    ids = b.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    features = b.input("image_features", ir.DataType.FLOAT, ["visual_tokens", hidden])
    tokens = look_up(b, name, ids, vocabulary, hidden, factor)
    mask = b.op("Equal", ids, b.constant(np.array(image_token_id, np.int64)))
    positions = b.op("Transpose", b.op("NonZero", mask), perm=[1, 0])
    merged = b.op("ScatterND", tokens, positions, features, name="merge_image_features")
    b.output(merged, "inputs_embeds", ir.DataType.FLOAT, ["batch", "sequence", hidden])
    return b.model()
