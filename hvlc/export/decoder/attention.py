"""Grouped-query attention of a decoder's layer."""

from collections.abc import Sequence

import onnx_ir as ir

from hvlc.export.decoder.parts import head_norm, last_position, linear
from hvlc.export.decoder.rotation import Turns
from hvlc.export.decoder.shape import DecoderShape
from hvlc.graphs.builder import MICROSOFT, GraphBuilder

_TABLES, _BIAS = 7, 10  # places among the inputs of GroupQueryAttention


def attention(
    b: GraphBuilder,
    x: ir.Value,
    path: str,
    shape: DecoderShape,
    index: int,
    past: Sequence[ir.Value],
    lengths: tuple[ir.Value, ir.Value],
    turns: Turns,
    mask: ir.Value | None,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Grouped-query attention of layer `index`; returns the projected output and the present key and value.

    The last layer goes on with the last position only: its keys and values see the whole prompt, and nothing reads
    the other positions' outputs (measured: docs/speed.md). A mask float `[batch, 1, sequence, total]` is added to the
    scores, and is all that hides positions; None: what follows, and what lies before the window, is hidden.
    """
    query_width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    q = linear(b, x, f"{path}.q_proj", shape.hidden, query_width, shape)
    k = linear(b, x, f"{path}.k_proj", shape.hidden, kv_width, shape)
    v = linear(b, x, f"{path}.v_proj", shape.hidden, kv_width, shape)
    q = head_norm(b, q, f"{path}.q_norm", shape.heads, shape)
    k = head_norm(b, k, f"{path}.k_norm", shape.kv_heads, shape)
    rotates, window = shape.rotary[index], shape.windows[index]
    if rotates:
        q = turns.turned(b, q, shape.heads, f"{path}.q_rotary")
        k = turns.turned(b, k, shape.kv_heads, f"{path}.k_rotary")
    tables = turns.tables if rotates else ()
    # onnxruntime 1.31 counts the token itself into the window, as transformers does (tests/export/test_families.py).
    limited = {} if window is None else {"local_window_size": window}
    behind = (None,) * (_BIAS - _TABLES - len(tables))
    masked = () if mask is None else (*behind, mask)
    limited = limited if mask is None else {"causal": 0}
    attended, key, value = b.ops(
        "GroupQueryAttention",
        [q, k, v, *past, *lengths, *tables, *masked],
        3,
        domain=MICROSOFT,
        name=path,
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        scale=shape.head_size**-0.5 if shape.multipliers.attention is None else shape.multipliers.attention,
        do_rotary=int(bool(tables)),
        rotary_interleaved=0,
        **limited,
    )
    if index == shape.layers - 1:
        attended = last_position(b, attended, path)
    return linear(b, attended, f"{path}.o_proj", query_width, shape.hidden, shape), key, value
