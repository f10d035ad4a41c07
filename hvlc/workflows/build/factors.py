"""Factors of channels that a recipe asks for: planned with the weights, found by calibration, folded in lazily.

Which groups of linears get factors is decided with the plan. The factors themselves are expressions over the files of a
calibration's state, which are there when weights are evaluated (docs/design.md, section 5).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import UserError
from hvlc.graphs.bundle import Bundle, Component, Role, Skip
from hvlc.graphs.linears import LinearGroup, linear_groups, stored_tables
from hvlc.graphs.plan import Action, Plan
from hvlc.graphs.stored_levels import prequantized_in
from hvlc.passes.prepare.scale_channels import Factors, declined, scalable
from hvlc.recipes.schema import Preparation
from hvlc.weights.checkpoint import StoredTensor
from hvlc.weights.formats import WeightFormat
from hvlc.weights.lazy import expression_of

if TYPE_CHECKING:
    from hvlc.calibration.factors import ScaledGroup

_STEP = "PlanFactors"


def check_stored(bundle: Bundle, prepare: Preparation) -> None:
    """Refuse to prepare what another tool has quantized: its levels stand for the weights as they were.

    Raises:
        UserError: a weight has levels in the checkpoint.
    """
    if prepare == Preparation():
        return
    for component in bundle.components.values():
        for name, weight in component.graph.initializers.items():
            inner = next(prequantized_in(expression_of(weight.const_value)), None) if weight.const_value else None
            if inner is not None:
                asked = ", ".join(prepare.model_dump(exclude_none=True))
                cause = f"the checkpoint stores levels of {name} ({inner.origin}), which {asked} would throw away"
                raise UserError("prepare.stored", cause, "take the float checkpoint, or a recipe without prepare")


def plan_factors(bundle: Bundle, plan: Plan, prepare: Preparation) -> "tuple[ScaledGroup, ...]":
    """Every group of linears that gets factors; those of the asked roles that do not are in the journal, with reasons.

    Args:
        bundle: in float; nothing in it changes.
        plan: every weight's fate.
        prepare: what the recipe asks for.
    """
    if prepare.smooth is None and prepare.awq is None:
        return ()
    shared = stored_tables(component.graph for component in bundle.components.values())
    found: list[ScaledGroup] = []
    skipped = [Skip(role, "the model has none") for role in _roles(prepare) if not bundle.with_role(role)]
    with bundle.step(_STEP, "*") as record:
        for component in bundle.components.values():
            if component.role not in _roles(prepare):
                continue
            formats = _formats(plan, component)
            for linears in linear_groups(component.graph):
                group = _scaled(component, linears, formats, prepare, shared)
                if isinstance(group, str):
                    skipped.append(declined(component, linears, group))
                else:
                    found.append(group)
        record(len(found), tuple(skipped))
    return tuple(found)


def pending_factors(groups: "Sequence[ScaledGroup]", directory: Path) -> dict[tuple[str, str], Factors]:
    """Factors that will be in a state's directory by the time that weights are evaluated, by component and value."""
    return {(group.component, group.input): Factors(*group.pending(directory)) for group in groups}


def _roles(prepare: Preparation) -> tuple[Role, ...]:
    """Roles whose linears get factors."""
    return tuple(dict.fromkeys(role for spec in (prepare.smooth, prepare.awq) if spec for role in spec.roles))


def _formats(plan: Plan, component: Component) -> dict[str, WeightFormat]:
    """Formats of a component's quantized matrices, by node name."""
    chosen = plan.for_component(component.name).items()
    return {node: a.format for node, a in chosen if a.action is Action.QUANTIZE and a.format is not None}


def _scaled(
    component: Component,
    linears: LinearGroup,
    formats: Mapping[str, WeightFormat],
    prepare: Preparation,
    shared: frozenset[StoredTensor],
) -> "ScaledGroup | str":
    """The factors that are asked for a group, or why it gets none."""
    from hvlc.calibration.factors import ScaledGroup, Search

    producer = scalable(linears, shared)
    if isinstance(producer, str):
        return producer
    nodes = tuple(str(node.name) for node in linears.nodes)
    quantized = {node: formats[node] for node in nodes if node in formats}
    smooth, awq = prepare.smooth, prepare.awq
    exponent = smooth.exponent if smooth and component.role in smooth.roles else None
    search = Search(awq.exponents, awq.rows) if awq and component.role in awq.roles else None
    if exponent is None and not quantized:
        return "none of it is quantized, so a search has no error to compare"
    return ScaledGroup(component.name, str(linears.input.name), nodes, producer.channels, exponent, search, quantized)
