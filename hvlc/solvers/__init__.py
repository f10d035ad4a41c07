"""Solvers choose the levels of a weight matrix: data-free, or with statistics of the product's inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvlc.solvers.adaround import AdaRoundOptions, prepare_adaround
from hvlc.solvers.gptq import GptqOptions, prepare_gptq
from hvlc.solvers.hqq import half_quadratic
from hvlc.solvers.k_quant import k_quant
from hvlc.solvers.paired import round_in_pairs
from hvlc.solvers.rtn import extreme_on_last_level, round_to_nearest
from hvlc.solvers.statistics import InputStatistics
from hvlc.weights.formats import Levels, WeightFormat
from hvlc.weights.quantized import Solver

#: Data-free ones, by the name that recipes give.
SOLVERS = {
    solver.name: solver
    for solver in (
        Solver("rtn", round_to_nearest, 7e-9),
        Solver("minmax", extreme_on_last_level, 2e-9),
        Solver("hqq", half_quadratic, 1.8e-8),
        Solver("pairs", round_in_pairs, 2e-8),
        Solver("k_quant", k_quant, 1.4e-8),
    )
}


@dataclass(frozen=True)
class CalibratedSolver:
    """Solver that uses statistics of the product's inputs.

    Attributes:
        name: as recipes give it.
        options: dataclass of what a recipe may set.
        prepare: from statistics of the inputs, a format and options, a function that solves rows float32
            `[rows, in]`; a row's levels do not depend on the rows beside it. Matrices that share an input share it.
    """

    name: str
    options: type
    prepare: Callable[[InputStatistics, WeightFormat, Any], Callable[[np.ndarray], Levels]]


#: Solvers that need calibration data.
CALIBRATED = {
    solver.name: solver
    for solver in (
        CalibratedSolver("gptq", GptqOptions, prepare_gptq),
        CalibratedSolver("adaround", AdaRoundOptions, prepare_adaround),
    )
}
