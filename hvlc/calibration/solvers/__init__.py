"""Solvers: float matrix in, integer levels and scales out."""

from collections.abc import Callable

import numpy as np

from hvlc.calibration.solvers.rtn import round_to_nearest
from hvlc.plan import WeightFormat
from hvlc.quantized import Levels

Solver = Callable[[np.ndarray, WeightFormat], Levels]

SOLVERS: dict[str, Solver] = {"rtn": round_to_nearest}
