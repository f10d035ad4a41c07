"""Solvers choose the levels of a weight matrix."""

from hvlc.calibration.solvers.rtn import extreme_on_last_level, round_to_nearest
from hvlc.quantized import Solver

SOLVERS = {
    solver.name: solver
    for solver in (Solver("rtn", round_to_nearest, 7e-9), Solver("minmax", extreme_on_last_level, 2e-9))
}
