"""Registry of the solvers that a recipe may name: hvlc's own and neural-compressor's."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hvlc import solvers
from hvlc.errors import HvlcError, UserError
from hvlc.graphs.plan import Action, Assignment, Plan
from hvlc.solvers import CalibratedSolver, neural_compressor
from hvlc.solvers.statistics import InputStatistics
from hvlc.weights.formats import Levels, WeightFormat

_OTHERS = "inc/"


@dataclass(frozen=True)
class NoOptions:
    """Options of a solver that has none."""


def _prepare_inc_gptq(
    statistics: InputStatistics, format: WeightFormat, options: NoOptions
) -> Callable[[np.ndarray], Levels]:
    return lambda weight: neural_compressor.gptq(weight, format, statistics.gram)


#: Data-free ones.
SOLVERS = {**solvers.SOLVERS, **neural_compressor.DATA_FREE}

#: Solvers that need calibration data.
CALIBRATED = {**solvers.CALIBRATED, "inc/gptq": CalibratedSolver("inc/gptq", NoOptions, _prepare_inc_gptq)}


def solver_problems(plan: Plan) -> list[HvlcError]:
    """Problems of a plan that neural-compressor cannot perform, one per solver and reason."""
    found: dict[str, HvlcError] = {}
    for assignment in plan.assignments:
        problem = _problem(assignment)
        if problem is not None:
            found.setdefault(problem.cause, problem)
    return list(found.values())


def _problem(assignment: Assignment) -> HvlcError | None:
    solver, format = assignment.solver, assignment.format
    if assignment.action is not Action.QUANTIZE or format is None or not (solver or "").startswith(_OTHERS):
        return None
    try:
        neural_compressor.check(str(solver), format, assignment.in_features)
    except UserError as error:
        return error
    return None
