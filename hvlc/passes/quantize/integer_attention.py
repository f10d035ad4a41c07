"""Quantize both products of a decomposed attention whose KV cache is uint8.

Compilers of NPUs read `DequantizeLinear -> MatMul -> QuantizeLinear` as one integer product, and want 16 bits on the
left and 8 on the right of a product of two activations: Qualcomm's narrows 16 bits on the right by itself, with a range
of its own choice (rule `narrowed-operand` of its targets, N2 in tests/qnn/graphs.py). A cache of uint8 is that
right side (`hvlc.passes.legalize.decompose_group_query_attention`). What is left to do is to round queries, scores,
weights and means to uint16.

No range of these is calibrated. All follow from levels that are there already, and nothing can be cut off: queries are
levels of a known range, turned and multiplied by constants; a score is at most the sum of what its channels can reach;
weights lie between 0 and 1; and a mean of values lies where values lie. The bound of the scores is 10 to 15 times what
hypervl-nano's reach, which 65,536 levels afford: its steps of 0.004 to 0.009 are those of half precision around 8.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import redirect, register
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import Computed, Constant, Expression, LazyTensor, expression_of

_MOVES = ("Reshape", "Transpose")
_LAST, _MIDDLE = 65535, 32768  # levels
_FINER = 257  # steps of 16 bits in one of 8, over the same range: 65535 / 255
_BYTE, _WORD = np.dtype(np.uint8), np.dtype(np.uint16)


@dataclass(frozen=True)
class IntegerAttention(ComponentPass):
    """Quantize inputs and outputs of both products of an attention with a uint8 cache and uint16 queries."""

    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.DECOMPOSED_ATTENTION})

    def transform(self, component: Component) -> Outcome:
        """Round every such attention."""
        changed, skipped = 0, []
        for node in [n for n in component.graph if n.op_type == "Softmax" and not n.domain]:
            found = _around(node)
            if isinstance(found, str):
                skipped.append(Skip(str(node.name), found))
            else:
                _round(component.graph, found)
                changed += 1
        return Outcome(changed, tuple(skipped))


@dataclass(frozen=True)
class _Levels:
    """Integers of one scale that a value is dequantized from.

    Attributes:
        scale: float32 scalar.
        zero: integer scalar.
        turned: whether they are rotated after, so that a channel may hold what its pair held too.
    """

    scale: Expression
    zero: Expression
    turned: bool = False


@dataclass(frozen=True)
class _Attention:
    """The operators of an attention, and what bounds their values.

    Attributes:
        scaled: multiplies queries by `factors`.
        scores: queries by keys.
        softmax: of the scores.
        attended: weights by values.
        factors: float32, one for each channel of each head of the cache: `[1, kv_heads, 1, width]`.
        queries: before the factors.
        keys: of the cache.
        values: of the cache.
    """

    scaled: ir.Node
    scores: ir.Node
    softmax: ir.Node
    attended: ir.Node
    factors: Expression
    queries: _Levels
    keys: _Levels
    values: _Levels


def _around(softmax: ir.Node) -> _Attention | str:
    """The attention that a Softmax belongs to, or why its products stay as they are."""
    readers = [use.node for use in softmax.outputs[0].uses()]
    masked = _made(softmax.inputs[0], "Where")
    scores = _made(masked.inputs[1] if masked else None, "MatMul")
    scaled = _made(scores.inputs[0] if scores else None, "Mul")
    if scores is None or scaled is None or [node.op_type for node in readers] != ["MatMul"]:
        return "is not a Softmax between the products of a written-out attention"
    keys, values = (_levels(node.inputs[1], _BYTE) for node in (scores, readers[0]))
    if keys is None or values is None:
        return "its cache is not uint8"
    queries, factors = _levels(scaled.inputs[0], _WORD), _constant(scaled, 1)
    if queries is None or factors is None:
        return "its queries are not uint16"
    return _Attention(scaled, scores, softmax, readers[0], factors, queries, keys, values)


def _made(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _levels(value: ir.Value | None, dtype: np.dtype) -> _Levels | None:
    """Quantization that a value is dequantized from, through what moves and turns it; None: none of this type."""
    turned = False
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            scale, zero = (_constant(node, position) for position in (1, 2))
            known = scale is not None and zero is not None and zero.dtype == dtype and not zero.shape
            return _Levels(scale, zero, turned) if known and scale is not None and zero is not None else None
        if node.op_type not in (*_MOVES, "RotaryEmbedding"):
            return None
        turned = turned or node.op_type == "RotaryEmbedding"
        value = node.inputs[0]
    return None


def _constant(node: ir.Node, position: int) -> Expression | None:
    value = node.inputs[position] if position < len(node.inputs) else None
    return expression_of(value.const_value) if value is not None and value.const_value is not None else None


def _round(graph: ir.Graph, found: _Attention) -> None:
    """Put a pair of roundings behind each of the four values."""
    query_steps, score_steps = (_Steps(found.queries.turned, sums=sums) for sums in (False, True))
    queries = (found.factors, found.queries.scale, found.queries.zero)
    middle = Constant(np.array(_MIDDLE, _WORD))
    _insert(graph, found.scaled, _scalar(query_steps, np.float32, *queries), middle)
    scores = _scalar(score_steps, np.float32, *queries, found.keys.scale, found.keys.zero)
    _insert(graph, found.scores, scores, middle)
    _insert(graph, found.softmax, Constant(np.array(1 / (_LAST + 1), np.float32)), Constant(np.array(0, _WORD)))
    means = _scalar(_finer_scale, np.float32, found.values.scale), _scalar(_finer_zero, np.uint16, found.values.zero)
    _insert(graph, found.attended, *means)


def _scalar(function: Callable[..., np.ndarray], dtype: type[np.generic], *of: Expression) -> Expression:
    return Computed(function, of, (), np.dtype(dtype))


@dataclass(frozen=True)
class _Steps:
    """The step of 16-bit levels around the middle that reach whatever queries, or scores, can be.

    Attributes:
        turned: whether queries are rotated.
        sums: whether of scores, the sums over the channels of a head, instead of queries.
    """

    turned: bool
    sums: bool

    def __call__(self, factors: np.ndarray, scale: np.ndarray, zero: np.ndarray, *keys: np.ndarray) -> np.ndarray:
        """The step, float32 scalar; `keys` are scale and zero point of the cache, where scores are meant."""
        reach = np.abs(factors.astype(np.float64)) * _largest(_LAST, scale, zero) * (2**0.5 if self.turned else 1)
        largest = (reach.sum(-1) * _largest(_LAST // _FINER, *keys)).max() if self.sums else reach.max()
        return np.array(largest / (_LAST - _MIDDLE), np.float32)


def _largest(last: int, scale: np.ndarray, zero: np.ndarray) -> float:
    """The largest magnitude of levels from 0 to `last`."""
    return float(scale) * max(int(zero), last - int(zero))


def _finer_scale(scale: np.ndarray) -> np.ndarray:
    return np.array(float(scale) / _FINER, np.float32)


def _finer_zero(zero: np.ndarray) -> np.ndarray:
    return np.array(int(zero) * _FINER, _WORD)


def _insert(graph: ir.Graph, node: ir.Node, scale: Expression, zero: Expression) -> None:
    """Round what a node makes, for all that read it."""
    value, name = node.outputs[0], str(node.name)
    constants = [
        register(graph, LazyTensor(f"{name}.{what}", expression))
        for what, expression in (("scale", scale), ("zero_point", zero))
    ]
    uses = list(value.uses())
    quantize = ir.node("QuantizeLinear", [value, *constants], name=f"{name}.quantize")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *constants], name=f"{name}.dequantize")
    for made, kind, dtype in ((quantize, "quantized", ir.DataType.UINT16), (dequantize, "dequantized", value.dtype)):
        output = made.outputs[0]
        output.name, output.shape = f"{name}.{kind}", value.shape
        output.type = ir.TensorType(dtype or ir.DataType.FLOAT)
    redirect(uses, dequantize.outputs[0])
    graph.insert_after(node, [quantize, dequantize])
