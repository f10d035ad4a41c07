"""Quantize activations statically to 16 bits: insert QuantizeLinear and DequantizeLinear around integer operators.

Compilers of NPUs read `DequantizeLinear -> operator -> QuantizeLinear` as one integer operator. So every value that
such an operator reads or writes gets one pair, with scale and zero point from calibration: the quantized products of a
plan, and the norms, activations and additions that are connected to them. What lies beyond (attention with its cache,
embeddings, convolutions) stays in float, and so do the graph's outputs, but for those that products make where a plan
asks for it.

Operators that only move values keep the scale of what they move: rounded again, a rounded value stays as it is.
Sigmoid, Tanh and Softmax have fixed scales: Qualcomm's compiler computes garbage with others (onnxruntime-qnn 2.7,
run in emulation: errors of 2.9 to 3.9 in 16 bits). Constants (norm weights, biases, positions) are symmetric, as that
compiler asks of the weights of a LayerNormalization.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.errors import Collector, HvlcError, UserError, raise_all
from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import drop_unread, redirect, register
from hvlc.graphs.plan import Action, ActivationType, Plan
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import Computed, Constant, Expression, LazyTensor, expression_of

_COMPUTES = frozenset(
    {
        *(("", op) for op in ("RMSNormalization", "LayerNormalization", "Add", "Mul", "Sigmoid", "Tanh", "Gelu")),
        ("", "Softmax"),
        (MICROSOFT, "SkipSimplifiedLayerNormalization"),
        (MICROSOFT, "SkipLayerNormalization"),
    }
)
_MOVES = frozenset(("", op) for op in ("Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Expand"))

_BEYOND = {
    "GroupQueryAttention": "attention and its cache stay in float",
    "Attention": "attention stays in float",
    "MultiHeadAttention": "attention stays in float",
    "CausalConvWithState": "convolutions with a state stay in float",
    "Gather": "embeddings stay in float",
    "GatherBlockQuantized": "embeddings stay in float",
}

_LEVELS = 1 << 16
_ROOM = 2  # times the range of logits: where two of them are cut off, neither is the largest any more
#: Scale and zero point of outputs whose range is known.
_FIXED: dict[ActivationType, dict[str, tuple[float, int]]] = {
    ActivationType.UINT16: {"Sigmoid": (1 / 65536, 0), "Softmax": (1 / 65536, 0), "Tanh": (1 / 32768, 32768)},
    ActivationType.INT16: dict.fromkeys(("Sigmoid", "Softmax", "Tanh"), (1 / 32768, 0)),
}


@dataclass(frozen=True)
class _Pair:
    """A value that is to be rounded, and who reads it rounded."""

    value: ir.Value
    readers: tuple[tuple[ir.Node, int], ...]

    @property
    def name(self) -> str:
        """Name of the value."""
        return str(self.value.name)

    @property
    def source(self) -> ir.Value:
        """The value whose scale it has: what moved values were before they were moved."""
        source = self.value
        while (mover := source.producer()) is not None and mover.op_identifier()[:2] in _MOVES:
            if mover.inputs[0] is None or _is_dequantized(mover.inputs[0]):
                break
            source = mover.inputs[0]
        return source


@dataclass(frozen=True)
class QuantizeActivations(ComponentPass):
    """Quantize the activations of every component in which the plan quantizes products.

    Attributes:
        plan: names the products and the type of the activations.
        ranges: lower and upper end, float32 `[2]`, of every value that `calibrated_values` names, by component; they
            are read when the graph is written.
    """

    plan: Plan
    ranges: Mapping[str, Mapping[str, Expression]]
    roles = frozenset({Role.DECODER, Role.VISION_ENCODER})
    requires = frozenset({Trait.WHOLE_DECODER, Trait.SEPARATE_ENCODERS})

    def transform(self, component: Component) -> Outcome:
        """Insert the pairs.

        Raises:
            UserError: ranges are missing; all of them at once.
        """
        if self.plan.activations is None or not self.plan.is_static(component.role):
            return Outcome(0, (Skip("*", "the plan asks for no static activations"),))
        type = self.plan.activations.type
        region = _region(component, self.plan)
        pairs = list(_pairs(region, self.plan.activations.products))
        ranges = self.ranges.get(component.name, {})
        unknown = dict.fromkeys(str(p.source.name) for p in pairs if _op_type(p.source) not in _FIXED[type])
        raise_all([_wrong_range(name, "no range was calibrated") for name in unknown if name not in ranges])
        skipped = tuple(_declined(region, self.plan.activations.products))
        parameters = [_parameters(pair, ranges, type) for pair in pairs]
        for pair, (scale, zero) in zip(pairs, parameters, strict=True):
            _insert(component.graph, pair, scale, zero)
        constants = _round_constants(component.graph, region, type)
        return Outcome(len(pairs) + constants, skipped)


def calibrated_values(component: Component, plan: Plan) -> tuple[str, ...]:
    """Names of the values whose ranges `QuantizeActivations` needs, in graph order.

    They are the same before and after `QuantizeWeightsQDQ`, and `QuantizeWeights` keeps the names of values. Ranges had
    better be taken with quantized weights: where those change a value much, float weights give a range that cuts it.
    """
    if plan.activations is None or not plan.is_static(component.role):
        return ()
    fixed = _FIXED[plan.activations.type]
    region = _region(component, plan)
    sources = [pair.source for pair in _pairs(region, plan.activations.products)]
    return tuple(dict.fromkeys(str(s.name) for s in sources if _op_type(s) not in fixed))


def _op_type(value: ir.Value) -> str:
    """Operator of the node that makes a value."""
    node = value.producer()
    return node.op_type if node is not None else ""


def _is_dequantized(value: ir.Value) -> bool:
    return _op_type(value) == "DequantizeLinear"


def _region(component: Component, plan: Plan) -> dict[ir.Node, None]:
    """The nodes that compute in integers: the plan's products, and all that is connected to them by such nodes."""
    planned = {name for name, a in plan.for_component(component.name).items() if a.action is Action.QUANTIZE}
    pending = [n for n in component.graph if n.op_type == "MatMul" and not n.domain and n.name in planned]
    found = dict.fromkeys(pending)
    while pending:
        for value in _activations(pending.pop()):
            for node in (value.producer(), *value.consumers()):
                if node is None or node in found or node.graph is not component.graph:
                    continue
                if node.op_identifier()[:2] in _COMPUTES | _MOVES and value in _activations(node):
                    found[node] = None
                    pending.append(node)
    return {node: None for node in component.graph if node in found}


def _activations(node: ir.Node) -> list[ir.Value]:
    """The float values that a node reads and writes: neither constants nor shapes."""
    first_only = node.op_type == "MatMul" or node.op_identifier()[:2] in _MOVES
    inputs = node.inputs[:1] if first_only else node.inputs
    read = [v for v in inputs if v is not None and v.const_value is None]
    return [*read, *(v for v in node.outputs if v.uses() or v.is_graph_output())]


def _pairs(region: Mapping[ir.Node, None], products: bool) -> Iterator[_Pair]:
    """Every value of the region whose numbers somebody reads and that is not rounded yet, once, in graph order.

    Args:
        region: nodes that compute in integers.
        products: whether that goes for outputs of the graph that a product makes.
    """
    for value in dict.fromkeys(value for node in region for value in _activations(node)):
        if _is_dequantized(value) or any(n.op_type == "QuantizeLinear" for n in value.consumers()):
            continue
        inside = value.producer() in region
        readers = tuple(use for use in value.uses() if use.node in region or (inside and use.node.op_type != "Shape"))
        if readers or (products and value.is_graph_output() and _op_type(value) == "MatMul"):
            yield _Pair(value, readers)


def _declined(region: Mapping[ir.Node, None], products: bool) -> Iterator[Skip]:
    """The float neighbours of the region, and the graph's outputs that it makes."""
    values = dict.fromkeys(value for node in region for value in _activations(node))
    neighbours = [n for value in values for n in (value.producer(), *value.consumers())]
    for node in dict.fromkeys(n for n in neighbours if n is not None and n not in region):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Shape"):
            yield Skip(str(node.name), _BEYOND.get(node.op_type, f"{node.op_type} stays in float"))
    for value in values:
        if value.is_graph_output() and not (products and _op_type(value) == "MatMul"):
            yield Skip(str(value.name), "outputs of the graph stay in float")


def check_ranges(ranges: Mapping[str, Mapping[str, Expression]]) -> None:
    """Read ranges that are known by now, and refuse those that no scale fits.

    Args:
        ranges: lower and upper end, float32 `[2]`, of values by component.

    Raises:
        UserError: some are not finite, or hold no number but 0; all of them at once.
    """
    found = Collector()
    for ends in ranges.values():
        for name, expression in ends.items():
            with found:
                _checked(name, expression.read())
    found.raise_all()


def _checked(name: str, ends: np.ndarray) -> tuple[float, float]:
    """Lower and upper end of a value.

    Raises:
        UserError: they are not finite, or hold no number but 0.
    """
    low, high = float(ends[0]), float(ends[1])
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _wrong_range(name, f"its range {low} to {high} is not finite")
    if low > high or (max(high, 0) - min(low, 0)) / _LEVELS < np.finfo(np.float32).tiny:
        raise _wrong_range(name, f"its range {low} to {high} is empty")
    return low, high


def _wrong_range(name: str, cause: str) -> UserError:
    return UserError("calibration.range", f"{name}: {cause}", "calibrate with other samples")


def _parameters(pair: _Pair, ranges: Mapping[str, Expression], type: ActivationType) -> list[Expression]:
    """Scale and zero point of a value, float32 and integer scalars."""
    source, room = pair.source, 1 if pair.readers else _ROOM
    dtypes = np.dtype(np.float32), np.dtype(type.value)
    fixed = _FIXED[type].get(_op_type(source))
    if fixed:
        return [Constant(np.array(number, dtype)) for number, dtype in zip(fixed, dtypes, strict=True)]
    name = str(source.name)
    return [Computed(_Affine(name, type, part, room), (ranges[name],), (), dtype) for part, dtype in enumerate(dtypes)]


@dataclass(frozen=True)
class _Affine:
    """One of the two numbers that `affine` makes of a value's range."""

    name: str
    type: ActivationType
    part: int
    room: float

    def __call__(self, ends: np.ndarray) -> np.ndarray:
        low, high = _checked(self.name, ends)
        return np.asarray(affine(self.room * low, self.room * high, self.type)[self.part])


def affine(low: float, high: float, type: ActivationType) -> tuple[float, int]:
    """Scale (a float32) and zero point of the levels that span a range, widened to hold 0 exactly.

    Args:
        low: lower end.
        high: upper end.
        type: of the levels.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / (_LEVELS - 1)))
    first = _first_level(type)
    return scale, int(np.clip(first + round(-low / scale), first, first + _LEVELS - 1))


def _first_level(type: ActivationType) -> int:
    return 0 if type is ActivationType.UINT16 else -_LEVELS // 2


def _insert(graph: ir.Graph, pair: _Pair, scale: Expression, zero: Expression) -> None:
    """Round a value behind its producer, and hand the rounded one to its readers."""
    names = f"{pair.name}.scale", f"{pair.name}.zero_point"
    constants = [register(graph, LazyTensor(n, e)) for n, e in zip(names, (scale, zero), strict=True)]
    quantize = ir.node("QuantizeLinear", [pair.value, *constants], name=f"{pair.name}.quantize")
    quantize.outputs[0].name = f"{pair.name}.quantized"
    dequantize = _dequantize(pair.name, quantize.outputs[0], constants)
    dequantize.outputs[0].type, dequantize.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), pair.value.shape
    producer = pair.value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    redirect(pair.readers, dequantize.outputs[0])
    if not pair.readers:
        _hand_out(graph, pair.value, dequantize.outputs[0])


def _hand_out(graph: ir.Graph, value: ir.Value, rounded: ir.Value) -> None:
    """Make the rounded value the output of the graph, under the same name."""
    name = value.name
    value.name, rounded.name = f"{name}.unrounded", name
    graph.outputs[graph.outputs.index(value)] = rounded


def _dequantize(name: str, levels: ir.Value, constants: list[ir.Value]) -> ir.Node:
    node = ir.node("DequantizeLinear", [levels, *constants], name=f"{name}.dequantize")
    node.outputs[0].name = f"{name}.dequantized"
    return node


def _round_constants(graph: ir.Graph, region: Mapping[ir.Node, None], type: ActivationType) -> int:
    """Put the constants of the region's norms and elementwise operators behind DequantizeLinear, each once."""
    uses = [
        (value, node, index)
        for node in region
        if node.op_identifier()[:2] in _COMPUTES
        for index, value in enumerate(node.inputs)
        if value is not None and value.const_value is not None
    ]
    rounded: dict[ir.Value, ir.Value] = {}
    for value, node, index in uses:
        if value not in rounded:
            dequantize = _rounded_constant(graph, value, type)
            graph.insert_before(node, dequantize)
            rounded[value] = dequantize.outputs[0]
        node.replace_input_with(index, rounded[value])
        drop_unread(graph, value)
    return len(rounded)


def _rounded_constant(graph: ir.Graph, value: ir.Value, type: ActivationType) -> ir.Node:
    """DequantizeLinear of a constant's levels: symmetric, the largest magnitude on the last level."""
    if value.const_value is None:
        raise HvlcError("pass.constant", f"{value.name} has no value", "report it")
    name, source = str(value.name), expression_of(value.const_value)
    levels = Computed(_ConstantLevels(type), (source,), source.shape, np.dtype(type.value))
    scale = Computed(_constant_scale, (source,), (), np.dtype(np.float32))
    tensors = (
        LazyTensor(f"{name}.{type.value}", levels),
        LazyTensor(f"{name}.scale", scale),
        ir.tensor(np.array(_first_level(type) + _LEVELS // 2, type.value), name=f"{name}.zero_point"),
    )
    stored, *constants = [register(graph, tensor) for tensor in tensors]
    return _dequantize(name, stored, constants)


def _constant_scale(values: np.ndarray) -> np.ndarray:
    """float32 scalar; 1 for a constant of zeros."""
    return np.asarray(np.abs(values).max(initial=0) / (_LEVELS // 2 - 1) or 1, np.float32)


@dataclass(frozen=True)
class _ConstantLevels:
    """Levels of a constant; equal for equal types, so that equal constants are stored once."""

    type: ActivationType

    def __call__(self, values: np.ndarray) -> np.ndarray:
        levels = np.rint(values / _constant_scale(values)) + (_first_level(self.type) + _LEVELS // 2)
        with np.errstate(invalid="ignore"):  # NaN is found in the scale
            return levels.astype(self.type.value)
