"""Find channel factors (AWQ, SmoothQuant) on the float model, in a walk of its own before any matrix is solved.

All solvers get the model with the factors folded in afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hvlc.calibration.group_walk import statistics_of, steps_of, walk_groups
from hvlc.calibration.scaling import Rounding, awq_factors, scaled_statistics, smooth_factors
from hvlc.calibration.segments import Walk, cut_segments
from hvlc.calibration.state import Pending, State, key_path
from hvlc.errors import HvlcError, Progress
from hvlc.graphs.bundle import Component
from hvlc.graphs.linears import LinearGroup, inverse_factors, linear_groups, operand, up_to_last, values_of
from hvlc.solvers.registry import SOLVERS
from hvlc.solvers.statistics import InputStatistics
from hvlc.weights.formats import WeightFormat

_ROUNDING = "rtn"  # what a search takes for the quantization of any solver


@dataclass(frozen=True)
class Search:
    """Settings of `hvlc.calibration.scaling.awq_factors`.

    Attributes:
        exponents: size of the searched grid.
        rows: of each weight that are looked at.
    """

    exponents: int
    rows: int


@dataclass(frozen=True)
class ScaledGroup:
    """Linears of one input that get factors.

    Attributes:
        component: that has them.
        input: name of the value that they read.
        nodes: their names, in graph order.
        channels: int64 `[in]`, the channel of what makes the input that each channel is made of.
        smooth: exponent of `hvlc.calibration.scaling.smooth_factors`, where that is asked for.
        awq: a search, where that is asked for; after smoothing.
        formats: of those that are quantized, by the name of the node.
    """

    component: str
    input: str
    nodes: tuple[str, ...]
    channels: np.ndarray
    smooth: float | None
    awq: Search | None
    formats: Mapping[str, WeightFormat]

    @property
    def key(self) -> str:
        """Key of the factors in a state."""
        return f"factors.{self.component}.{self.nodes[0]}"

    @property
    def searched(self) -> int:
        """Rows that a search rounds, each exponent's apart; at most."""
        return self.awq.exponents * self.awq.rows * len(self.formats) if self.awq else 0

    def pending(self, directory: Path) -> tuple[Pending, Pending]:
        """The factors as lazy expressions, which have to be found by the time they are read.

        Args:
            directory: of the state.

        Returns:
            float32 `[in]` of the group, and float32 `[channels]` of what makes its input, as `inverse_factors` says.
        """
        path, dtype = key_path(directory, self.key), np.dtype(np.float32)
        made = (int(self.channels.max()) + 1,)
        return Pending(path, "factors", self.channels.shape, dtype), Pending(path, "inverse", made, dtype)

    def is_known(self, state: State) -> bool:
        """Whether a state has the factors."""
        return all(part.is_there() for part in self.pending(state.directory))

    def keep(self, state: State, factors: np.ndarray) -> None:
        """Put the factors, float32 `[in]`, into a state."""
        state.put_arrays(self.key, {"factors": factors, "inverse": inverse_factors(factors, self.channels)})


def find_factors(group: ScaledGroup, weights: Mapping[str, np.ndarray], statistics: InputStatistics) -> np.ndarray:
    """Factors of one group: those that smooth it, times those that a search finds behind them.

    Args:
        group: and what is asked for it.
        weights: float32 `[out, in]` of each of its linears, by the name of the node.
        statistics: of the input in the float model.

    Returns:
        float32 `[in]`, above 0.
    """
    factors = np.ones(group.channels.size, np.float32)
    if group.smooth is not None:
        factors = smooth_factors(list(weights.values()), statistics, group.channels, exponent=group.smooth)
        statistics = scaled_statistics(statistics, factors)
    if group.awq is None:
        return factors
    searched = [weights[name] * factors for name in group.formats]
    roundings = [_rounding(format) for format in group.formats.values()]
    found = awq_factors(
        searched, roundings, statistics, group.channels, exponents=group.awq.exponents, rows=group.awq.rows
    )
    return factors * found.factors


def _rounding(format: WeightFormat) -> Rounding:
    return lambda rows: SOLVERS[_ROUNDING](rows, format).dequantize(rows.shape[1])


@dataclass(frozen=True)
class FactorSearch:
    """One component's factors.

    Attributes:
        component: its float graph, nothing folded, with all positions' outputs where a package keeps the last one's.
        feeds: its inputs by name, for each sample or batch of samples.
        groups: those of the component that get factors.
        state: where factors are kept.
        threads: of onnxruntime.
        spool: directory for the values of many samples; None keeps them in memory.
    """

    component: Component
    feeds: Sequence[Mapping[str, np.ndarray]]
    groups: Sequence[ScaledGroup]
    state: State
    threads: int
    spool: Path | None = None
    _missing: dict[str, ScaledGroup] = field(default_factory=dict)

    def run(self, progress: Progress, wanted: Sequence[ir.Value] = ()) -> Walk:
        """Find the factors of every group that are not in the state yet.

        Args:
            progress: told what is done.
            wanted: values to keep for the caller; without any, the walk ends at the last group.

        Returns:
            The walk, with the wanted values; what was found is in the state.
        """
        self._missing.update((g.nodes[0], g) for g in self.groups if not g.is_known(self.state))
        groups = linear_groups(self.component.graph)  # of others too: a segment's weights are in memory
        if not wanted:
            groups = up_to_last(groups, lambda group: _first(group) in self._missing)
        path = cut_segments(self.component.graph, [g.input for g in groups], wanted)
        walk = Walk(self.feeds, self.threads, self.spool)
        step = steps_of(progress, f"{self.component.name} (factors)", path, walk)
        for group in walk_groups(walk, path, groups, step=step):
            if _first(group) in self._missing:
                self._find(group, walk)
        return walk

    def _find(self, linears: LinearGroup, walk: Walk) -> None:
        group = self._missing[_first(linears)]
        names = tuple(str(node.name) for node in linears.nodes)
        if names != group.nodes:
            raise HvlcError("calibration.factors", f"{', '.join(names)} were {', '.join(group.nodes)}", "report it")
        weights = {
            name: np.ascontiguousarray(values_of(operand(node, 1)).transpose().read())
            for name, node in zip(names, linears.nodes, strict=True)
        }
        group.keep(self.state, find_factors(group, weights, statistics_of(linears, walk)))


def _first(linears: LinearGroup) -> str:
    return str(linears.nodes[0].name)
