"""Damaged targets: a target that answers questions or the user's error, in linear time."""

import json
import random
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.targets.loading import load_target, shipped_targets
from tests.fuzz.mutation import attempt, check, commands, mutated
from tests.fuzz.values import VALUES, replaced

SMALL, LARGE = 100, 2000
SEEDS = [path.read_bytes() for path in shipped_targets().values()]
PLANTED = ["9" * 5000, "2024-13-45", "2024-01-01", "inf", "nan", "1e999", "[" * 1500 + "]" * 1500, "{a={b={c=1}}}"]
PLANTED += ["0x" + "f" * 4000, '"\\ud800"', '"\\U0010FFFF"', "'''", "07:32:00", "[1, 'a']", "-9223372036854775809"]


def toml(value: Any) -> str:
    """A value as TOML, tables inline; TOML has no null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return '""' if value is None else json.dumps(value)


def case(number: int) -> bytes:
    source = random.Random(number)
    seed = source.choice(SEEDS)
    match source.randrange(3):
        case 0:
            return mutated(seed, source)
        case 1:
            lines = seed.decode().split("\n")
            at = source.choice([at for at, line in enumerate(lines) if " = " in line])
            lines[at] = lines[at].partition(" = ")[0] + " = " + source.choice(PLANTED)
            return "\n".join(lines).encode()
        case _:
            content = replaced(tomllib.loads(seed.decode()), source, VALUES)
            return "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in content.items()).encode()


def targets_are_read_or_refused(tmp_path: Path, count: int) -> None:
    path, ends = tmp_path / "mine.toml", set()
    for number in range(count):
        path.write_bytes(case(number))
        try:
            ends.add(attempt(lambda: load_target(str(path)).model_dump_json(), UserError))
        except BaseException as error:
            error.add_note(f"case {number}")
            raise
    assert ends == {"read", "refused"}


def test_damaged_targets_are_read_or_refused(tmp_path: Path) -> None:
    targets_are_read_or_refused(tmp_path, SMALL)


@pytest.mark.slow
def test_many_damaged_targets_are_read_or_refused(tmp_path: Path) -> None:
    targets_are_read_or_refused(tmp_path, LARGE)


COSTLY = {
    "30,000 keys": "".join(f"k{index} = 1\n" for index in range(30_000)),
    "30,000 tables": "".join(f"[t{index}]\n" for index in range(30_000)),
    "nested keys": ".".join(["a"] * 5000) + " = 1",
    "nested tables": "".join(f"[{'.'.join(['a'] * depth)}]\n" for depth in range(1, 600)),
    "brackets": "a = " + "[" * 200_000,
    "a long integer": "schema_version = " + "9" * 400_000,
    "spaces": "a =" + " " * 400_000 + "b",
    "a long date": "a = 2024-01-01T00:00:00." + "9" * 400_000,
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_targets_are_refused_in_seconds_and_few_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.toml").write_text(COSTLY[name])
    began = time.process_time()
    with pytest.raises(UserError) as error:
        load_target(str(tmp_path / "mine.toml"))
    assert time.process_time() - began < 15
    assert len(error.value.cause) < 8000


def commands_end_well(scratch: Path, numbers: range) -> None:
    with commands(scratch) as child:
        for number in numbers:
            (scratch / "mine.toml").write_bytes(case(number))
            check(child.run("targets", "show", "mine.toml"), (0, 2))
            if number % 5 == 0:
                check(child.run("plan", "--target", "mine.toml"))
    assert {path.name for path in scratch.iterdir()} == {"mine.toml"}


def test_commands_with_damaged_targets_end_well(tmp_path: Path) -> None:
    commands_end_well(tmp_path, range(12))


@pytest.mark.slow
def test_many_commands_with_damaged_targets_end_well(tmp_path: Path) -> None:
    commands_end_well(tmp_path, range(100_000, 100_100))
