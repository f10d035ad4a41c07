"""Matrices whose scales float16 does not hold: they get float32 scales, where a recipe asks for float16.

bfloat16 and float32 weights may be as small or as large as they like where a norm, or a matrix that feeds another,
makes up for it: a layer whose up projection is a million times smaller and whose down projection is that much larger
computes the same. Scales that float16 flushes to its smallest numbers, or cuts off at 65504, would lose such a matrix.
So every matrix is read once before a build decides how it is stored. Graphs widen float16 scales to float32 when they
are loaded, so float32 scales cost bytes and nothing else.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.weights.extremes import Extremes, extremes_of
from hvlc.weights.lazy import Expression, expression_of
from hvlc.weights.prequantized.matrix import STORED

_LARGEST = float(np.finfo(np.float16).max)
#: Smallest scale that float16 holds well enough: it is rounded to multiples of 2**-24, here by a 256th at most.
_LEAST = 2.0**-17
#: Share of a vocabulary's rows that may have smaller scales: tokens that no text holds keep what training began with.
_UNUSED = 0.01


def with_wide_scales(plan: Plan, bundle: Bundle, threads: int) -> Plan:
    """The plan with float32 scales where float16 does not hold them, each with the reason.

    Args:
        plan: of the bundle.
        bundle: before the plan is performed; the matrices that get float16 scales are read once.
        threads: that read.
    """
    weights = _matrices(plan, bundle)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = dict(zip(weights, pool.map(extremes_of, weights.values()), strict=True))
    vocabulary = bundle.facts.text.vocab_size if bundle.facts.text else None
    reasons = {place: _obstacle(plan, place, extremes, vocabulary) for place, extremes in found.items()}
    return replace(plan, assignments=tuple(_widened(a, reasons) for a in plan.assignments))


def _matrices(plan: Plan, bundle: Bundle) -> dict[tuple[str, str], Expression]:
    """The values `[out, in]` of every matrix that gets new float16 scales, by component and node."""
    found: dict[tuple[str, str], Expression] = {}
    for name, component in bundle.components.items():
        nodes = {str(node.name): node for node in component.graph}
        for node, assignment in plan.for_component(name).items():
            if _is_narrow(assignment) and assignment.action is Action.QUANTIZE:
                found[name, node] = _matrix(nodes[node])
    return found


def _matrix(node: ir.Node) -> Expression:
    lookup = node.op_type == "Gather"
    weight = node.inputs[0 if lookup else 1]
    if weight is None or weight.const_value is None:
        raise HvlcError("plan.incomplete", f"internal error: {node.name} reads no matrix", "please report it")
    values = expression_of(weight.const_value)
    return values if lookup else values.transpose()


def _is_narrow(assignment: Assignment) -> bool:
    format = assignment.format
    return format is not None and format.half_scales and assignment.solver != STORED


def _obstacle(plan: Plan, place: tuple[str, str], extremes: Extremes, vocabulary: object) -> str:
    """Reason why float16 does not hold a matrix's scales; empty when it does."""
    assignment = plan.for_component(place[0])[place[1]]
    format = assignment.format
    if format is None:
        return ""
    half = 2.0 ** (format.bits - 1)
    most = float(extremes.rows.max(initial=0)) / (half - 1)
    if most > _LARGEST:
        return f"float32 scales: they go up to {most:.1e}, float16 to {_LARGEST:.0f}"
    least = _LEAST * format.steps
    spared = _UNUSED * assignment.out_features if assignment.out_features == vocabulary else 0
    lost = [_lost(extremes.rows, least), _lost(extremes.blocks(format.block_size), least)]
    if len(lost[0]) > spared or len(lost[1]):
        smallest = min(float(values.min(initial=np.inf)) for values in lost) / half
        return f"float32 scales: they go down to {smallest:.1e}, which float16 would round away"
    return ""


def _lost(magnitudes: np.ndarray, least: float) -> np.ndarray:
    """Mark values that are too small and not zero."""
    return magnitudes[(magnitudes > 0) & (magnitudes < least)]


def _widened(assignment: Assignment, reasons: Mapping[tuple[str, str], str]) -> Assignment:
    """The assignment with float32 scales where there is a reason; a tied one follows what it shares."""
    reason = reasons.get(assignment.shares or (assignment.component, assignment.node), "")
    if not reason or assignment.format is None:
        return assignment
    said = "; ".join(filter(None, (assignment.reason, reason)))
    return replace(assignment, format=assignment.format.with_wide_scales(), reason=said)
