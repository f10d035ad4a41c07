"""Decompose GroupQueryAttention over a KV cache of fixed length into standard operators.

com.microsoft.GroupQueryAttention rotates, writes the cache and attends in one node. Some compilers of NPUs have no such
node, and Qualcomm's has it for a float cache without window alone (onnxruntime-qnn 2.7; `k_scale`, `v_scale` and
`local_window_size` are refused).
Written out, the same becomes RotaryEmbedding, ScatterElements into the rows of the new positions, MatMul, a mask that
follows from the positions, Softmax and MatMul. Query heads that share keys are rows of one product, so no key is
repeated. What depends on positions alone is computed once for all layers.

An int8 cache becomes uint8 around 128: the product of two activations wants its second operand in uint8, with one scale
for a whole tensor. One scale for each channel is kept all the same: keys are divided by the magnitudes of their
channels before they are rounded, and queries are multiplied by these; values are divided, and what attention makes of
them is multiplied. So the levels have the scale 1/127 everywhere and are those of `QuantizeKVCache` but for the zero
point. Entries are rounded once, when they are written: writing moves levels (ScatterElements stands between
DequantizeLinear and QuantizeLinear of one scale, which is how compilers know integers that are moved).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.errors import HvlcError, TargetError, raise_all
from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import drop_unread, register, register_dims
from hvlc.passes.base import ComponentPass, Outcome, TakesOperator
from hvlc.passes.traits import Trait
from hvlc.targets import SupportAnswer
from hvlc.weights.lazy import Computed, LazyTensor, expression_of

_NEEDED = (
    *("Add", "Expand", "Gather", "LessOrEqual", "MatMul", "Mul", "Reshape", "RotaryEmbedding"),
    *("ScatterElements", "Softmax", "Transpose", "Where"),
)
_NEEDED_BY_WINDOWS = ("And", "Greater")
_FLOAT, _BOOL, _INT32, _UINT8 = ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.UINT8
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_NEEDED_INPUTS = {0: "query", 1: "key", 2: "value", 3: "cache of keys", 4: "cache of values", 5: "position"}
_COSINES, _SINES, _SCALES = 7, 8, (12, 13)
_OTHER_INPUTS = {9: "positions of its own", 10: "a bias of its scores", 11: "head sinks"}
_WINDOW, _NO_WINDOW = "local_window_size", -1
_OTHER_ATTRIBUTES = ("softcap", "smooth_softmax", "qk_output")
_HEADS_FIRST, _KEYS_LAST = [0, 2, 1, 3], [0, 1, 3, 2]
_HIDDEN = float(np.finfo(np.float16).min)  # what a score becomes that is not to be seen; its weight is 0 exactly
_BITS, _LAST_LEVEL, _ZERO_LEVEL = 8, 127, 128
_LEAST = float(np.finfo(np.float16).tiny)  # of magnitudes that float16 can divide by


@dataclass(frozen=True)
class DecomposeGroupQueryAttention(ComponentPass):
    """Decompose every grouped-query attention that the target refuses, in a decoder of fixed shapes.

    Attributes:
        takes: operators that are taken where the decoder runs.
        takes_integers: whether a GroupQueryAttention there may have a KV cache of integers, or why not.
        takes_windows: whether it may have a local window, or why not.
    """

    takes: TakesOperator
    takes_integers: SupportAnswer
    takes_windows: SupportAnswer
    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.GROUP_ATTENTION, Trait.HOST_LENGTHS, Trait.NARROW_WINDOWS, Trait.STATIC_SHAPES})
    promises = frozenset({Trait.DECOMPOSED_ATTENTION})
    ends = frozenset({Trait.GROUP_ATTENTION})

    def transform(self, component: Component) -> Outcome:
        """Write out what can be.

        Raises:
            TargetError: an attention whose cache the target refuses cannot be; all of them at once.
        """
        skipped: list[Skip] = []
        written, problems = list[ir.Node](), list[HvlcError]()
        for node in [n for n in component.graph if n.op_type == "GroupQueryAttention" and n.domain == MICROSOFT]:
            taken = self._takes(node)
            obstacle = "the target takes it" if taken else self._obstacle(node)
            if not obstacle:
                written.append(node)
            elif _is_quantized(node) and not taken:
                problems.append(_refusal(self.takes_integers, node, obstacle))
            else:  # the rules of the target say what it takes
                skipped.append(Skip(str(node.name), obstacle))
        raise_all(problems)
        positions = _Positions()
        for node in written:
            _write_out(component.graph, node, positions)
        return Outcome(len(written), tuple(skipped))

    def _takes(self, node: ir.Node) -> bool:
        """Whether an attention is taken with the cache and the window that it has."""
        taken = bool(self.takes(node.op_type, MICROSOFT))
        windows = _window(node) == _NO_WINDOW or bool(self.takes_windows)
        return taken and windows and (not _is_quantized(node) or bool(self.takes_integers))

    def _obstacle(self, node: ir.Node) -> str:
        """Reason why an attention stays as it is; empty when nothing speaks against writing it out."""
        windows = () if _window(node) == _NO_WINDOW else _NEEDED_BY_WINDOWS
        asked = (*_NEEDED, *windows, *(_ROUNDING if _is_quantized(node) else ()))
        refused = next((verdict for op in asked if not (verdict := self.takes(op))), None)
        return refused.reason if refused is not None else _form_obstacle(node)


def _refusal(integers: SupportAnswer, node: ir.Node, obstacle: str) -> TargetError:
    said = "the target does not take the attention" if integers else integers.reason
    cause = f"{node.name}: {said}, so the attention has to be written out, and it {obstacle}"
    return TargetError("target.cache", cause, "keep the cache in float (kv_cache: float), or choose another target")


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _is_quantized(node: ir.Node) -> bool:
    return any(_input(node, position) is not None for position in _SCALES)


def _window(node: ir.Node) -> int:
    """Number of positions that a token sees, its own included; `_NO_WINDOW`: all before it."""
    return node.attributes.get_int(_WINDOW, _NO_WINDOW)


def _form_obstacle(node: ir.Node) -> str:
    """The reason why an attention cannot be decomposed; "" if it can."""
    for position, what in _NEEDED_INPUTS.items():
        value = _input(node, position)
        if value is None:
            return f"has no {what} of its own"
        if value.shape is None or not value.shape.is_static():
            return f"the shape of its {what} is not fixed"
    for position, what in _OTHER_INPUTS.items():
        if _input(node, position) is not None:
            return f"has {what}"
    for name in _OTHER_ATTRIBUTES:
        if name in node.attributes and node.attributes[name].value not in (0, -1):  # both mean: none
            return f"has {name}"
    if node.attributes.get_int("do_rotary", 0) and (_input(node, _COSINES) is None or _input(node, _SINES) is None):
        return "rotates without tables"
    if node.attributes.get_int("kv_cache_bit_width", _BITS) != _BITS:
        return f"its cache has other integers than {_BITS} bits"
    if _dims(node.inputs[5]) != [1, 1] or _dims(node.inputs[0])[0] != 1:
        return "runs several sequences at once"
    return ""


@dataclass(frozen=True)
class _Sizes:
    """Sizes of an attention.

    Attributes:
        tokens: that run at once.
        heads: of queries.
        kv_heads: of keys and values.
        room: positions of the cache.
        width: of a head.
    """

    tokens: int
    heads: int
    kv_heads: int
    room: int
    width: int

    @classmethod
    def of(cls, node: ir.Node) -> "_Sizes":
        _, tokens, _ = _dims(node.inputs[0])
        _, kv_heads, room, width = _dims(node.inputs[3])
        return cls(tokens, node.attributes.get_int("num_heads", 0), kv_heads, room, width)

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Shape of a factor for each channel of the cache."""
        return (1, self.kv_heads, 1, self.width)

    @property
    def groups(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Rows of queries for each head of keys."""
        return self.groups * self.tokens


def _dims(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        raise HvlcError("pass.shape", "an attention has inputs of unknown shape", "report it")
    return [int(d) for d in value.shape if isinstance(d, int)]


class _Ops:
    """The operators of one attention, whose types and shapes are known, until they are put into the graph."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self.name = graph, str(node.name)
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        suffix: str,
        *inputs: ir.Value,
        dims: Sequence[int],
        dtype: ir.DataType = _FLOAT,
        **named: Any,
    ) -> ir.Value:
        """A node with one output; without suffix it has the attention's name."""
        name = f"{self.name}.{suffix}" if suffix else self.name
        made = ir.node(op_type, list(inputs), named or None, name=name)
        output = made.outputs[0]
        output.name, output.type, output.shape = f"{name}:0", ir.TensorType(dtype), ir.Shape(dims)
        self.nodes.append(made)
        return output

    def like(self, op_type: str, suffix: str, *inputs: ir.Value, **named: Any) -> ir.Value:
        """A node whose output has the shape of its first input; float, unless `dtype` says otherwise."""
        return self.op(op_type, suffix, *inputs, dims=_dims(inputs[0]), **named)

    def reshape(self, suffix: str, value: ir.Value, dims: Sequence[int]) -> ir.Value:
        """The same elements under another shape, of the same type."""
        shape = register_dims(self._graph, tuple(dims))
        return self.op("Reshape", suffix, value, shape, dims=dims, dtype=value.dtype or _FLOAT)

    def transpose(self, suffix: str, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """Axes permuted."""
        dims = _dims(value)
        return self.op("Transpose", suffix, value, dims=[dims[axis] for axis in perm], perm=list(perm))

    def expand(self, suffix: str, value: ir.Value, dims: Sequence[int]) -> ir.Value:
        """Integers repeated along axes of size 1."""
        return self.op("Expand", suffix, value, register_dims(self._graph, tuple(dims)), dims=dims, dtype=_INT32)

    def constant(self, name: str, values: np.ndarray) -> ir.Value:
        """An initializer; one of each name."""
        return register(self._graph, ir.tensor(values, name=name))

    def factors(self, suffix: str, scales: ir.Value, function: "_Factors") -> ir.Value:
        """An initializer that is computed from scales of channels when it is written, float32."""
        if scales.const_value is None:
            raise HvlcError("pass.constant", f"{scales.name} has no value", "report it")
        known = Computed(function, (expression_of(scales.const_value),), function.dims, np.dtype(np.float32))
        return register(self._graph, LazyTensor(f"{self.name}.{suffix}", known))


@dataclass(frozen=True)
class _Factors:
    """Factors of channels from the scales of their levels: magnitudes, `times` something, or what divides by them.

    Attributes:
        dims: of the result.
        times: a factor of all.
        divide: whether they divide.
    """

    dims: tuple[int, ...]
    times: float = 1.0
    divide: bool = False

    def __call__(self, scales: np.ndarray) -> np.ndarray:
        magnitudes = np.maximum(scales.astype(np.float64).reshape(-1) * _LAST_LEVEL, _LEAST)
        factors = self.times / magnitudes if self.divide else self.times * magnitudes
        _, heads, _, width = self.dims
        return np.broadcast_to(factors, (heads * width,)).reshape(self.dims).astype(np.float32)


class _Positions:
    """Values that follow from the position of the last token: made for the first attention, and read by all like it."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def table_rows(self, ops: _Ops, last: ir.Value, table: ir.Value, tokens: int) -> ir.Value:
        """Rows of a rotary table for the tokens, float `[1, tokens, width]`."""
        dims = [1, tokens, _dims(table)[1]]
        rows = self._of_tokens(ops, last, tokens)
        kind = f"rows_of_{table.name}"
        return self._once((kind, rows), lambda: ops.op("Gather", kind, table, rows, dims=dims, axis=0))

    def cache_rows(self, ops: _Ops, last: ir.Value, sizes: _Sizes) -> ir.Value:
        """The position in the cache of each element of new entries, int32 `[1, kv_heads, tokens, width]`."""
        rows = self._of_tokens(ops, last, sizes.tokens)

        def make() -> ir.Value:
            entries = ops.reshape("entries", rows, [1, 1, sizes.tokens, 1])
            return ops.expand("cache_rows", entries, [1, sizes.kv_heads, sizes.tokens, sizes.width])

        return self._once(("cache", rows, sizes), make)

    def visible(self, ops: _Ops, last: ir.Value, sizes: _Sizes, window: int) -> ir.Value:
        """Mask of the cache's positions that each row of queries sees, bool `[1, 1, groups * tokens, room]`.

        None behind the row's own: there the cache holds padding, another request or nothing. With a window, so many
        before it, its own included.
        """
        mask: dict[str, Any] = {"dims": [1, 1, sizes.rows, sizes.room], "dtype": _BOOL}

        def make() -> ir.Value:
            room = np.arange(sizes.room, dtype=np.int32).reshape(1, 1, 1, -1)
            keys = ops.constant(f"{ops.name}.key_positions", room)
            queries = self._of_rows(ops, last, sizes, "query", 0)
            if window == _NO_WINDOW:
                return ops.op("LessOrEqual", "visible", keys, queries, **mask)
            known = ops.op("LessOrEqual", "known", keys, queries, **mask)
            near = ops.op("Greater", "near", keys, self._of_rows(ops, last, sizes, "forgotten", -window), **mask)
            return ops.op("And", "visible", known, near, **mask)

        return self._once(("visible", last, sizes, window), make)

    def _of_rows(self, ops: _Ops, last: ir.Value, sizes: _Sizes, kind: str, shift: int) -> ir.Value:
        """Position of each row of queries plus a number, int32 `[1, 1, groups * tokens, 1]`."""
        dims = [1, 1, sizes.rows, 1]
        offsets = np.tile(_offsets(sizes.tokens) + np.int32(shift), sizes.groups).reshape(dims)
        constant = ops.constant(f"{ops.name}.{kind}_offsets", offsets)
        return ops.op("Add", f"{kind}_positions", last, constant, dims=dims, dtype=_INT32)

    def _of_tokens(self, ops: _Ops, last: ir.Value, tokens: int) -> ir.Value:
        """Position of each token, int32 `[1, tokens]`."""
        offsets = ops.constant(f"{tokens}_offsets", _offsets(tokens)[None])
        kwargs: dict[str, Any] = {"dims": [1, tokens], "dtype": _INT32}
        return self._once(("tokens", last, tokens), lambda: ops.op("Add", "positions", last, offsets, **kwargs))

    def _once(self, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _offsets(tokens: int) -> np.ndarray:
    """Offset of each token from the last one, int32 `[tokens]`."""
    return np.arange(1 - tokens, 1, dtype=np.int32)


def _write_out(graph: ir.Graph, node: ir.Node, positions: _Positions) -> None:
    """Put the operators in the attention's place; the last one has its name."""
    sizes, ops, last = _Sizes.of(node), _Ops(graph, node), _given(node, 5)
    query, key, value = (_heads(ops, kind, _given(node, place), sizes) for place, kind in enumerate("qkv"))
    if node.attributes.get_int("do_rotary", 0):
        query, key = (_rotated(ops, kind, x, node, positions) for kind, x in (("q", query), ("k", key)))
    entries = positions.cache_rows(ops, last, sizes)
    (present_key, keys), (present_value, values) = (
        _stored(ops, node, place, new, entries) for place, new in enumerate((key, value))
    )
    query = ops.reshape("q_groups", query, [1, sizes.kv_heads, sizes.rows, sizes.width])
    query = ops.like("Mul", "q_scaled", query, _query_factor(ops, node, sizes))
    weights = _weights(ops, query, keys, positions.visible(ops, last, sizes, _window(node)), sizes)
    attended = ops.op("MatMul", "attended", weights, values, dims=_dims(query))
    if (scales := _input(node, _SCALES[1])) is not None:
        attended = ops.like("Mul", "restored", attended, ops.factors("v_magnitudes", scales, _Factors(sizes.channels)))
    attended = ops.reshape("heads", attended, [1, sizes.heads, sizes.tokens, sizes.width])
    joined = ops.transpose("tokens", attended, _HEADS_FIRST)
    output = ops.reshape("", joined, [1, sizes.tokens, sizes.heads * sizes.width])
    _replace(graph, node, ops.nodes, [output, present_key, present_value])


def _weights(ops: _Ops, query: ir.Value, keys: ir.Value, visible: ir.Value, sizes: _Sizes) -> ir.Value:
    """Attention weights of each row of queries over the positions of the cache, float `[1, kv_heads, rows, room]`."""
    dims = [1, sizes.kv_heads, sizes.rows, sizes.room]
    scores = ops.op("MatMul", "scores", query, ops.transpose("keys", keys, _KEYS_LAST), dims=dims)
    hidden = ops.constant("hidden_score", np.array(_HIDDEN, np.float32))
    return ops.like("Softmax", "softmax", ops.op("Where", "masked", visible, scores, hidden, dims=dims), axis=-1)


def _given(node: ir.Node, position: int) -> ir.Value:
    value = _input(node, position)
    if value is None:
        raise HvlcError("pass.input", f"{node.name} has no input {position}", "report it")
    return value


def _heads(ops: _Ops, kind: str, value: ir.Value, sizes: _Sizes) -> ir.Value:
    """Heads before tokens: float `[1, heads, tokens, width]`."""
    heads = _dims(value)[2] // sizes.width
    return ops.transpose(kind, ops.reshape(f"{kind}_heads", value, [1, sizes.tokens, heads, sizes.width]), _HEADS_FIRST)


def _rotated(ops: _Ops, kind: str, value: ir.Value, node: ir.Node, positions: _Positions) -> ir.Value:
    """Heads turned by the positions of their tokens; where the tables are narrower, only the first channels."""
    _, _, tokens, width = _dims(value)
    tables = [_given(node, place) for place in (_COSINES, _SINES)]
    rows = [positions.table_rows(ops, _given(node, 5), table, tokens) for table in tables]
    turned = 2 * _dims(tables[0])[1]
    partly = {"rotary_embedding_dim": turned} if turned < width else {}
    pairs = {"interleaved": 1} if node.attributes.get_int("rotary_interleaved", 0) else {}
    return ops.like("RotaryEmbedding", f"{kind}_rotary", value, *rows, **partly, **pairs)


def _stored(ops: _Ops, node: ir.Node, place: int, new: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The cache with new entries as the graph hands it on, and as attention reads it.

    Args:
        ops: collects the operators.
        node: the attention.
        place: 0 for keys, 1 for values.
        new: float `[1, kv_heads, tokens, width]`.
        rows: where they go; see `_Positions.cache_rows`.
    """
    kind, past, scales = "kv"[place], _given(node, 3 + place), _input(node, _SCALES[place])
    if scales is None:
        present = ops.like("ScatterElements", f"{kind}_cache", past, rows, new, axis=2)
        return present, present
    _, heads, _, width = _dims(new)
    divisors = ops.factors(f"{kind}_divisors", scales, _Factors((1, heads, 1, width), divide=True))
    grid = (
        ops.constant("cache.scale", np.array(1 / _LAST_LEVEL, np.float32)),
        ops.constant("cache.zero_point", np.array(_ZERO_LEVEL, np.uint8)),
    )
    past.type = ir.TensorType(_UINT8)
    shares = ops.like("Mul", f"{kind}_shares", new, divisors)
    levels = ops.like("QuantizeLinear", f"{kind}_levels", shares, *grid, dtype=_UINT8)
    rounded = ops.like("DequantizeLinear", f"{kind}_rounded", levels, *grid)
    filled = ops.like("DequantizeLinear", f"{kind}_past", past, *grid)
    written = ops.like("ScatterElements", f"{kind}_cache", filled, rows, rounded, axis=2)
    present = ops.like("QuantizeLinear", f"{kind}_present", written, *grid, dtype=_UINT8)
    return present, ops.like("DequantizeLinear", f"{kind}_present_rounded", present, *grid)


def _query_factor(ops: _Ops, node: ir.Node, sizes: _Sizes) -> ir.Value:
    """Factor of the queries: the scale of the scores, times the magnitudes that keys are divided by."""
    factor = node.attributes.get_float("scale", 0.0) or sizes.width**-0.5
    scales = _input(node, _SCALES[0])
    if scales is None:
        return ops.constant(f"{ops.name}.scale", np.array(factor, np.float32))
    return ops.factors("q_factors", scales, _Factors(sizes.channels, factor))


def _replace(graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Put nodes where the attention was, under the names of its outputs, and drop constants that nobody reads."""
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, outputs, strict=False):
        new.name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    graph.remove(node, safe=True)
    drop_unread(graph, *constants)
