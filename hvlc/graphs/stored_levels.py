"""Levels that a plan keeps from a pre-quantized checkpoint, for the pass that performs the plan."""

from collections.abc import Iterator

import onnx_ir as ir

from hvlc.errors import HvlcError
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.plan import Assignment, Plan
from hvlc.weights.lazy import Expression, expression_of
from hvlc.weights.prequantized.matrix import STORED, Prequantized
from hvlc.weights.quantized import SolvedWeight


def prequantized_in(expression: Expression) -> Iterator[Prequantized]:
    """The pre-quantized matrices that an expression is computed from, itself included."""
    if isinstance(expression, Prequantized):
        yield expression
        return
    for part in expression.parts():
        yield from prequantized_in(part)


def stored_levels(plan: Plan, bundle: Bundle) -> dict[tuple[str, str], SolvedWeight]:
    """Every matrix whose assignment takes what the checkpoint stores, by component and node.

    Raises:
        HvlcError: a weight was rewritten after the plan was made (a bug).
    """
    found: dict[tuple[str, str], SolvedWeight] = {}
    for name, component in bundle.components.items():
        nodes = {str(node.name): node for node in component.graph}
        for node_name, assignment in plan.for_component(name).items():
            if assignment.solver == STORED and assignment.format and node_name in nodes:
                matrix = _matrix(nodes[node_name], assignment)
                found[name, node_name] = matrix.form(assignment.format)
    return found


def _matrix(node: ir.Node, assignment: Assignment) -> Prequantized:
    lookup = node.op_type == "Gather"
    weight = node.inputs[0 if lookup else 1]
    if weight is not None and weight.const_value is not None:
        values = expression_of(weight.const_value)
        matrix = values if lookup else values.transpose()
        if isinstance(matrix, Prequantized):
            return matrix
    raise HvlcError("plan.stored", f"{assignment.weight} is not what the checkpoint stores any more", "report it")
