"""Short convolution of a decoder's layer (LFM2): gates around a causal depthwise convolution.

What the kernel reads of the positions before is a state of fixed size, which goes from run to run as the KV cache of an
attention does. It holds the last positions only, so a sequence cannot be cut back to an earlier length.
"""

import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.export.decoder.parts import last_position, linear
from hvlc.export.decoder.shape import DecoderShape, ShortConvolution
from hvlc.export.settings import refuse_surplus
from hvlc.graphs.builder import MICROSOFT, GraphBuilder

_KERNEL = "conv"  # its name inside the layer's module


def state_shape(shape: DecoderShape) -> list[str | int]:
    """Dimensions of the state of one layer: the gated inputs of the positions that the next one still reads."""
    return ["batch", shape.hidden, _convolution(shape).length - 1]


def short_convolution(
    b: GraphBuilder, x: ir.Value, path: str, shape: DecoderShape, index: int, past: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """`out(c * conv(b * x))`, where one projection makes the gates b, c and the values x of each position.

    Args:
        b: the graph.
        x: float `[batch, sequence, hidden]`.
        path: dotted name of the module.
        shape: of the decoder.
        index: of the layer; the last one goes on with the last position only.
        past: state of the layer, float `[batch, hidden, length - 1]`.

    Returns:
        float `[batch, sequence, hidden]` (of the last layer `[batch, 1, hidden]`), and the state after it.
    """
    projected = linear(b, x, f"{path}.in_proj", shape.hidden, 3 * shape.hidden, shape)
    gate, last_gate, values = b.ops("Split", [projected], 3, name=f"{path}.split", axis=-1, num_outputs=3)
    gated = b.op("Transpose", b.op("Mul", gate, values), perm=[0, 2, 1])
    mixed, state = b.ops(
        "CausalConvWithState",
        [gated, *_kernel(b, f"{path}.{_KERNEL}", shape), past],
        2,
        domain=MICROSOFT,
        name=f"{path}.{_KERNEL}",
        activation="none",
    )
    y = b.op("Mul", last_gate, b.op("Transpose", mixed, perm=[0, 2, 1]))
    if index == shape.layers - 1:
        y = last_position(b, y, path)
    return linear(b, y, f"{path}.out_proj", shape.hidden, shape.hidden, shape), state


def _kernel(b: GraphBuilder, path: str, shape: DecoderShape) -> tuple[ir.Value, ir.Value | None]:
    """Weight float `[hidden, 1, length]`, and bias float `[hidden]` exactly where the configuration has one."""
    weight = b.weight(f"{path}.weight", (shape.hidden, 1, _convolution(shape).length))
    if _KERNEL in shape.biases:
        return weight, b.weight(f"{path}.bias", (shape.hidden,))
    refuse_surplus(b, f"{path}.bias")
    return weight, None


def _convolution(shape: DecoderShape) -> ShortConvolution:
    """The dimensions of the decoder's convolutions.

    Raises:
        HvlcError: it has none (a bug of the caller).
    """
    if shape.convolution is None:
        raise HvlcError("export.decoder", "internal error: the decoder has no convolution", "please report it")
    return shape.convolution
