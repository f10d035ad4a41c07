"""Calibrate layer by layer: each product is solved on the inputs that it will have in the package.

One walk goes through a component. When it reaches a group of linears, everything before has run with its final levels,
so that the solver sees and compensates the quantization error of earlier layers (GPTQ's "true sequential" order); then
the group is solved and the walk continues with the quantized weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hvlc.calibration.group_walk import statistics_of, steps_of, walk_groups
from hvlc.calibration.observation import Observation, Observers
from hvlc.calibration.segments import Segment, Walk, Weights, cut_segments
from hvlc.calibration.state import State, pending
from hvlc.errors import HvlcError, Progress
from hvlc.graphs.bundle import Component
from hvlc.graphs.linears import LinearGroup, linear_groups, up_to_last
from hvlc.graphs.plan import Action, Assignment
from hvlc.solvers.registry import CALIBRATED, SOLVERS
from hvlc.weights.formats import Levels, WeightFormat
from hvlc.weights.lazy import Expression, expression_of
from hvlc.weights.quantized import SolvedWeight

_ROWS = 8192  # of a matrix that are solved at a time: a head has a hundred thousand


@dataclass(frozen=True)
class Calibration:
    """One component's calibration.

    Attributes:
        component: its graph, with all positions' outputs where a package keeps the last one's only.
        feeds: its inputs by name, for each sample or batch of samples.
        assignments: the plan's, by node name.
        state: where solved matrices are kept.
        threads: of onnxruntime.
        spool: directory for the values of many samples; None keeps them in memory.
        observation: what the package reads of its values.
    """

    component: Component
    feeds: Sequence[Mapping[str, np.ndarray]]
    assignments: Mapping[str, Assignment]
    state: State
    threads: int
    spool: Path | None = None
    observation: Observation | None = None
    _solved: dict[str, SolvedWeight] = field(default_factory=dict)

    def run(self, progress: Progress, wanted: Sequence[ir.Value] = ()) -> Walk:
        """Solve every matrix whose solver needs data, and observe what is not known yet.

        Args:
            progress: told what is done.
            wanted: values to keep for the caller; without any, the walk ends at the last matrix or observed value.

        Returns:
            The walk, with the wanted values; what was solved and observed is in the state.

        Raises:
            UserError: values are not finite.
        """
        groups = linear_groups(self.component.graph)  # of rounded ones too: a segment's weights are in memory
        observers, watched = self._observers()
        if not wanted and not watched:
            groups = up_to_last(groups, lambda group: any(self._calibrated(node) for node in group.nodes))
        path = cut_segments(self.component.graph, [g.input for g in groups], wanted, watched)
        walk = Walk(self.feeds, self.threads, self.spool)
        step = steps_of(progress, self.component.name, path, walk)
        for group in walk_groups(walk, path, groups, self._weights, step, observers.observe):
            self._solve(group, walk)
        if watched:
            observers.put(self.state)
        return walk

    def _observers(self) -> tuple[Observers, list[ir.Value]]:
        """Observers and the values that they look at; none when all is known.

        Raises:
            HvlcError: the graph has no such values (a bug).
        """
        wanted = self.observation
        if wanted is None or not wanted.names or wanted.is_known(self.state.directory):
            return Observers(Observation(self.component.name)), []
        graph = self.component.graph
        values = {v.name: v for v in [*graph.inputs, *(v for node in graph for v in node.outputs)]}
        missing = [name for name in wanted.names if name not in values]
        if missing:
            raise HvlcError("calibration.value", f"{self.component.name} has no {', '.join(missing)}", "report it")
        return Observers(wanted), [values[name] for name in wanted.names]

    def _calibrated(self, node: ir.Node) -> bool:
        """Whether the plan gives a node to a solver that needs data."""
        assignment = self.assignments.get(str(node.name))
        return assignment is not None and assignment.action is Action.QUANTIZE and assignment.solver in CALIBRATED

    def _solve(self, group: LinearGroup, walk: Walk) -> None:
        """Solve what of a group is not in the state yet."""
        mine = [node for node in group.nodes if self._calibrated(node)]
        for node in mine:
            self._recall(node)
        missing = [node for node in mine if str(node.name) not in self._solved]
        if not missing:
            return
        statistics = statistics_of(group, walk)
        prepared: dict[tuple[Any, ...], Any] = {}
        for node in missing:
            assignment = self.assignments[str(node.name)]
            solver, format = CALIBRATED[str(assignment.solver)], _format(assignment)
            key = (solver.name, format, assignment.options)
            if key not in prepared:
                prepared[key] = solver.prepare(statistics, format, solver.options(**dict(assignment.options)))
            weight = expression_of(_weight(node)).transpose()
            self.state.put(self._key(node), solve_rows(weight, prepared[key]))
            self._recall(node)

    def _recall(self, node: ir.Node) -> None:
        assignment = self.assignments[str(node.name)]
        shape = (assignment.out_features, assignment.in_features)
        known = pending(self.state.directory, self._key(node), shape, _format(assignment))
        if self.state.has(known):
            self._solved[str(node.name)] = known

    def _key(self, node: ir.Node) -> str:
        return matrix_key(self.component.name, str(node.name))

    def _weights(self, segment: Segment) -> Weights:
        """The values that a segment's matrices have in the package, as the graph reads them: `[in, out]`."""
        readers = {node.inputs[1]: node for node in segment.nodes if node.op_type == "MatMul"}

        def values(weight: ir.Value) -> np.ndarray | None:
            node = readers.get(weight)
            assignment = self.assignments.get(str(node.name)) if node else None
            if node is None or assignment is None or assignment.action is not Action.QUANTIZE:
                return None
            solved = self._solved.get(str(node.name))
            if solved is not None:
                return solved.dequantize().T
            if assignment.solver not in SOLVERS:
                return None
            rows = np.ascontiguousarray(expression_of(_weight(node)).transpose().read())
            return SOLVERS[assignment.solver](rows, _format(assignment)).dequantize(rows.shape[1]).T

        return values


def matrix_key(component: str, node: str) -> str:
    """The name of a matrix in a state."""
    return f"{component}.{node}"


def _weight(node: ir.Node) -> ir.TensorProtocol:
    value = node.inputs[1]
    if value is None or value.const_value is None:
        raise HvlcError("calibration.weight", f"{node.name} has no weight", "report it")
    return value.const_value


def _format(assignment: Assignment) -> WeightFormat:
    if assignment.format is None:
        raise HvlcError("plan.incomplete", f"{assignment.weight} has no format", "report it")
    return assignment.format


def solve_rows(weight: Expression, solve: Callable[[np.ndarray], Levels]) -> Levels:
    """Levels of a matrix `[out, in]`, solved some rows at a time."""
    rows = weight.shape[0]
    parts = [
        solve(np.ascontiguousarray(weight.rows(start, min(start + _ROWS, rows)))) for start in range(0, rows, _ROWS)
    ]
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Levels(
        np.concatenate([part.levels for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
        parts[0].format,
    )
