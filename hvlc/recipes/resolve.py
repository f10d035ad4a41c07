"""A recipe against a bundle and a target: the plan, or every problem at once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from hvlc.bundle import Bundle, Component, Role
from hvlc.errors import HvlcError, TargetError, UserError, nearest, raise_all
from hvlc.lazy import Cast, Expression, expression_of
from hvlc.plan import Action, Assignment, Plan
from hvlc.recipes.schema import Recipe, Rule, WeightSpec
from hvlc.target import Target, Verdict

_RESOLVED_ROLES = (Role.DECODER, Role.VISION_ENCODER, Role.EMBEDDING)


@dataclass(frozen=True)
class _Place:
    """A weight matrix in a graph: `MatMul` by a constant, or an embedding look-up."""

    component: Component
    node: ir.Node
    weight: ir.Value

    @property
    def is_lookup(self) -> bool:
        return self.node.op_type == "Gather"

    @property
    def role(self) -> Role:
        """What recipes call it; a table is an embedding also where it lies in the decoder's graph."""
        return Role.EMBEDDING if self.is_lookup else self.component.role

    def shares(self, other: "_Place") -> bool:
        """Whether both hold the same values, each in its own orientation."""
        if self.weight is other.weight or self.weight.name == other.weight.name:
            return True
        one, two = (p.values if p.is_lookup else p.values.transpose() for p in (self, other))
        return one == two

    @property
    def values(self) -> Expression:
        """The weight's values."""
        if self.weight.const_value is None:
            raise HvlcError("plan.weight", f"{self.weight.name} has no value", "report it")
        return expression_of(self.weight.const_value)

    @property
    def dims(self) -> tuple[int, int]:
        """Output and input features."""
        first, second = _matrix_dims(self.weight)
        return (first, second) if self.is_lookup else (second, first)


def _matrix_dims(weight: ir.Value) -> tuple[int, int]:
    """Rows and columns of a constant matrix."""
    if weight.const_value is None:
        raise HvlcError("plan.weight", f"{weight.name} has no value", "report it")
    rows, columns = weight.const_value.shape
    return int(str(rows)), int(str(columns))


def _places(component: Component) -> Iterator[_Place]:
    for node in component.graph:
        if node.domain or node.op_type not in ("MatMul", "Gather"):
            continue
        weight = node.inputs[0 if node.op_type == "Gather" else 1]
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        if weight.const_value.dtype == ir.DataType.FLOAT:
            yield _Place(component, node, weight)


def resolve(recipe: Recipe, bundle: Bundle, target: Target, solvers: Iterable[str]) -> Plan:
    """Decide every weight.

    Args:
        recipe: the rules.
        bundle: the exported model; nothing in it changes.
        target: asked what it takes.
        solvers: names of the solvers at hand.

    Raises:
        UserError: a rule matches nothing or names an unknown solver.
        TargetError: the target cannot take what a rule asks for. Several problems come in one error.
    """
    known = sorted(solvers)
    problems: list[HvlcError] = [
        UserError("recipe.solver", f"no solver {asked!r}", nearest(asked, known))
        for asked in dict.fromkeys(r.quantize.solver for r in recipe.rules if r.quantize)
        if asked not in known
    ]
    assignments: list[Assignment] = []
    refused: dict[str, list[str]] = {}
    used: set[Rule | None] = set()
    places = [p for c in bundle.components.values() if c.role in _RESOLVED_ROLES for p in _places(c)]
    for place in places:
        rule = _first_rule(recipe, place)
        used.add(rule)
        decision = _decide(place, rule, target, places, recipe)
        if isinstance(decision, str):
            refused.setdefault(decision, []).append(str(place.weight.name))
        else:
            assignments.append(decision)
    for reason, weights in refused.items():
        more = f" and {len(weights) - 1} more weights" if len(weights) > 1 else ""
        cause = f"{weights[0]}{more}: {reason}"
        problems.append(TargetError("plan.target", cause, "choose another recipe or target"))
    unused = [r for r in recipe.rules if r not in used and not r.optional]
    if unused:
        names = "; ".join(f"{r.role} {r.weights!r}" for r in unused)
        cause = f"recipe {recipe.name}: rules that match no weight: {names}"
        problems.append(UserError("recipe.rule", cause, "correct or drop them"))
    raise_all(problems)
    return Plan(recipe.name, target.name, tuple(assignments), recipe.activations == "float")


def _first_rule(recipe: Recipe, place: _Place) -> Rule | None:
    rules = (r for r in recipe.rules if r.matches(place.role, str(place.weight.name)))
    return next(rules, None)


def _decide(place: _Place, rule: Rule | None, target: Target, places: list[_Place], recipe: Recipe) -> Assignment | str:
    """The assignment of one place, or what is wrong."""
    if place.is_lookup:
        return _decide_lookup(place, rule, target, places, recipe)
    if rule is None or rule.quantize is None:
        return _assignment(place, Action.KEEP, rule.reason if rule and rule.reason else "no rule asks for it")
    spec = rule.quantize
    verdict = target.takes_weights(spec.bits, spec.block_size, symmetric=spec.symmetric)
    return _assignment(place, Action.QUANTIZE, spec=spec, target=target) if verdict else verdict.reason


def _decide_lookup(
    place: _Place, rule: Rule | None, target: Target, places: list[_Place], recipe: Recipe
) -> Assignment | str:
    """An embedding table: shares the head's bytes when tied and the target can look them up, else follows its rule."""
    heads = [p for p in places if not p.is_lookup and p.dims == place.dims and place.shares(p)]
    head_rule = _first_rule(recipe, heads[0]) if heads else None
    spec = head_rule.quantize if head_rule else None
    if spec is not None:
        verdict = _lookup_verdict(place, target, spec)
        if verdict:
            return _assignment(place, Action.TIE, f"shares the bytes of {heads[0].node.name}", spec, target)
        if rule is None or rule.quantize is None:
            return _kept_table(place, target, verdict.reason)
    if rule is None or rule.quantize is None:
        return _kept_table(place, target, rule.reason if rule and rule.reason else "no rule asks for it")
    verdict = _lookup_verdict(place, target, rule.quantize)
    return _assignment(place, Action.QUANTIZE, spec=rule.quantize, target=target) if verdict else verdict.reason


def _kept_table(place: _Place, target: Target, reason: str) -> Assignment:
    """A table in float keeps the element type that the checkpoint stores, where the target looks it up."""
    values = place.values
    stored = values.of.dtype if isinstance(values, Cast) else values.dtype
    narrow = stored.itemsize < values.dtype.itemsize and target.takes_lookup(str(stored))
    kept = _assignment(place, Action.KEEP, f"{reason}; kept as the checkpoint stores it" if narrow else reason)
    return replace(kept, dtype=str(stored)) if narrow else kept


def _lookup_verdict(place: _Place, target: Target, spec: WeightSpec) -> Verdict:
    op = target.takes_op("GatherBlockQuantized", "com.microsoft")
    if not op:
        return op
    width = place.dims[1]
    if width % spec.block_size:  # the operator would return the padding of the last block too
        return Verdict(False, f"rows of {width} are no whole number of blocks of {spec.block_size}")
    return target.takes_gather(spec.bits)


def _assignment(
    place: _Place, action: Action, reason: str = "", spec: WeightSpec | None = None, target: Target | None = None
) -> Assignment:
    chosen = spec.format(negative_scales=target.takes_negative_scales(spec.bits)) if spec and target else None
    rows, columns = place.dims
    return Assignment(
        component=place.component.name,
        role=place.role,
        node=str(place.node.name),
        weight=str(place.weight.name),
        out_features=rows,
        in_features=columns,
        action=action,
        reason=reason,
        format=chosen,
        solver=spec.solver if spec else None,
    )
