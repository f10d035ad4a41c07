"""The walk of calibration: from one group of linears to the next, stopping where a group's input is known.

Solvers, searches for factors and trials of sensitivity differ in what they do at a stop and in the weights that they
walk on with.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np

from hvlc.calibration.segments import Observer, Segment, Walk, Weights, in_float
from hvlc.errors import Progress, UserError
from hvlc.graphs.linears import LinearGroup
from hvlc.solvers.statistics import Accumulator, InputStatistics


def walk_groups(
    walk: Walk,
    path: Sequence[Segment],
    groups: Sequence[LinearGroup],
    weights: Callable[[Segment], Weights] = lambda segment: in_float,
    step: Callable[[], None] = lambda: None,
    observe: Observer = lambda name, values: None,
) -> Iterator[LinearGroup]:
    """Run segments in order; yields each group as soon as its input is known, before anything that reads it runs.

    Args:
        walk: at the beginning of the path.
        path: as `cut_segments` makes it of the groups' inputs; what comes after the last group is run too.
        groups: in the order of the path.
        weights: values of a segment's weights, asked for when all groups before it have been yielded.
        step: called after each sample of each segment.
        observe: shown the observed values of each sample.
    """
    for index, segment in enumerate(path):
        walk.run(segment, weights(segment), step, observe)
        if index < len(groups):
            yield groups[index]


def steps_of(progress: Progress, what: str, path: Sequence[Segment], walk: Walk) -> Callable[[], None]:
    """Tell how many of all samples of all segments are done, one more at each call."""
    done, total = count(1), len(path) * len(walk)
    return lambda: progress(what, next(done), total)


def statistics_of(group: LinearGroup, walk: Walk) -> InputStatistics:
    """Statistics of a group's input over all samples of a walk that has come to it.

    Raises:
        UserError: the values are not finite.
    """
    first = walk.value(group.input, 0)
    accumulator = Accumulator(first.shape[-1])
    for sample in range(len(walk)):
        accumulator.add(walk.value(group.input, sample))
    statistics = accumulator.finish()
    if not np.isfinite(statistics.gram).all():
        cause = f"what {group.nodes[0].name} is given is infinite, no number, or too large to square in float32"
        raise UserError("calibration.overflow", cause, "check the checkpoint: it overflows in float32")
    return statistics
