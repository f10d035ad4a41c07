"""The order of passes: every list of every recipe for every target checks, and a wrong one names what is wrong."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hvlc.passes
from hvlc.errors import HvlcError
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import Kind
from hvlc.graphs.plan import CacheType, Plan
from hvlc.passes import lists
from hvlc.passes.base import BundlePass, ComponentPass, Outcome, Pass
from hvlc.passes.lists import (
    Quantities,
    RefusedNodes,
    Sizes,
    fixing_passes,
    float_passes,
    quantizing_passes,
    static_passes,
    walked_passes,
)
from hvlc.passes.order import PassList
from hvlc.passes.prepare.rotate_heads import RotateHeads
from hvlc.passes.prepare.rotate_residual import RotateResidual
from hvlc.passes.prepare.scale_channels import Factors, ScaleChannels
from hvlc.passes.static.fix_shapes import FixShapes
from hvlc.passes.traits import EXPORTED, Trait
from hvlc.recipes.loading import load_recipe, shipped_recipes
from hvlc.recipes.schema import Preparation, Recipe, RotateSpec
from hvlc.solvers import SOLVERS
from hvlc.targets import Target, load_target, shipped_targets
from hvlc.weights.lazy import Constant
from tests.helpers.facts import facts_of

ONES = Constant(np.ones(4, np.float32))
FACTORS = {("decoder", "x"): Factors(ONES, ONES)}
SIZES = Sizes(context=1024, padding=0)


def plan_of(recipe: Recipe, target: Target) -> Plan:
    """A plan without weights, which lists of passes do not look at."""
    return Plan(recipe.name, target.name, (), activations=recipe.activation_format, kv_cache=recipe.kv_cache)


def lists_of(recipe: Recipe, target: Target, kind: Kind) -> list[PassList]:
    """Every list of a build, and that of a calibration."""
    facts = facts_of(kind)
    early = float_passes(facts, target, recipe.prepare)
    scaled = FACTORS if recipe.prepare.smooth or recipe.prepare.awq else {}
    plan = plan_of(recipe, target)
    found = [early, walked_passes(early, scaled)]
    found.append(quantizing_passes(early, facts, target, plan, Quantities(factors=scaled)))
    if target.fixed_shapes:
        sizes = SIZES if target.fixes(Role.DECODER) and kind is not Kind.VISION else None
        found.append(static_passes(found[-1], target, sizes, facts.image.rule if facts.image else None))
    return found


TARGETS = {name: load_target(name) for name in shipped_targets()}
RECIPES = {name: load_recipe(name) for name in shipped_recipes()}


@pytest.mark.parametrize(("recipe", "target"), list(product(sorted(RECIPES), sorted(TARGETS))))
def test_the_lists_of_every_recipe_for_every_target_are_in_order(recipe: str, target: str) -> None:
    for kind in Kind:
        found = lists_of(RECIPES[recipe], TARGETS[target], kind)
        assert all(found[0].passes)
        for some in found:
            assert accepts(some.given, some.passes)


def test_the_lists_of_every_preparation_are_in_order() -> None:
    recipe = RECIPES["w4a16-rtn"]
    for rotate, awq in product((None, RotateSpec(), RotateSpec(heads=True)), (None, RECIPES["w4a16-awq"].prepare.awq)):
        prepared = recipe.model_copy(update={"prepare": Preparation(rotate=rotate, awq=awq)})
        names = [step.name for some in lists_of(prepared, TARGETS["cpu"], Kind.LANGUAGE) for step in some]
        assert ("RotateResidual" in names) == (rotate is not None)
        assert names.count("ScaleChannels") == (2 if awq else 0)  # of the package, and of the walk


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_lists_that_fix_models_of_others_are_in_order(target: str) -> None:
    for late, norms in product((False, True), repeat=2):
        some = fixing_passes(TARGETS[target], RefusedNodes(late=late, norms=norms))
        assert accepts(some.given, some.passes)


def accepts(given: frozenset[Trait], passes: Sequence[Pass]) -> bool:
    """Whether the last thing that happened to each required trait made it true: the rule, said another way."""
    for place, step in enumerate(passes):
        for trait in step.requires:
            made = max((i for i in range(place) if trait in passes[i].promises), default=-1 if trait in given else -2)
            lost = max((i for i in range(place) if trait in passes[i].ends - passes[i].promises), default=-2)
            if made == -2 or lost > made:
                return False
    return True


def longest() -> PassList:
    """All passes of a build that has nearly all of them, as one list."""
    recipe, target = RECIPES["npu-w4a16-kv8"], TARGETS["qnn-sm8750"]
    found = lists_of(recipe, target, Kind.VISION_LANGUAGE)
    del found[1]  # what a calibration walks through is another bundle
    prepared = (RotateResidual(), RotateHeads(), ScaleChannels(FACTORS))
    structure, *others = found
    return PassList("all", EXPORTED, (*structure, *prepared, *(step for some in others for step in some)))


LONGEST = longest()


def test_the_list_for_permutations_is_long() -> None:
    assert len(LONGEST.passes) > 20
    assert sum(bool(step.requires) for step in LONGEST) > 15


@settings(max_examples=300)
@given(st.permutations(LONGEST.passes), st.integers(1, len(LONGEST.passes)))
def test_a_permutation_is_accepted_only_if_every_requirement_holds(order: list[Pass], count: int) -> None:
    passes = tuple(order[:count])
    if accepts(EXPORTED, passes):
        PassList("any", EXPORTED, passes)
    else:
        with pytest.raises(HvlcError, match=r"^\[pass\.order\] internal error"):
            PassList("any", EXPORTED, passes)


@settings(max_examples=100)
@given(st.data())
def test_a_swap_of_neighbours_is_accepted_only_if_every_requirement_holds(data: st.DataObject) -> None:
    passes = list(LONGEST.passes)
    for place in data.draw(st.lists(st.integers(0, len(passes) - 2), max_size=4)):
        passes[place], passes[place + 1] = passes[place + 1], passes[place]
    if accepts(EXPORTED, passes):
        PassList("any", EXPORTED, tuple(passes))
    else:
        with pytest.raises(HvlcError, match=r"^\[pass\.order\]"):
            PassList("any", EXPORTED, tuple(passes))


def dependent(passes: Sequence[Pass]) -> Iterator[tuple[int, int]]:
    """Places of the first pass that promises something, and of a later one that requires it."""
    for late, step in enumerate(passes):
        for trait in step.requires - EXPORTED:
            yield next(i for i in range(late) if trait in passes[i].promises), late


@pytest.mark.parametrize(("early", "late"), sorted(set(dependent(LONGEST.passes))))
def test_a_pass_before_the_one_that_it_relies_on_is_refused(early: int, late: int) -> None:
    passes = list(LONGEST.passes)
    moved = passes.pop(late)
    passes.insert(early, moved)
    with pytest.raises(HvlcError, match=rf"{moved.name} requires .*, which \w+ promises only after it"):
        PassList("planted", EXPORTED, tuple(passes))


@dataclass(frozen=True)
class Tiles(BundlePass):
    promises = frozenset({Trait.FRONT_GRAPH})

    def transform(self, bundle: Bundle) -> Outcome:
        return Outcome(1)


@dataclass(frozen=True)
class Reads(ComponentPass):
    requires = frozenset({Trait.FRONT_GRAPH})

    def transform(self, component: Component) -> Outcome:
        return Outcome(1)


@dataclass(frozen=True)
class Breaks(BundlePass):
    ends = frozenset({Trait.FRONT_GRAPH})

    def transform(self, bundle: Bundle) -> Outcome:
        return Outcome(1)


@pytest.mark.parametrize(
    ("passes", "cause"),
    [
        ((Reads(), Tiles()), "which Tiles promises only after it"),
        ((Tiles(), Breaks(), Reads()), "which Breaks ends before it"),
        ((Tiles(), Reads(), Breaks(), Tiles(), Breaks(), Reads()), "which Breaks ends before it"),
        ((Reads(),), "which AddFront or Tiles promises, and no pass before it"),
    ],
)
def test_the_error_names_the_pass_the_trait_and_where_to_look(passes: tuple[Pass, ...], cause: str) -> None:
    with pytest.raises(HvlcError) as caught:
        PassList("planted", frozenset(), passes)
    assert caught.value.code == "pass.order"
    assert caught.value.exit_code == 1
    assert caught.value.cause == f"internal error: in phase 'planted', Reads requires a front graph, {cause}"


def test_what_nobody_promises_is_said() -> None:
    with pytest.raises(HvlcError, match="which no pass promises"):
        PassList("planted", frozenset(), (FixShapes(8, 8),))  # an export alone has symbolic shapes


def test_a_list_runs_in_its_order_and_goes_on_from_the_one_before() -> None:
    bundle = Bundle("none")
    first = PassList("first", frozenset(), (Tiles(),))
    second = first.then("second", Reads(), Breaks())
    assert first.ensured == {Trait.FRONT_GRAPH}
    assert second.ensured == frozenset()
    first.run(bundle)
    second.run(bundle)
    assert [entry.step for entry in bundle.journal] == ["Tiles", "Breaks"]  # no component, nothing to read
    with pytest.raises(HvlcError, match="Reads requires a front graph"):
        second.then("third", Reads())


def shipped_passes() -> set[str]:
    """Every class of a pass that hvlc/passes defines."""
    for module in pkgutil.walk_packages(hvlc.passes.__path__, "hvlc.passes."):
        importlib.import_module(module.name)
    found, waiting = set[str](), [BundlePass, ComponentPass]
    while waiting:
        kinds = waiting.pop().__subclasses__()
        waiting += kinds
        found |= {kind.__name__ for kind in kinds if kind.__module__.startswith("hvlc.passes.")}
    return found


def test_every_pass_is_entered_in_a_list() -> None:
    source = ast.parse(Path(str(lists.__file__)).read_text("utf-8"))
    made = {n.func.id for n in ast.walk(source) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert shipped_passes() <= made


def test_every_trait_is_required_by_some_pass_and_holds_from_the_start_or_is_promised() -> None:
    shipped_passes()
    kinds = [k for base in (BundlePass, ComponentPass) for k in base.__subclasses__() if "hvlc." in k.__module__]
    assert set(Trait) == {trait for kind in kinds for trait in kind.requires}
    assert set(Trait) == {trait for kind in kinds for trait in kind.promises} | EXPORTED


def test_a_cache_of_integers_and_solvers_reach_the_passes_that_use_them() -> None:
    solver = SOLVERS["rtn"]
    early = float_passes(facts_of(Kind.LANGUAGE), TARGETS["cpu"], Preparation())
    plan = Plan("recipe", "cpu", (), kv_cache=CacheType.INT8)
    found = quantizing_passes(early, facts_of(Kind.LANGUAGE), TARGETS["cpu"], plan, Quantities({"mine": solver}))
    assert [step.name for step in found] == [
        "QuantizeWeights",
        "QuantizeKVCache",
        "PackProjections",
        "KeepStoredEmbeddingType",
    ]
    assert found.passes[0].solvers == {"mine": solver}  # type: ignore[attr-defined]
