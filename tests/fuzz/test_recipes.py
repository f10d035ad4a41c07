"""Damaged recipes: a recipe or the user's error, all problems of a file together, in linear time."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hvlc.errors import UserError
from hvlc.inputs.documents import dump_yaml
from hvlc.recipes.budget import parse_budget
from hvlc.recipes.loading import load_recipe, shipped_recipes
from tests.fuzz.mutation import attempt, check, commands, mutated
from tests.fuzz.values import VALUES, replaced

SMALL, LARGE = 40, 1000
SEEDS = [path.read_bytes() for path in shipped_recipes().values()]
PARSED = [yaml.safe_load(seed) for seed in SEEDS]
PLANTED = [
    "!!bool x",
    "!!python/object/apply:os.system [true]",
    "2024-13-45",
    "&a [*a]",
    "9" * 5000,
    ".inf",
    "0x" + "f" * 4000,
]
PLANTED += [
    "[" * 1500 + "]" * 1500,
    '"\\ud800"',
    "? [a]\n: b",
    "!!binary x",
    "!!timestamp 2024-99-99",
    "<<: 1",
    "1:99:99",
]


def case(number: int) -> bytes:
    source = random.Random(number)
    match source.randrange(3):
        case 0:
            return mutated(source.choice(SEEDS), source)
        case 1:
            lines = source.choice(SEEDS).decode().split("\n")
            at = source.randrange(len(lines))
            lines[at] = lines[at].partition(":")[0] + ": " + source.choice(PLANTED)
            return "\n".join(lines).encode()
        case _:
            content: Any = replaced(source.choice(PARSED), source, [v for v in VALUES if not isinstance(v, bytes)])
            return dump_yaml(content).encode("utf-8", "surrogatepass")


def recipes_are_read_or_refused(tmp_path: Path, count: int) -> None:
    path, ends = tmp_path / "mine.yaml", set()
    for number in range(count):
        path.write_bytes(case(number))
        try:
            ends.add(attempt(lambda: load_recipe(str(path)), UserError))
        except BaseException as error:
            error.add_note(f"case {number}")
            raise
    assert ends == {"read", "refused"}


def test_damaged_recipes_are_read_or_refused(tmp_path: Path) -> None:
    recipes_are_read_or_refused(tmp_path, SMALL)


@pytest.mark.slow
def test_many_damaged_recipes_are_read_or_refused(tmp_path: Path) -> None:
    recipes_are_read_or_refused(tmp_path, LARGE)


COSTLY = {
    "10,000 keys": "".join(f"k{index}: 1\n" for index in range(10_000)),
    "8,000 rules": "rules:\n" + "- {role: decoder}\n" * 8000,
    "aliases": "a: &a [x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "a key of 400 kB": "k" * 400_000 + ": 1",
    "brackets": "[" * 200_000,
    "spaces": "a:" + " " * 400_000 + "b",
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_recipes_are_refused_in_seconds_and_few_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.yaml").write_text(COSTLY[name])
    began = time.process_time()
    with pytest.raises(UserError) as error:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert time.process_time() - began < 15
    assert len(error.value.cause) < 8000


BUDGETS = [
    "",
    "0MB",
    "0bpw",
    "-1MB",
    "1e9MB",
    "nanMB",
    "infbpw",
    "9" * 400 + "MB",
    "9" * 5000 + "bpw",
    "65bpw",
    "1.MB",
    "١MB",
]


@pytest.mark.parametrize("text", BUDGETS)
def test_budgets_out_of_bounds_are_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_budget(text)
    assert error.value.code == "budget.syntax"
    assert len(error.value.cause) < 300


def commands_end_well(scratch: Path, numbers: range) -> None:
    with commands(scratch) as child:
        for number in numbers:
            (scratch / "mine.yaml").write_bytes(case(number))
            check(child.run("recipes", "check", "mine.yaml"), (0, 2))
            if number % 5 == 0:
                check(child.run("plan", "--recipe", "mine.yaml"))
    assert {path.name for path in scratch.iterdir()} == {"mine.yaml"}


def test_commands_with_damaged_recipes_end_well(tmp_path: Path) -> None:
    commands_end_well(tmp_path, range(10))


@pytest.mark.slow
def test_many_commands_with_damaged_recipes_end_well(tmp_path: Path) -> None:
    commands_end_well(tmp_path, range(100_000, 100_100))
