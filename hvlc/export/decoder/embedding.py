"""The embedding of a decoder: tokens, and visual tokens in the place of their placeholders."""

import numpy as np
import onnx_ir as ir

from hvlc.export.decoder.shape import DecoderShape
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


def embedding(b: GraphBuilder, name: str, shape: DecoderShape, image_token_id: int) -> ir.Model:
    """Token embedding with the image placeholders replaced, in order, by visual tokens.

    Rows of tokens, visual ones excepted, are multiplied by the decoder's factor of tokens.

    Inputs `input_ids` int64 `[batch, sequence]`, `image_features` float `[visual_tokens, hidden + side channels]` (may
    be empty); output `inputs_embeds` float `[batch, sequence, hidden + side channels]`, where the side channels of a
    text's token are 0.

    Args:
        b: an empty graph.
        name: parameter of the table.
        shape: of the decoder.
        image_token_id: placeholder of one visual token.
    """
    ids = b.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    width, side = shape.hidden + shape.side_channels, shape.side_channels
    features = b.input("image_features", ir.DataType.FLOAT, ["visual_tokens", width])
    tokens = look_up(b, name, ids, shape.vocabulary, shape.hidden, shape.multipliers.tokens)
    if side:
        tokens = b.op("Pad", tokens, b.ints(0, 0, 0, 0, 0, side), name="side_channels")
    mask = b.op("Equal", ids, b.constant(np.array(image_token_id, np.int64)))
    positions = b.op("Transpose", b.op("NonZero", mask), perm=[1, 0])
    # a placeholder in an answer is a token as any other, as in transformers; other numbers than features are an error
    end = b.op("Mul", b.op("Shape", features, start=0, end=1), b.ints(2**32))
    positions = b.op("Slice", positions, b.ints(0), end, b.ints(0))
    merged = b.op("ScatterND", tokens, positions, features, name="merge_image_features")
    b.output(merged, "inputs_embeds", ir.DataType.FLOAT, ["batch", "sequence", width])
    return b.model()
