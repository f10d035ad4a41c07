"""Measure how quantizing one part of a model alone changes the part's output and the model's logits.

One walk goes through the float model. Where a part reads its input, the walk branches: the part is quantized, and the
rest of the graph runs in float from there. A trial thus costs half a forward pass on average, and only one segment's
weights are in memory, read once for all formats.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hvlc.calibration.engine import solve_rows
from hvlc.calibration.group_walk import statistics_of, walk_groups
from hvlc.calibration.segments import Segment, Walk, WalkCache, cut_segments, in_float, walk
from hvlc.errors import HvlcError
from hvlc.evaluation.distributions import kl_divergence
from hvlc.graphs.bundle import Component
from hvlc.graphs.linears import LinearGroup, linear_groups, operand, values_of
from hvlc.graphs.plan import Assignment
from hvlc.solvers.registry import CALIBRATED, SOLVERS
from hvlc.solvers.statistics import InputStatistics
from hvlc.weights.formats import Levels
from hvlc.weights.lazy import Expression

_ROWS = 4096  # of a matrix whose error is measured at a time

#: Feeds of a component; the tables that are looked up on the way have these values, by component and node.
Feeds = Callable[[Mapping[tuple[str, str], np.ndarray]], Sequence[Mapping[str, np.ndarray]]]
#: Function to the whole model's logits from a component's output for each of its feeds, called once for each branch.
Answers = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Trial:
    """A part in one format.

    Attributes:
        products: what is done to its matrices.
        tables: what is done to tables that share their bytes; at most one matrix has any.
        compare: compare logits, where any are; otherwise the output error is all that is found.
    """

    products: tuple[Assignment, ...]
    tables: tuple[Assignment, ...] = ()
    compare: bool = True


@dataclass(frozen=True)
class Damage:
    """Result of a trial.

    Attributes:
        output_error: see `hvlc.results.sensitivity.Candidate`.
        loss: in nats per token, or None where answers are not compared.
    """

    output_error: float
    loss: float | None


@dataclass(frozen=True)
class FloatLogits:
    """Logits of the float model.

    Attributes:
        logits: float32 `[batch, n, vocabulary]` of each sequence, or batch of sequences of one length.
        scored: of each, the positions whose answers count.
        tokens: positions that count in the whole set, which a loss is the mean over; sequences that a component has no
            part in are not among the logits, and lose nothing.
    """

    logits: Sequence[np.ndarray]
    scored: Sequence[slice]
    tokens: int

    def of(self, sequences: Sequence[int]) -> "FloatLogits":
        """The answers to some of the sequences; what a component has no part in is nothing that it loses."""
        return FloatLogits([self.logits[i] for i in sequences], [self.scored[i] for i in sequences], self.tokens)

    def loss(self, others: Iterable[np.ndarray]) -> float:
        """Mean divergence of other logits for the same sequences, in nats per token."""
        total = 0.0
        for mine, other, positions in zip(self.logits, others, self.scored, strict=True):
            total += float(kl_divergence(mine[:, positions], other[:, positions]).sum())
        return total / self.tokens


def output_error(weight: Expression, quantized: np.ndarray, gram: np.ndarray) -> tuple[float, float]:
    """Squared error of a product's output and its square, both means over the inputs: `tr(E G E^T)`, `tr(W G W^T)`.

    Args:
        weight: float32 `[out, in]`.
        quantized: float32 `[out, in]`.
        gram: float32 `[in, in]`, mean of `x x^T`.
    """
    error = whole = 0.0
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight.rows(start, min(start + _ROWS, weight.shape[0]))
        missed = quantized[start : start + _ROWS] - rows
        error += float(np.einsum("ij,ij->", missed @ gram, missed, dtype=np.float64))
        whole += float(np.einsum("ij,ij->", rows @ gram, rows, dtype=np.float64))
    return max(error, 0.0), max(whole, 0.0)


@dataclass(frozen=True)
class Probe:
    """One component whose parts are tried.

    Attributes:
        component: its graph, with all positions' outputs where a package keeps the last one's only.
        feeds: its inputs for every sample.
        output: that the answers come from.
        answers: what the model says to the output.
        float_logits: the float model's answers to these feeds; None to leave them out and learn output errors alone.
        threads: of onnxruntime.
        spool: directory for large values.
        cache: what this walk shares with others.
    """

    component: Component
    feeds: Feeds
    output: ir.Value
    answers: Answers
    float_logits: FloatLogits | None
    threads: int
    spool: Path
    cache: WalkCache

    def costs(self, trials: Mapping[str, Sequence[Trial]]) -> Iterator[tuple[str, list[int]]]:
        """Cost of each trial of each part, in weights of the component's products that every token passes; 0 where
        answers are left out.
        """
        groups = linear_groups(self.component.graph)
        sizes = [sum(prod(values_of(operand(node, 1)).shape) for node in group.nodes) for group in groups]
        for index, group in enumerate(groups):
            for name in (str(node.name) for node in group.nodes if str(node.name) in trials):
                full = [sum(sizes) if trial.tables else sum(sizes[index:]) for trial in trials[name]]
                compared = [trial.compare and self.float_logits is not None for trial in trials[name]]
                yield name, [cost * compares for cost, compares in zip(full, compared, strict=True)]

    def run(self, trials: Mapping[str, Sequence[Trial]], found: Callable[[Trial, Damage], None]) -> None:
        """Try every part.

        Args:
            trials: by the name of a part's first node, none for parts that need no trial.
            found: told of each trial's damage, in order.
        """
        tried = {g: wanted for g in linear_groups(self.component.graph) if (wanted := _of_group(g, trials))}
        path = cut_segments(self.component.graph, [group.input for group in tried], [self.output])
        walked = Walk(self.feeds({}), self.threads, self.spool, self.cache)
        for index, group in enumerate(walk_groups(walked, path[:-1], list(tried)), 1):
            wanted, statistics = tried[group], statistics_of(group, walked)
            changed = [_Changed.by(trial, group, statistics) for trial in wanted]
            compared = [change for trial, change in zip(wanted, changed, strict=True) if trial.compare]
            losses = iter(self._losses(path, index, walked, compared))
            for trial, change in zip(wanted, changed, strict=True):
                found(trial, Damage(change.output_error, next(losses) if trial.compare else None))

    def _losses(
        self, path: Sequence[Segment], index: int, walked: Walk, changed: Sequence["_Changed"]
    ) -> list[float | None]:
        """The loss of each change of a group that the segment at `index` begins with."""
        if self.float_logits is None:
            return [None] * len(changed)
        branching = [change for change in changed if not change.tables]
        branched = iter(self._branched(path, index, walked, branching) if branching else ())
        return [self._again(path, change) if change.tables else next(branched) for change in changed]

    def _branched(
        self, path: Sequence[Segment], index: int, walked: Walk, changed: Sequence["_Changed"]
    ) -> list[float]:
        """Each change on a branch of its own up to its last product; from there all together."""
        last = max(i for i, segment in enumerate(path) if any(c.reads(segment) for c in changed))
        branches = [walked.branch() for _ in changed]
        outputs: Iterator[list[np.ndarray]]
        for branch, change in zip(branches, changed, strict=True):
            walk(path[index : min(last + 1, len(path) - 1)], branch, change.weights)
        if last == len(path) - 1:
            outputs = (o for b, c in zip(branches, changed, strict=True) for o in b.results(path[-1], c.weights))
        else:
            together = Walk.joined(branches)
            walk(path[last + 1 : -1], together, in_float)
            outputs = together.results(path[-1], in_float)
        return self._losses_of_logits(outputs, len(changed))

    def _again(self, path: Sequence[Segment], change: "_Changed") -> float:
        """A change that begins with a table: everything once more."""
        walked = Walk(self.feeds(change.tables), self.threads, self.spool, self.cache)
        walk(path[:-1], walked, change.weights)
        return self._losses_of_logits(walked.results(path[-1], change.weights), 1)[0]

    def _losses_of_logits(self, outputs: Iterator[list[np.ndarray]], branches: int) -> list[float]:
        if self.float_logits is None:
            raise HvlcError("sensitivity.answers", "answers are compared with nothing", "report it")
        logits = self.answers(output for (output,) in outputs)
        return [self.float_logits.loss(islice(logits, len(self.float_logits.logits))) for _ in range(branches)]


@dataclass(frozen=True)
class _Changed:
    """A part's matrices, quantized.

    Attributes:
        values: float32 `[in, out]` of each product's initializer, as the graph reads them, and of tables in the same
            graph, as they are looked up.
        tables: float32 `[rows, width]` of each table, by component and node.
        output_error: see `Damage`.
    """

    values: Mapping[ir.Value, np.ndarray]
    tables: Mapping[tuple[str, str], np.ndarray]
    output_error: float

    @classmethod
    def by(cls, trial: Trial, group: LinearGroup, statistics: InputStatistics) -> "_Changed":
        """Perform a trial."""
        nodes = {str(node.name): node for node in group.nodes}
        values: dict[ir.Value, np.ndarray] = {}
        tables: dict[tuple[str, str], np.ndarray] = {}
        error = whole = 0.0
        for assignment in trial.products:
            weight = operand(nodes[assignment.node], 1)
            rows = values_of(weight).transpose()
            quantized = _dequantized(rows, assignment, statistics)
            mine = output_error(rows, quantized, statistics.gram)
            error, whole = error + mine[0], whole + mine[1]
            values[weight] = quantized.T
            own = (assignment.component, assignment.node)
            tables |= {(t.component, t.node): quantized for t in trial.tables if t.shares == own}
        graph = group.nodes[0].graph
        for node in graph or ():
            if node.op_type == "Gather" and (trial.products[0].component, str(node.name)) in tables:
                values[operand(node, 0)] = tables[trial.products[0].component, str(node.name)]
        return cls(values, tables, error / whole if whole else 0.0)

    def weights(self, weight: ir.Value) -> np.ndarray | None:
        """The values that a weight has now, if it is one of these."""
        return self.values.get(weight)

    def reads(self, segment: Segment) -> bool:
        """Whether a segment reads one of these."""
        return any(weight in self.values for weight in segment.weights)


def _of_group(group: LinearGroup, trials: Mapping[str, Sequence[Trial]]) -> list[Trial]:
    return [trial for node in group.nodes for trial in trials.get(str(node.name), ())]


def _dequantized(weight: Expression, assignment: Assignment, statistics: InputStatistics) -> np.ndarray:
    """float32 `[out, in]`: what a solver makes of a matrix."""
    if assignment.format is None or assignment.solver is None:
        raise HvlcError("plan.incomplete", f"{assignment.weight} has no format", "report it")
    calibrated = CALIBRATED.get(assignment.solver)
    solve: Callable[[np.ndarray], Levels]
    if calibrated is None:
        solve = partial(SOLVERS[assignment.solver], format=assignment.format)
    else:
        options = calibrated.options(**dict(assignment.options))
        solve = calibrated.prepare(statistics, assignment.format, options)
    return solve_rows(weight, solve).dequantize(weight.shape[1])
