"""Parts that layers of a decoder are made of: projections, norms, gated MLP."""

import numpy as np
import onnx_ir as ir

from hvlc.export.activations import activated
from hvlc.export.decoder.shape import DecoderShape, FusedRows
from hvlc.export.settings import refuse_surplus
from hvlc.graphs.builder import LAST_POSITION, GraphBuilder
from hvlc.weights.lazy import Computed, Constant, Expression

_ROTATED = ("q_proj", "k_proj")
_ADDED = ("o_proj", "down_proj")  # what is added to the residual stream


def rms_norm(b: GraphBuilder, x: ir.Value, path: str, width: int, shape: DecoderShape) -> ir.Value:
    """The RMS norm over the last axis of `width` channels, with the gain stored at `path`."""
    weight = b.initializer(f"{path}.weight", gain(b, path, width, shape))
    return b.op("RMSNormalization", x, weight, axis=-1, epsilon=shape.epsilon, name=path)


def gain(b: GraphBuilder, path: str, width: int, shape: DecoderShape) -> Expression:
    """The gain float `[width]` of the norm at `path`, as the graph computes with it."""
    stored = b.parameter(f"{path}.weight", (width,))
    return one_more(stored) if shape.offset_gains else stored


def one_more(offsets: Expression) -> Expression:
    """Every value of a float32 vector and 1: gains that are stored as their offset from it (Gemma)."""
    return Computed(_one_more, (offsets,), offsets.shape, offsets.dtype)


def _one_more(offsets: np.ndarray) -> np.ndarray:
    return offsets + np.float32(1)


def linear(b: GraphBuilder, x: ir.Value, path: str, into: int, out: int, shape: DecoderShape) -> ir.Value:
    """The projection at `path`, with a bias exactly where the configuration has one."""
    weight = b.initializer(f"{path}.weight", _values(b, path, "weight", (out, into), shape).transpose())
    y = b.op("MatMul", x, weight, name=path)
    if path.rpartition(".")[2] not in shape.biases:
        refuse_surplus(b, f"{_stored_at(path, shape)}.bias")
        return y
    bias = b.initializer(f"{path}.bias", _values(b, path, "bias", (out,), shape))  # a missing one is a problem
    return b.op("Add", y, bias, name=f"{path}.bias_add")


def _stored_at(path: str, shape: DecoderShape) -> str:
    """The dotted name under which the projection at `path` is stored."""
    module, _, name = path.rpartition(".")
    return f"{module}.{shape.fused[name].name}" if name in shape.fused else path


def _values(b: GraphBuilder, path: str, leaf: str, dims: tuple[int, ...], shape: DecoderShape) -> Expression:
    """Weight float `[out, in]` or bias float `[out]` of the projection at `path`, as the graph computes with it."""
    name = path.rpartition(".")[2]
    whole = shape.fused.get(name, FusedRows(name, 0, dims[0]))
    stored = b.parameter(f"{_stored_at(path, shape)}.{leaf}", (whole.total, *dims[1:]))
    found = stored.narrow(0, whole.start, whole.start + dims[0])
    if shape.neighbours and name in _ROTATED:  # the score of a query and a key is a sum: its order is free
        pairs = found.reshape(dims[0] // shape.head_size, shape.head_size // 2, 2, *dims[1:])
        found = pairs.transpose(0, 2, 1, *range(3, 2 + len(dims))).reshape(*dims)
    if shape.multipliers.residual != 1 and name in _ADDED:
        found = scaled(found, shape.multipliers.residual)
    return found


def scaled(values: Expression, factor: float) -> Expression:
    """Everything times one factor."""
    return values.scale(Constant(np.full(values.shape[0], factor, np.float32)), 0)


def head_norm(b: GraphBuilder, x: ir.Value, path: str, heads: int, shape: DecoderShape) -> ir.Value:
    """Qwen3's per-head query/key norm on float `[batch, sequence, heads * head_size]`, if the decoder has one."""
    if not shape.head_norms:
        refuse_surplus(b, f"{path}.weight")
        return x
    split = b.op("Reshape", x, b.ints(0, 0, heads, shape.head_size))
    normed = rms_norm(b, split, path, shape.head_size, shape)
    return b.op("Reshape", normed, b.ints(0, 0, heads * shape.head_size))


def last_position(b: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """float `[batch, sequence, width]` to float `[batch, 1, width]`; `KeepAllLogits` knows the node by its name."""
    end = np.iinfo(np.int64).max
    return b.op("Slice", x, b.ints(-1), b.ints(end), b.ints(1), name=f"{path}.{LAST_POSITION}")


def mlp(b: GraphBuilder, x: ir.Value, path: str, shape: DecoderShape) -> ir.Value:
    """`down(activation(gate(x)) * up(x))`."""
    gate = linear(b, x, f"{path}.gate_proj", shape.hidden, shape.intermediate, shape)
    up = linear(b, x, f"{path}.up_proj", shape.hidden, shape.intermediate, shape)
    gated = b.op("Mul", activated(b, gate, shape.activation), up)
    return linear(b, gated, f"{path}.down_proj", shape.intermediate, shape.hidden, shape)
