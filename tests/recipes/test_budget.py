"""A budget holds, nothing that fits it does less damage, and the recipe that comes of it says the same."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvlc.errors import UserError
from hvlc.graphs.bundle import Role
from hvlc.graphs.plan import Action, Assignment
from hvlc.recipes import budget as module
from hvlc.recipes.budget import (
    Knapsack,
    Option,
    allocate,
    explicit,
    is_budgeted,
    parse_budget,
    uniform,
    with_budget,
)
from hvlc.recipes.loading import load_recipe, shipped_recipes
from hvlc.recipes.schema import BudgetSpec, FormatSpec, Recipe, dump_recipe
from hvlc.results.sensitivity import Candidate, Part, Sensitivity

options = st.lists(st.builds(Option, st.integers(0, 60), st.floats(0, 1, width=16)), min_size=1, max_size=3)
problems = st.lists(options, min_size=1, max_size=5)
INT4, INT8 = FormatSpec(bits=4, block_size=32), FormatSpec(bits=8, block_size=128)


def brute_force(parts: list[list[Option]], budget: int) -> float | None:
    """Least damage of everything that fits."""
    damages = [
        sum(o.damage for o in choice) for choice in itertools.product(*parts) if sum(o.size for o in choice) <= budget
    ]
    return min(damages, default=None)


@given(problems, st.integers(-1, 320))
def test_the_best_choice_is_that_of_brute_force(parts: list[list[Option]], budget: int) -> None:
    problem = Knapsack(parts)
    chosen, expected = problem.best(budget), brute_force(parts, budget)
    if expected is None:
        assert chosen is None
        assert budget < problem.least
        return
    assert chosen is not None
    assert sum(parts[i][j].size for i, j in enumerate(chosen)) == problem.size(chosen) <= budget
    assert sum(parts[i][j].damage for i, j in enumerate(chosen)) == pytest.approx(expected, abs=1e-12)


def test_eight_parts_of_four_formats_are_exact() -> None:
    import random

    draw = random.Random(7)
    parts = [[Option(draw.randrange(1000, 5000), draw.random()) for _ in range(4)] for _ in range(8)]
    problem = Knapsack(parts)
    for budget in (problem.least, problem.least + 777, 20_000, 26_000, 50_000):
        assert problem.damage(problem.best(budget)) == pytest.approx(brute_force(parts, budget), abs=1e-12)


@settings(deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda n: st.lists(
            st.lists(st.builds(Option, st.integers(0, 5000), st.floats(0, 1, width=16)), min_size=n, max_size=n),
            min_size=1,
            max_size=6,
        )
    ),
    st.booleans(),
)
def test_budgets_hold_more_room_is_never_worse_and_uniform_choices_are_never_better(
    parts: list[list[Option]], coarse_grid: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if coarse_grid:
            patch.setattr(module, "_CELLS", 7)
        problem = Knapsack(parts)
    most = sum(max(o.size for o in each) for each in parts)
    last = float("inf")
    for budget in range(problem.least, most + 200, max(1, (most - problem.least) // 12)):
        chosen = problem.best(budget)
        assert chosen == problem.best(budget)
        assert problem.size(chosen) <= budget
        assert problem.damage(chosen) <= last + 1e-12
        last = problem.damage(chosen)
        for index in range(len(parts[0])):
            if sum(each[index].size for each in parts) <= budget:
                assert last <= sum(each[index].damage for each in parts) + 1e-12
    least = sum(min(o.damage for o in each) for each in parts)
    assert problem.damage(problem.best(10**6)) == pytest.approx(least, abs=1e-9)
    assert problem.best(problem.least - 1) is None


def test_of_equal_damages_the_smaller_is_chosen() -> None:
    assert Knapsack([[Option(9, 0.5), Option(4, 0.5)]]).best(100) == (1,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4.5bpw", {"bits_per_weight": 4.5}), (" 40 MB", {"megabytes": 40}), ("1MiB", {"megabytes": 1.048576})],
)
def test_a_budget_of_the_command_line(text: str, expected: dict[str, float]) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "4.5", "bpw", "-4bpw", "0bpw", "4.5 bits", "1e3MB", "40mb", "nanbpw"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"budget\.syntax"):
        parse_budget(text)


def recipe(**more: object) -> Recipe:
    rules = [
        {"role": "decoder", "weights": "*.special*", "quantize": {"bits": 8, "block_size": 64}, "fixed": True},
        {"role": "decoder", "weights": "*.kept*", "reason": "a test"},
        {
            "role": "decoder",
            "quantize": {
                "bits": 4,
                "block_size": 64,
                "scale_type": "float32",
                "solver": "gptq",
                "options": {"damping": 1},
            },
        },
        {"role": "embedding", "optional": True, "quantize": {"bits": 8, "block_size": 16}},
    ]
    data = {"schema_version": 1, "name": "mine", "description": "", "rules": rules, **more}
    return Recipe.parse(data, "mine.yaml")


def part(name: str, size: int, losses: tuple[float, float], tables: tuple[int, int] = (0, 0)) -> Part:
    candidates = [
        Candidate(bits=4, block_size=32, stored_bytes=size // 2, table_bytes=tables[0], output_error=1, loss=losses[0]),
        Candidate(bits=8, block_size=128, stored_bytes=size, table_bytes=tables[1], output_error=1, loss=losses[1]),
    ]
    weights = (f"{name}.a.weight", f"{name}[b].weight")
    return Part(component="model", role=Role.DECODER, weights=weights, elements=size, candidates=tuple(candidates))


def found(*parts: Part) -> Sensitivity:
    names = {"checkpoint": "c", "recipe": "mine", "target": "cpu", "solver": "rtn", "calibration": "text"}
    return Sensitivity(**names, calibration_digest="d", tokens=9, fixed_bytes=1000, parts=parts)


PARTS = found(part("x", 4000, (3.0, 0.0)), part("y", 4000, (1.0, 0.0)), part("z", 8000, (2.0, 0.0), (500, 0)))


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        ({"bits_per_weight": 4}, (0, 0, 0)),
        ({"bits_per_weight": 5}, (1, 0, 0)),
        ({"bits_per_weight": 6}, (1, 1, 0)),
        ({"bits_per_weight": 7}, (1, 0, 1)),
        ({"bits_per_weight": 30}, (1, 1, 1)),
        ({"megabytes": 0.0095}, (0, 0, 0)),  # 1000 fixed, 8000 of matrices, 500 of the table that z at 4 bits leaves
        ({"megabytes": 0.0115}, (1, 0, 0)),
        ({"megabytes": 0.0150}, (1, 0, 1)),
    ],
)
def test_a_budget_is_spent_where_it_helps_most(budget: dict[str, float], chosen: tuple[int, ...]) -> None:
    assert allocate(PARTS, BudgetSpec(**budget)) == chosen


@pytest.mark.parametrize(
    ("budget", "least"), [({"bits_per_weight": 3.999}, "4bpw"), ({"megabytes": 0.009499}, "0.01MB")]
)
def test_an_impossible_budget_names_the_smallest(budget: dict[str, float], least: str) -> None:
    with pytest.raises(UserError, match=r"budget\.too_small") as error:
        allocate(PARTS, BudgetSpec(**budget))
    assert least in error.value.cause
    assert allocate(PARTS, BudgetSpec(**parse_budget(error.value.fix.split(",")[0].split()[1]))) == (0, 0, 0)


def test_the_explicit_recipe_gives_every_weight_its_format_and_leaves_the_rest(tmp_path: Path) -> None:
    asked = recipe(budget={"bits_per_weight": 5})
    made = explicit(asked, PARTS, (1, 0, 1), "chosen")
    assert (made.name, made.budget) == ("chosen", None)

    def spec_of(role: Role, weight: str):
        return next(rule for rule in made.rules if rule.matches(role, weight)).quantize

    for name, format in (("x", INT8), ("y", INT4), ("z", INT8)):
        for weight in (f"{name}.a.weight", f"{name}[b].weight"):
            spec = spec_of(Role.DECODER, weight)
            assert (spec.bits, spec.block_size) == (format.bits, format.block_size)
            assert (spec.scale_type, spec.solver, spec.options) == ("float32", "gptq", {"damping": 1})
    assert spec_of(Role.DECODER, "model.special.weight").block_size == 64
    assert spec_of(Role.DECODER, "model.kept.weight") is None
    assert spec_of(Role.EMBEDDING, "x.a.weight").block_size == 16
    (tmp_path / "mine.yaml").write_text(dump_recipe(made))
    assert load_recipe(str(tmp_path / "mine.yaml")) == made


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_dumped_recipe_loads_as_it_was(name: str, tmp_path: Path) -> None:
    asked = with_budget(load_recipe(name), "5bpw")
    (tmp_path / "mine.yaml").write_text(dump_recipe(asked))
    assert load_recipe(str(tmp_path / "mine.yaml")) == asked


def test_a_budget_speaks_of_what_rules_quantize_and_do_not_fix() -> None:
    def assigned(weight: str, role: Role = Role.DECODER, solver: str = "rtn", action: Action = Action.QUANTIZE) -> bool:
        return is_budgeted(recipe(), Assignment("m", role, "n", weight, 1, 1, action, solver=solver))

    assert assigned("any.weight")
    assert not assigned("any.special.weight")
    assert not assigned("any.weight", solver="stored")
    assert not assigned("any.weight", role=Role.EMBEDDING)
    assert not assigned("any.weight", action=Action.KEEP)


def test_uniform_changes_the_same_rules() -> None:
    made = uniform(recipe(budget={"megabytes": 1}), INT8, "hqq").rules
    assert [(r.quantize.bits, r.quantize.block_size) if r.quantize else None for r in made] == [
        (8, 64), None, (8, 128), (8, 16)
    ]  # fmt: skip
    assert (made[2].quantize.solver, made[2].quantize.options) == ("hqq", {})
    assert uniform(recipe(), INT8, "gptq").rules[2].quantize.options == {"damping": 1}


def test_another_budget_keeps_the_other_settings() -> None:
    asked = recipe(budget={"megabytes": 40, "formats": [INT8.model_dump()], "samples": 3})
    assert with_budget(asked, "5bpw").budget == BudgetSpec(bits_per_weight=5, formats=(INT8,), samples=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"bits_per_weight": 5, "megabytes": 4},
        {"bits_per_weight": 0},
        {"megabytes": 4, "formats": []},
        {"megabytes": 4, "formats": [INT4.model_dump(), INT4.model_dump()]},
        {"megabytes": 4, "formats": [{"bits": 5, "block_size": 32}]},
        {"megabytes": 4, "size": 1},
    ],
)
def test_a_wrong_budget_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"spec\.invalid"):
        recipe(budget=wrong)


def test_lpbq_is_for_four_bits_in_a_budget_too() -> None:
    spec = {"bits": 4, "block_size": 32, "scale_type": "lpbq"}
    asked = Recipe.parse(
        {"schema_version": 1, "name": "n", "description": "d", "rules": [{"role": "decoder", "quantize": spec}]}, "x"
    )
    found = [uniform(asked, format).rules[0].quantize for format in (INT4, INT8)]
    assert [one and one.scale_type for one in found] == ["lpbq", "float32"]
    for one in found:
        assert one is not None
        assert one.format(64, negative_scales=False).bits == one.bits
