"""Rotary tables of a decoder: one pair for all layers, or one for each kind of layers."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from hvlc.export.decoder.shape import DecoderShape
from hvlc.graphs.builder import GraphBuilder

#: Cosines and sines, float32 `[context, rotated / 2]` each, for the first `rotated` channels of a head, by the kind of
#: layers that read them; "": all layers do.
RotaryTables = Mapping[str, tuple[np.ndarray, np.ndarray]]

_NAMES = ("cos_cache", "sin_cache")


def layer_tables(b: GraphBuilder, tables: RotaryTables, shape: DecoderShape) -> list[tuple[ir.Value, ...]]:
    """Cosines and sines of each layer as constants; () where a layer does not rotate."""
    kinds = shape.rotary_kinds or ("",) * shape.layers
    rotated = {kind for kind, rotates in zip(kinds, shape.rotary, strict=False) if rotates}
    made = {kind: _constants(b, kind, tables[kind]) for kind in tables if kind in rotated}
    return [made[kind] if rotates else () for kind, rotates in zip(kinds, shape.rotary, strict=False)]


def _constants(b: GraphBuilder, kind: str, tables: tuple[np.ndarray, np.ndarray]) -> tuple[ir.Value, ...]:
    prefix = f"rotary.{kind}." if kind else "rotary."
    return tuple(b.constant(rows, f"{prefix}{name}") for name, rows in zip(_NAMES, tables, strict=True))
