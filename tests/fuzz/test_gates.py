"""Damaged gates, files of gates and evaluations: read or the user's error."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.evaluation.gates import parse_gate, read_gates
from hvlc.results.files import read_evaluation
from hvlc.results.measurement import SCHEMA_VERSION
from tests.fuzz.mutation import attempt, check, commands, mutated
from tests.fuzz.values import VALUES, replaced

SMALL, LARGE = 300, 5000
GATES = [
    "exact_match[base] >= 0.98x",
    "surely size <= 40MB",
    "kl <= 2e-2 nats",
    "p95_ttft < 0.3 s",
    "perplexity <= 1.05x",
]
FILE = b"""schema_version: 1
gates:
- gate: exact_match >= 0.98x
  reason: what the product needs
- {gate: size <= 40MB}
"""
NUMBERS = [
    "1e308",
    "1e-999",
    "1e99999999999999999999",
    "9" * 400,
    "nan",
    "inf",
    "-1",
    "0",
    "0.0",
    ".",
    "1_000",
    "0x10",
    "1e",
    "\u0661",
]
EVALUATION: dict[str, Any] = {
    "schema_version": SCHEMA_VERSION,
    "name": "a",
    "runs_on": "cpu",
    "task": "t",
    "peak_memory_bytes": None,
    "size_bytes": 1,
    "bits_per_weight": 4.5,
    "compilation": None,
    "provenance": {"a": "b"},
    "kind": "text",
    "text_digest": "00",
    "window": 8,
    "tokens": 14,
    "perplexity": {"value": 1.0, "low": 1.0, "high": 1.0, "n": 2, "method": "bootstrap"},
    "windows": [{"nll": 0.0, "tokens": 7}, {"nll": 0.0, "tokens": 7}],
    "agreement": None,
}


def gate(source: random.Random) -> str:
    text = source.choice(GATES)
    if source.random() < 0.4:
        operator = source.choice((">=", "<=", "<", ">", "="))
        return (
            f"{text.split()[0]} {operator} {source.choice(NUMBERS)}{source.choice(('', 'x', 'GB', '%', 's', 'bits'))}"
        )
    return mutated(text.encode(), source).decode("utf-8", "replace")


def gates_are_read_or_refused(tmp_path: Path, count: int) -> None:
    path, ends = tmp_path / "gates.yaml", set()
    for number in range(count):
        source = random.Random(number)
        text = gate(source)
        path.write_bytes(mutated(FILE, source))
        try:
            ends.add(attempt(lambda: parse_gate(text), UserError))  # noqa: B023
            ends.add(attempt(lambda: read_gates([text], path), UserError))  # noqa: B023
        except BaseException as error:
            error.add_note(f"case {number}: {text!r}")
            raise
    assert ends == {"read", "refused"}


def test_damaged_gates_are_read_or_refused(tmp_path: Path) -> None:
    gates_are_read_or_refused(tmp_path, SMALL)


@pytest.mark.slow
def test_many_damaged_gates_are_read_or_refused(tmp_path: Path) -> None:
    gates_are_read_or_refused(tmp_path, LARGE)


def evaluation(number: int) -> bytes:
    source = random.Random(number)
    if source.random() < 0.6:
        return json.dumps(replaced(EVALUATION, source, [*VALUES, 1e300, -1e300, 10**400])).encode()
    return mutated(json.dumps(EVALUATION).encode(), source)


def evaluations_are_read_or_refused(tmp_path: Path, count: int) -> None:
    path, ends = tmp_path / "evaluation.json", set()
    for number in range(count):
        path.write_bytes(evaluation(number))
        try:
            ends.add(attempt(lambda: read_evaluation(path), UserError))
        except BaseException as error:
            error.add_note(f"case {number}")
            raise
    assert ends == {"read", "refused"}


def test_an_undamaged_evaluation_is_read(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert read_evaluation(tmp_path / "evaluation.json").tokens == 14  # type: ignore[union-attr]


def test_damaged_evaluations_are_read_or_refused(tmp_path: Path) -> None:
    evaluations_are_read_or_refused(tmp_path, SMALL)


@pytest.mark.slow
def test_many_damaged_evaluations_are_read_or_refused(tmp_path: Path) -> None:
    evaluations_are_read_or_refused(tmp_path, LARGE)


def commands_end_well(package: Path, scratch: Path, numbers: range) -> None:
    (scratch / "task.jsonl").write_text('{"question": "q", "answers": ["a"]}\n')
    (scratch / "good.json").write_text(json.dumps(EVALUATION | {"name": "good"}))
    with commands(scratch) as child:
        for number in numbers:
            source = random.Random(number)
            (scratch / "gates.yaml").write_bytes(mutated(FILE, source))
            (scratch / "bad.json").write_bytes(evaluation(number))
            given = ("--gates", "gates.yaml") if number % 2 else (f"--gate={gate(source)}",)
            check(child.run("eval", package, "--task", "task.jsonl", "--max-new-tokens", "1", *given))
            check(child.run("compare", "good.json", "bad.json", *given))


def test_commands_with_damaged_gates_end_well(tmp_path: Path, tiny_w4a16: Path) -> None:
    commands_end_well(tiny_w4a16, tmp_path, range(15))


@pytest.mark.slow
def test_many_commands_with_damaged_gates_end_well(tmp_path: Path, tiny_w4a16: Path) -> None:
    commands_end_well(tiny_w4a16, tmp_path, range(100_000, 100_100))
