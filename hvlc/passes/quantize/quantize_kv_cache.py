"""Quantize the KV cache to int8, which GroupQueryAttention does as it stores keys and values.

com.microsoft.GroupQueryAttention has its own quantized cache (onnxruntime docs/ContribOperators.md: `k_scale`,
`v_scale`, `k_quant_type`, `v_quant_type`, `kv_cache_bit_width`). onnxruntime 1.31's CPU provider stores
`clip(round(value / scale), -128, 127)` after the rotation and computes attention in float from what it stored, also
for the tokens of the same call (tests/passes/quantize/test_quantize_kv_cache.py). So no entry is quantized twice, and
a step costs no pass over the old entries. Scales are static and one for each channel of each head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hvlc.errors import HvlcError, UserError, raise_all
from hvlc.graphs.builder import MICROSOFT
from hvlc.graphs.bundle import Component, Role, Skip
from hvlc.graphs.editing import register
from hvlc.passes.base import ComponentPass, Outcome
from hvlc.passes.traits import Trait
from hvlc.weights.lazy import Computed, Expression, LazyTensor

_BITS, _LAST_LEVEL = 8, 127
_PASTS, _PRESENTS, _SCALES = (3, 4), (1, 2), (12, 13)  # positions of keys and values among inputs and outputs


@dataclass(frozen=True)
class QuantizeKVCache(ComponentPass):
    """Store the keys and values of every grouped-query attention in int8.

    Attributes:
        magnitudes: the largest magnitude of each channel, float `[kv_heads, head_size]`, by the name of the graph
            output that holds the present keys or values; they are read when the graph is written.
    """

    magnitudes: Mapping[str, Expression]
    roles = frozenset({Role.DECODER})
    requires = frozenset({Trait.GROUP_ATTENTION})

    def transform(self, component: Component) -> Outcome:
        """Give every attention its scales, and its cache another type.

        Raises:
            UserError: magnitudes are missing or of another shape; all of them at once.
        """
        found = [node for node in component.graph if _is_attention(node) and "k_quant_type" not in node.attributes]
        attentions = [node for node in found if all(node.inputs[position] is not None for position in _PASTS)]
        problems: list[HvlcError] = []
        scales = {value.name: self._scales(value, problems) for node in attentions for value in _presents(node)}
        raise_all(problems)
        for node in attentions:
            _quantize(component.graph, node, [scales[value.name] for value in _presents(node)])
        skipped = [Skip(str(node.name), "it has no cache") for node in found if node not in attentions]
        return Outcome(len(attentions), tuple(skipped))

    def _scales(self, present: ir.Value, problems: list[HvlcError]) -> Expression:
        """float32 `[kv_heads * head_size]`; what is wrong with the magnitudes joins the problems."""
        known, shape = self.magnitudes.get(str(present.name)), _shape(present)
        if known is None:
            problems.append(_wrong(str(present.name), "no magnitudes were collected"))
        elif known.shape != shape:
            cause = f"its magnitudes are {list(known.shape)}, the cache has {shape[0]} heads of {shape[1]}"
            problems.append(_wrong(str(present.name), cause))
        of = () if known is None else (known,)
        return Computed(_Scales(str(present.name)), of, (shape[0] * shape[1],), np.dtype(np.float32))


def cached_values(component: Component) -> dict[str, tuple[int, int]]:
    """Heads and head size of all present keys and values whose magnitudes `QuantizeKVCache` needs, by name."""
    attentions = [node for node in component.graph if _is_attention(node) and node.inputs[_PASTS[0]] is not None]
    return {str(value.name): _shape(value) for node in attentions for value in _presents(node)}


def _shape(present: ir.Value) -> tuple[int, int]:
    """Heads and head size."""
    heads, size = (int(str(present.shape[axis])) if present.shape is not None else 0 for axis in (1, 3))
    return heads, size


@dataclass(frozen=True)
class _Scales:
    """Scales from magnitudes, all above 0; a channel that was never seen takes its tensor's largest."""

    name: str

    def __call__(self, known: np.ndarray) -> np.ndarray:
        if not np.isfinite(known).all() or (known < 0).any():
            raise _wrong(self.name, "its magnitudes hold NaN, infinity or a number below 0")
        seen = np.where(known > 0, known, known.max() or _LAST_LEVEL)
        return (seen / _LAST_LEVEL).astype(np.float32).reshape(-1)


def _wrong(name: str, cause: str) -> UserError:
    return UserError("calibration.cache", f"{name}: {cause}", "calibrate the decoder again")


def rotated_keys(component: Component) -> frozenset[str]:
    """Names of the graph outputs that hold present keys which the attention rotated."""
    attentions = filter(_is_attention, component.graph)
    rotating = [node for node in attentions if node.attributes.get_int("do_rotary", 0) == 1]
    return frozenset(str(_presents(node)[0].name) for node in rotating)


def _is_attention(node: ir.Node) -> bool:
    return node.op_type == "GroupQueryAttention" and node.domain == MICROSOFT


def _presents(node: ir.Node) -> list[ir.Value]:
    return [node.outputs[position] for position in _PRESENTS]


def _quantize(graph: ir.Graph, node: ir.Node, scales: list[Expression]) -> None:
    node.attributes.add(ir.AttrInt64("kv_cache_bit_width", _BITS))
    node.resize_inputs(max(len(node.inputs), _SCALES[-1] + 1))
    for position, kind, scale in zip(_SCALES, "kv", scales, strict=True):
        node.attributes.add(ir.AttrString(f"{kind}_quant_type", "PER_CHANNEL"))
        node.replace_input_with(position, register(graph, LazyTensor(f"{node.name}.{kind}_scale", scale)))
    for value in [*(node.inputs[position] for position in _PASTS), *_presents(node)]:
        if value is not None:
            value.type = ir.TensorType(ir.DataType.INT8)
