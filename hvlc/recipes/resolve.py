"""Resolve a recipe against a bundle and a target: return the plan, or report every problem at once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

import onnx_ir as ir

from hvlc.errors import HvlcError, TargetError, UserError, nearest, raise_all
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.plan import Action, Assignment, CacheType, Plan
from hvlc.graphs.stored_levels import prequantized_in
from hvlc.recipes.loading import load_recipe, shipped_recipes
from hvlc.recipes.schema import Recipe, Rule, WeightSpec
from hvlc.targets import Grain, Operation, Severity, SupportAnswer, Target, target_for
from hvlc.weights.formats import WeightFormat
from hvlc.weights.lazy import Cast, Expression, expression_of
from hvlc.weights.prequantized.matrix import STORED, Prequantized

_OTHER = "choose another recipe or target"
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
        """Role by which recipes name the weight; a table is an embedding also where it lies in the decoder's graph."""
        return Role.EMBEDDING if self.is_lookup else self.component.role

    def shares(self, other: "_Place") -> bool:
        """Whether both hold the same values, each in its own orientation."""
        if self.weight is other.weight or self.weight.name == other.weight.name:
            return True
        return self.matrix == other.matrix

    @property
    def values(self) -> Expression:
        """The weight's values."""
        if self.weight.const_value is None:
            raise HvlcError("plan.weight", f"{self.weight.name} has no value", "report it")
        return expression_of(self.weight.const_value)

    @property
    def matrix(self) -> Expression:
        """The same as `[out, in]`; a table is looked up by rows."""
        return self.values if self.is_lookup else self.values.transpose()

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
        place = _Place(component, node, weight)
        is_made = place.is_lookup and not any(place.values.stored())  # of cosines and sines, not of the checkpoint
        if weight.const_value.dtype == ir.DataType.FLOAT and not is_made:
            yield place


def resolve(
    recipe: Recipe, bundle: Bundle, target: Target, solvers: Iterable[str], options: Mapping[str, type] | None = None
) -> Plan:
    """Decide every weight.

    Args:
        recipe: the rules.
        bundle: the exported model; nothing in it changes.
        target: asked what it takes.
        solvers: names of the solvers at hand.
        options: the dataclass of what a recipe may set, by the name of the solver; other solvers have no options.

    Raises:
        UserError: a rule matches nothing, or names an unknown solver or a setting that the solver does not take.
        TargetError: the target cannot take what a rule asks for, with the shipped recipes that fit. Several problems
            come in one error.
    """
    options = options or {}
    plan, problems = _planned(recipe, bundle, target, set(solvers), options)
    if any(isinstance(problem, TargetError) for problem in problems):
        tried = {name: _planned(load_recipe(name), bundle, target, set(solvers), options) for name in shipped_recipes()}
        fitting = ", ".join(name for name, (_, found) in tried.items() if not found)
        fix = f"choose another target, or a recipe that fits this one: {fitting or 'none that is shipped'}"
        problems = [TargetError(p.code, p.cause, fix) if isinstance(p, TargetError) else p for p in problems]
    raise_all(problems)
    return plan


def _planned(
    recipe: Recipe, bundle: Bundle, target: Target, solvers: set[str], options: Mapping[str, type]
) -> tuple[Plan, list[HvlcError]]:
    """The plan, and everything that speaks against it."""
    problems = list(_solver_problems(recipe, solvers, options))
    assignments: list[Assignment] = []
    refused: dict[str, list[str]] = {}
    used: set[int] = set()
    places = [p for c in bundle.components.values() if c.role in _RESOLVED_ROLES for p in _places(c)]
    for place in places:
        rule = _first_rule(recipe, place)
        used.add(id(rule))
        decision = _decide(place, rule, target, places, recipe)
        if isinstance(decision, str):
            refused.setdefault(decision, []).append(str(place.weight.name))
        else:
            assignments.append(decision)
    for reason, weights in refused.items():
        more = f" and {len(weights) - 1} more weights" if len(weights) > 1 else ""
        cause = f"{weights[0]}{more}: {reason}"
        problems.append(TargetError("plan.target", cause, _OTHER))
    unused = [r for r in recipe.rules if id(r) not in used and not r.optional]
    if unused:
        names = "; ".join(f"{r.role} {r.weights!r}" for r in unused)
        cause = f"recipe {recipe.name}: rules that match no weight: {names}"
        problems.append(UserError("recipe.rule", cause, "correct or drop them"))
    static = recipe.activation_format
    plan = Plan(
        recipe.name,
        target.name,
        tuple(assignments),
        recipe.activations != "int8",
        static and replace(static, products=any(target.fixes(role) for role in static.roles)),
        recipe.kv_cache,
    )
    return plan, [*problems, *_runtime_problems(plan, target)]


def _solver_problems(recipe: Recipe, solvers: set[str], options: Mapping[str, type]) -> Iterator[HvlcError]:
    """Everything that is wrong with the solvers that a recipe names and with what it sets of them."""
    asked = [spec for rule in recipe.rules if rule.quantize for spec in rule.quantize.with_fallbacks()]
    for name in dict.fromkeys(spec.solver for spec in asked if spec.solver not in solvers):
        yield UserError("recipe.solver", f"no solver {name!r}", nearest(name, solvers))
    for spec in asked:
        if spec.solver in solvers and spec.options:
            yield from _option_problems(spec.solver, spec.options, options.get(spec.solver))


def _option_problems(solver: str, given: Mapping[str, bool | float], kind: type | None) -> Iterator[UserError]:
    """Everything that a solver's settings do not take."""
    if kind is None:
        cause = f"solver {solver} has no options, and the recipe sets {', '.join(given)}"
        yield UserError("recipe.option", cause, "leave them out")
        return
    known = {field.name: field.type for field in fields(kind)}
    problems = []
    for name, value in given.items():
        if name not in known:
            problems.append(UserError("recipe.option", f"solver {solver} has no option {name!r}", nearest(name, known)))
        elif isinstance(value, bool) is not (known[name] is bool):
            wanted = "true or false" if known[name] is bool else "a number"
            problems.append(UserError("recipe.option", f"{name} of {solver} is {value!r}", f"it takes {wanted}"))
    if not problems:
        try:
            kind(**given)
        except ValueError as error:
            problems.append(UserError("recipe.option", f"solver {solver}: {error}", "choose a value inside the range"))
    yield from problems


def _runtime_problems(plan: Plan, target: Target) -> Iterator[HvlcError]:
    """Everything that the target, or the QDQ form, does not take of a plan's activations and cache."""
    decoder = target_for(Role.DECODER, target)
    verdicts = [_cache_verdict(plan.kv_cache, decoder)] if plan.kv_cache is not CacheType.FLOAT else []
    if plan.activations is not None:
        homes = {home.name: home for role in plan.activations.roles if (home := target_for(role, target))}
        verdicts += [home.takes_activations(plan.activations.type) for home in homes.values()]
        for assignment in (a for a in plan.assignments if plan.is_static(a.role)):
            obstacle = assignment.format.static_obstacle(assignment.in_features) if assignment.format else ""
            verdicts.append(SupportAnswer(not obstacle, f"{assignment.weight}: {obstacle}"))
    for verdict in verdicts:
        if not verdict:
            yield TargetError("plan.target", verdict.reason, _OTHER)


def _cache_verdict(cache: CacheType, decoder: Target) -> SupportAnswer:
    """Whether a target's attention stores such a cache, or a graph of fixed shapes may write it itself."""
    written = decoder.fixed_shapes and decoder.writes_cache(cache.written)
    return SupportAnswer(True) if written else decoder.takes_cache(cache)


def _home(place: _Place, target: Target) -> Target:
    """Target of a weight. Where a decoder gets fixed shapes, its table becomes an embedding of its own."""
    leaves = place.is_lookup and target.fixes(Role.DECODER)
    return target_for(Role.EMBEDDING if leaves else place.component.role, target)


def _first_rule(recipe: Recipe, place: _Place) -> Rule | None:
    rules = (r for r in recipe.rules if r.matches(place.role, str(place.weight.name)))
    return next(rules, None)


def _decide(place: _Place, rule: Rule | None, target: Target, places: list[_Place], recipe: Recipe) -> Assignment | str:
    """The assignment of one place, or what is wrong."""
    if place.is_lookup:
        return _decide_lookup(place, rule, target, places, recipe)
    if rule is None or rule.quantize is None:
        return _assignment(place, Action.KEEP, rule.reason if rule and rule.reason else "no rule asks for it")
    home = _home(place, target)
    choice = _whole_blocks(_choice(place, rule.quantize, home, recipe), home, place, recipe)
    verdict = _takes(home, choice.format, place, recipe)
    return _assignment(place, Action.QUANTIZE, choice.reason, choice) if verdict else verdict.reason


@dataclass(frozen=True)
class _Choice:
    """Format and solver chosen for a weight."""

    format: WeightFormat
    solver: str
    options: tuple[tuple[str, float | bool], ...] = ()
    reason: str = ""


def _choice(place: _Place, spec: WeightSpec, target: Target, recipe: Recipe) -> _Choice:
    """The levels that the checkpoint stores, where the target takes them; else what the rule asks for, and why."""
    matrix, reason = place.matrix, ""
    if isinstance(matrix, Prequantized):
        verdicts = {format: _takes(target, format, place, recipe) for format in matrix.formats()}
        taken = next((format for format, verdict in verdicts.items() if verdict), None)
        if taken is not None:
            return _Choice(taken, STORED, reason=f"taken as stored: {matrix.origin}")
        refusal = next((verdict.reason for verdict in verdicts.values()), matrix.obstacle)
        reason = f"stored as {matrix.origin}: {refusal}; dequantized and quantized again"
    elif inner := next(prequantized_in(matrix), None):
        reason = f"stored as {inner.origin}: rewritten since; dequantized and quantized again"
    made = _made(place, spec, target, recipe)
    return replace(made, reason="; ".join(filter(None, (reason, made.reason))))


def _made(place: _Place, spec: WeightSpec, target: Target, recipe: Recipe) -> _Choice:
    """Format that a rule asks for, or its fallback where that does not fit the matrix or the target, and why."""
    format = spec.format(place.dims[1], negative_scales=False)
    if _takes_negative(target, format, place, recipe):
        format = format.with_negative_scales()
    if spec.fallback is not None and (obstacle := _obstacle(target, format, place, recipe)):
        made = _made(place, spec.fallback, target, recipe)
        return replace(made, reason="; ".join(filter(None, (f"not {format}: {obstacle}", made.reason))))
    return _Choice(format, spec.solver, tuple(sorted(spec.options.items())))


def _takes(target: Target, format: WeightFormat, place: _Place, recipe: Recipe) -> SupportAnswer:
    """Whether a product by a matrix of this format may run on the target."""
    width, static = place.dims[1], recipe.activation_format
    if static is not None and place.role in static.roles:
        grain = Grain(format.grain(width))
        taken = target.takes_product("MatMul", static.type, f"int{format.bits}", grain, width)
        if taken and format.negative_scales and not _takes_negative(target, format, place, recipe):
            return SupportAnswer(False, f"{target.name} takes no negative scales of a {grain} at {format.bits} bits")
        if not taken or grain is Grain.CHANNEL:
            return taken
    elif format.integer_product:
        return target.takes_integer_products()
    elif obstacle := format.product_obstacle(width):
        return SupportAnswer(False, obstacle)
    verdict = target.takes_weights(format.bits, format.block_size, format.needs)
    if verdict and format.negative_scales and not target.takes_negative_scales(format.bits):
        return SupportAnswer(False, f"{target.name} takes no negative scales at {format.bits} bits")
    return verdict and _takes_rows(target, format, place, recipe)


def _obstacle(target: Target, format: WeightFormat, place: _Place, recipe: Recipe) -> str:
    """Reason why a matrix cannot be stored in a format; empty when it can."""
    static = recipe.activation_format
    if static is not None and place.role in static.roles and (found := format.static_obstacle(place.dims[1])):
        return found
    verdict = _takes(target, format, place, recipe)
    return "" if verdict else verdict.reason


def _takes_negative(target: Target, format: WeightFormat, place: _Place, recipe: Recipe) -> bool:
    """Whether a matrix may have negative scales, in the form that the recipe gives its product."""
    static = recipe.activation_format
    if static is None or place.role not in static.roles:
        return target.takes_negative_scales(format.bits)
    grain = Grain(format.grain(place.dims[1]))
    signed = target.takes_negative_product("MatMul", static.type, f"int{format.bits}", grain)
    return signed and (grain is Grain.CHANNEL or target.takes_negative_scales(format.bits))


def _decide_lookup(
    place: _Place, rule: Rule | None, target: Target, places: list[_Place], recipe: Recipe
) -> Assignment | str:
    """An embedding table: shares the head's bytes when tied and the target can look them up, else follows its rule."""
    heads = [p for p in places if not p.is_lookup and p.dims == place.dims and place.shares(p)]
    home = _home(place, target)
    head_rule = _first_rule(recipe, heads[0]) if heads else None
    if head_rule and head_rule.quantize:
        head = _home(heads[0], target)
        choice = _whole_blocks(_choice(heads[0], head_rule.quantize, head, recipe), head, heads[0], recipe)
        verdict = _lookup_verdict(place, home, choice.format)
        if verdict:
            tied = _assignment(place, Action.TIE, f"shares the bytes of {heads[0].node.name}", choice)
            return replace(tied, shares=(heads[0].component.name, str(heads[0].node.name)))
        if rule is None or rule.quantize is None:
            return _kept_table(place, home, verdict.reason)
    if rule is None or rule.quantize is None:
        return _kept_table(place, home, rule.reason if rule and rule.reason else "no rule asks for it")
    choice = _choice(place, rule.quantize, home, recipe)
    verdict = _lookup_verdict(place, home, choice.format)
    return _assignment(place, Action.QUANTIZE, choice.reason, choice) if verdict else verdict.reason


def _whole_blocks(choice: _Choice, target: Target, place: _Place, recipe: Recipe) -> _Choice:
    """The choice in the largest smaller blocks that divide the rows, where the target takes no rest of a row."""
    asked = choice.format
    if choice.solver == STORED or asked.integer_product or _takes_rows(target, asked, place, recipe):
        return choice
    sizes = {size for known in target.block_formats if known.bits == asked.bits for size in known.block_sizes}
    smaller = [asked.in_blocks(size) for size in sorted(sizes, reverse=True) if size < asked.block_size]
    fitting = next((format for format in smaller if _takes(target, format, place, recipe)), None)
    if fitting is None:
        return choice
    rest = f"blocks of {fitting.block_size}: {place.dims[1]} input features are not a multiple of {asked.block_size}"
    return replace(choice, format=fitting, reason="; ".join(filter(None, (choice.reason, rest))))


def _takes_rows(target: Target, format: WeightFormat, place: _Place, recipe: Recipe) -> SupportAnswer:
    """Whether a product in blocks (MatMulNBits) is taken for the sizes of this matrix."""
    static = recipe.activation_format
    if static is not None and place.role in static.roles:
        return SupportAnswer(True)  # a product of integers
    outputs, inputs = place.dims
    sizes = {"K": inputs, "N": outputs, "bits": format.bits, "block_size": format.block_size}
    found = target.findings(Operation("MatMulNBits", "com.microsoft", sizes))
    refused = next((one.reason for one in found if one.severity is Severity.REFUSAL), "")
    return SupportAnswer(not refused, f"{inputs} input features in blocks of {format.block_size}: {refused}")


def _kept_table(place: _Place, target: Target, reason: str) -> Assignment:
    """A table in float keeps the element type that the checkpoint stores, where the target looks it up."""
    values = place.values
    stored = values.of.dtype if isinstance(values, Cast) else values.dtype
    narrow = stored.itemsize < values.dtype.itemsize and target.takes_lookup(str(stored))
    kept = _assignment(place, Action.KEEP, f"{reason}; kept as the checkpoint stores it" if narrow else reason)
    return replace(kept, dtype=str(stored)) if narrow else kept


def _lookup_verdict(place: _Place, target: Target, format: WeightFormat) -> SupportAnswer:
    op = target.takes_op("GatherBlockQuantized", "com.microsoft")
    if not op:
        return op
    obstacle = format.lookup_obstacle(place.dims[1])
    return SupportAnswer(False, obstacle) if obstacle else target.takes_gather(format.bits)


def _assignment(place: _Place, action: Action, reason: str, choice: _Choice | None = None) -> Assignment:
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
        format=choice.format if choice else None,
        solver=choice.solver if choice else None,
        options=choice.options if choice else (),
    )
