"""Find the producer of a linear group's input channels, into which factors or a rotation can be folded.

- a norm: its weight and bias;
- the value projection before an attention, whose output is a mixture of values, channel by channel, by weights that do
  not depend on the values;
- a linear factor of a gated product, or one that a convolution makes channel by channel: its kernel.

A factor does not pass through an activation function, so a group that follows one is declined.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.linears import LinearGroup, cuts_positions, operand, projection_behind, read_by, values_of

#: Norms over the last axis: where their weight is, and their bias where they have one.
_NORMS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "RMSNormalization"): (1,),
    ("", "LayerNormalization"): (1, 2),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): (2,),
    (MICROSOFT, "SkipLayerNormalization"): (2, 3),
}
#: Attentions that keep the heads side by side in the last axis: their attributes for query and key/value heads.
_ATTENTIONS = {
    ("", "Attention"): ("q_num_heads", "kv_num_heads"),
    (MICROSOFT, "GroupQueryAttention"): ("num_heads", "kv_num_heads"),
    (MICROSOFT, "MultiHeadAttention"): ("num_heads", "num_heads"),
}
_VALUE, _PRESENT_VALUE = 2, 2
#: Ranks of constants by the axis along which they are divided: vectors and kernels of channels, matrices.
_RANKS = {0: (1, 3), 1: (2,)}
#: The first is always of each channel alone.
_CONVOLUTIONS = ((MICROSOFT, "CausalConvWithState"), ("", "Conv"))
_KERNEL, _BIAS = 1, 2
_POSITIONS_LAST = (0, 2, 1)  # axes of float `[batch, sequence, channels]` before and after a convolution
_PAST_VALUE = {"Attention": 5, "GroupQueryAttention": 4, "MultiHeadAttention": 7}


@dataclass(frozen=True)
class Producer:
    """Producer of a value's channels that can scale each of them.

    Attributes:
        places: constants and the axis along which they are divided.
        channels: int64 `[in]`: the producer's channel that each channel of the value is made of; channels that share
            one have to share a factor.
        head_size: channels of a head, where the producer is the value projection of an attention.
    """

    places: tuple[tuple[ir.Value, int], ...]
    channels: np.ndarray
    head_size: int | None = None


def producer_of(group: LinearGroup) -> Producer | str:
    """Find what takes the factors of a group's input, or say why nothing does."""
    if not read_by(group.input, group.nodes):
        return "its input is also read by others"
    if any(len(operand(node, 1).uses()) != 1 for node in group.nodes):
        return "a weight of it is shared with another node"
    value = _before_slices(group.input)
    node = value.producer()
    if node is None:
        return "its input is an input of the graph"
    kind = (node.domain, node.op_type)
    found: Producer | str
    if value is not group.input and kind not in _ATTENTIONS:  # only their outputs are known to have three axes
        found = "its input is a slice"
    elif kind in _NORMS:
        found = _norm(node, value)
    elif kind in _ATTENTIONS:
        found = _attention(node, value)
    elif kind == ("", "Mul"):
        found = _gated(node)
    else:
        found = f"{node.op_type} takes no factors"
    return found if isinstance(found, str) else _own_weights(found, group)


def attends(group: LinearGroup) -> bool:
    """Whether a group reads the output of an attention."""
    node = _before_slices(group.input).producer()
    return node is not None and (node.domain, node.op_type) in _ATTENTIONS


def _own_weights(producer: Producer, group: LinearGroup) -> Producer | str:
    """The producer, if it alone has its constants, and they have one element for each channel."""
    fits = producer.channels.size == values_of(operand(group.nodes[0], 1)).shape[0]
    for constant, axis in producer.places:
        shape = values_of(constant).shape
        if len(constant.uses()) != 1:
            return "what makes its input shares a weight with another node"
        fits &= len(shape) in _RANKS[axis] and shape[axis] == producer.channels.max() + 1
    return producer if fits else "what makes its input has a weight of another shape"


def _before_slices(value: ir.Value) -> ir.Value:
    """The value of which some positions were cut out."""
    while (node := value.producer()) is not None and cuts_positions(node) and read_by(operand(node, 0), [node]):
        value = operand(node, 0)
    return value


def _norm(node: ir.Node, value: ir.Value) -> Producer | str:
    if value is not node.outputs[0]:
        return "its input is a residual sum"
    constants = [v for v in (_optional(node, position) for position in _NORMS[node.domain, node.op_type]) if v]
    if node.attributes.get_int("axis", -1) != -1:
        return "the norm before it spans more than the last axis"
    if any(constant.const_value is None for constant in constants):
        return "the norm before it has a computed weight"
    size = int(values_of(constants[0]).shape[-1])
    return Producer(tuple((constant, 0) for constant in constants), np.arange(size))


def _attention(node: ir.Node, value: ir.Value) -> Producer | str:
    heads, kv_heads = (node.attributes.get_int(name, 0) for name in _ATTENTIONS[node.domain, node.op_type])
    values, past = _optional(node, _VALUE), _optional(node, _PAST_VALUE[node.op_type])
    if value is not node.outputs[0] or values is None or not heads or not kv_heads:
        return "the attention before it has packed or separate heads"
    if past is not None and not past.is_graph_input():
        return "the attention before it has past values that the graph makes"
    if len(node.outputs) > _PRESENT_VALUE and node.outputs[_PRESENT_VALUE].uses():
        return "the values of the attention before it are read again"
    found = _through_projection(values, node)
    if isinstance(found, str):
        return found
    size = len(found.channels) // kv_heads
    shared = np.arange(heads) // (heads // kv_heads)
    return replace(found, channels=(shared[:, None] * size + np.arange(size)).reshape(-1), head_size=size)


def _gated(node: ir.Node) -> Producer | str:
    for value in reversed(node.inputs):
        found = _convolution(value, node) or _through_projection(value, node) if value is not None else ""
        if isinstance(found, Producer):
            return found
    return "no factor of the product before it is linear"


def _convolution(value: ir.Value, reader: ir.Node) -> Producer | None:
    """The kernel and bias of a depthwise convolution that makes a value, if nothing else reads that."""
    turned = value.producer()
    if turned is None or turned.op_type != "Transpose" or not read_by(value, [reader]) or len(value.uses()) != 1:
        return None
    source = operand(turned, 0)
    node = source.producer()
    kind = (node.domain, node.op_type) if node is not None else None
    if node is None or kind not in _CONVOLUTIONS or source is not node.outputs[0] or len(source.uses()) != 1:
        return None
    if tuple(turned.attributes.get_ints("perm", ())) != _POSITIONS_LAST:
        return None
    constants = (operand(node, _KERNEL), _optional(node, _BIAS))
    places = tuple((constant, 0) for constant in constants if constant is not None)
    activated = node.attributes.get_string("activation", "none") != "none"
    if activated or any(constant.const_value is None for constant, _ in places):
        return None
    channels = int(values_of(places[0][0]).shape[0])
    is_depthwise = kind == _CONVOLUTIONS[0] or node.attributes.get_int("group", 1) == channels
    return Producer(places, np.arange(channels)) if is_depthwise else None


def _through_projection(value: ir.Value, reader: ir.Node) -> Producer | str:
    """Output features of the projection that makes a value."""
    projection = projection_behind(value)
    if projection is None or not read_by(value, [reader]) or len(value.uses()) != 1:
        return "what makes its input is not a linear of its own"
    biases = () if projection.bias is None else ((projection.bias, 0),)
    size = int(values_of(projection.weight).shape[1])
    return Producer(((projection.weight, 1), *biases), np.arange(size))


def _optional(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None
