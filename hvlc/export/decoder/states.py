"""Inputs and outputs of a decoder that carry what its layers keep of earlier positions."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from hvlc.export.decoder.shape import DecoderShape
from hvlc.export.decoder.short_convolution import state_shape
from hvlc.graphs.builder import GraphBuilder
from hvlc.graphs.states import CONVOLUTION, PAST, PRESENT


def past_states(b: GraphBuilder, shape: DecoderShape) -> list[list[ir.Value]]:
    """For each layer, the inputs that hand it what it kept."""
    return [
        [b.input(f"{PAST}{i}.{part}", ir.DataType.FLOAT, d) for part, d in _states(shape, i, "past").items()]
        for i in range(shape.layers)
    ]


def present_states(b: GraphBuilder, shape: DecoderShape, present: Sequence[Sequence[ir.Value]]) -> None:
    """Give what each layer keeps, in the order of its inputs, to the run that follows."""
    for index, kept in enumerate(present):
        for (part, dims), value in zip(_states(shape, index, "total").items(), kept, strict=True):
            b.output(value, f"{PRESENT}{index}.{part}", ir.DataType.FLOAT, dims)


def _states(shape: DecoderShape, index: int, positions: str) -> Mapping[str, list[str | int]]:
    """Dimensions of what a layer keeps, by the last part of its name.

    Args:
        shape: of the decoder.
        index: of the layer.
        positions: name of the dimension of the positions that a KV cache holds.
    """
    if shape.convolves(index):
        return {CONVOLUTION: state_shape(shape)}
    return {part: ["batch", shape.kv_heads, positions, shape.head_size] for part in ("key", "value")}
