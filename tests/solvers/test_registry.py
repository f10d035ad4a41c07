"""Solvers by name: ours, neural-compressor's, and what the latter cannot do, told by the plan."""

import importlib.util

import numpy as np
import pytest

from hvlc.graphs.bundle import Role
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.solvers import neural_compressor
from hvlc.solvers.registry import CALIBRATED, SOLVERS, solver_problems
from hvlc.solvers.statistics import Accumulator
from hvlc.weights.formats import WeightFormat, weight_format

installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_compressor") is None, reason="neural-compressor is not installed"
)


def assigned(solver: str, format: WeightFormat, action: Action = Action.QUANTIZE) -> Assignment:
    return Assignment("model", Role.DECODER, "node", "weight", 64, 64, action, format=format, solver=solver)


def plan(*assignments: Assignment) -> Plan:
    return Plan("recipe", "cpu", assignments)


def test_every_name_stands_for_itself_and_for_one_kind_of_solver() -> None:
    for solvers in (SOLVERS, CALIBRATED):
        assert all(solver.name == name for name, solver in solvers.items())
    assert not set(SOLVERS) & set(CALIBRATED)
    assert {"rtn", "minmax", "hqq", "k_quant", "inc/rtn", "inc/hqq"} <= set(SOLVERS)
    assert {"gptq", "adaround", "inc/gptq"} <= set(CALIBRATED)


@installed
def test_what_neural_compressor_cannot_do_is_told_once_for_each_reason() -> None:
    refused = assigned("inc/hqq", weight_format(4, 32))
    problems = solver_problems(plan(refused, refused, assigned("rtn", weight_format(4, 32))))
    assert [p.code for p in problems] == ["solver.format"]
    assert "inc/hqq" in problems[0].cause


def test_what_is_kept_or_ours_is_no_problem() -> None:
    kept = assigned("inc/hqq", weight_format(4, 32), Action.KEEP)
    assert not solver_problems(plan(kept, assigned("gptq", weight_format(4, 32))))


def test_a_missing_package_is_a_problem_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_compressor.importlib.util, "find_spec", lambda name: None)
    problems = solver_problems(plan(assigned("inc/rtn", weight_format(4, 32))))
    assert [p.code for p in problems] == ["install.neural_compressor"]


@installed
def test_calibrated_ones_are_prepared_with_their_own_options() -> None:
    rng = np.random.default_rng(0)
    accumulator = Accumulator(64)
    accumulator.add(rng.normal(size=(256, 64)).astype(np.float32))
    statistics, weight = accumulator.finish(), rng.normal(size=(8, 64)).astype(np.float32)
    for solver in CALIBRATED.values():
        levels = solver.prepare(statistics, weight_format(4, 32), solver.options())(weight)
        error = np.square(levels.dequantize(64) - weight).mean()
        assert 0 < error < 0.05, solver.name
