"""Cost of a calibration, told before it starts: roughly, and on the safe side for memory."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import Kind
from hvlc.graphs.linears import LinearGroup, linear_groups, operand, up_to_last, values_of
from hvlc.graphs.plan import Action, Plan
from hvlc.results.calibration_set import VisualSize

if TYPE_CHECKING:
    from hvlc.calibration.samples import CalibrationSet

_FLOAT = 4  # bytes
_GRAMS = 5  # the Gram matrix, damped, read backwards, its factor, and that read forwards
_WEIGHTS = 2  # copies of a segment's weights: dequantized, and as the graph reads them
_SOLVING = 20  # bytes a weight: as given, padded, in order, the target, the levels twice
_DOUBLE = 2  # times an operation of float32: one of float64, in which errors are summed
_SEARCHING = 4  # copies of a group's weights: as given, with factors, rounded, the error
_ROWS = 8192  # that are solved at a time
_ALIVE = 3  # values that wait for later segments: the residual stream, a norm of it, a product
_SMALL = 1 << 20  # bytes of a value that stays in memory
_CHANNELS = 3  # of an image
_BETWEEN = 5  # values of a product's size in memory at once: activations of it, and what the allocator keeps
_OBSERVED = 4  # more of them while values are observed: what the graph hands out, and a histogram's copies
_SOLVED = 1.3e-7  # seconds a weight on one core of a 2023 server processor: the search of scales, and GPTQ's loop
_SLOWER = 2.0  # a walk than its products alone: attention, norms, activations
_PROBE = 512  # rows and columns


@dataclass(frozen=True)
class CalibrationCost:
    """Cost of a calibration.

    Attributes:
        memory_bytes: peak of unshared memory beyond what is there before.
        operations: multiplications and additions.
        solved: weights.
    """

    memory_bytes: int
    operations: float
    solved: int

    @property
    def seconds(self) -> float:
        """Wall seconds on this machine."""
        return self.operations / product_speed() + _SOLVED * self.solved

    def after(self, other: "CalibrationCost") -> "CalibrationCost":
        """Cost of both, one after the other."""
        memory = max(self.memory_bytes, other.memory_bytes)
        return CalibrationCost(memory, self.operations + other.operations, self.solved + other.solved)


@dataclass(frozen=True)
class _Load:
    """Tokens that run through a component.

    Attributes:
        tokens: all of them.
        batch: most at once.
        batches: how many.
    """

    tokens: int
    batch: int
    batches: int

    def walking_bytes(self, rows: int, columns: int, values: int) -> tuple[int, int]:
        """Memory of one product in a walk, and of what waits for it meanwhile.

        Args:
            rows: outputs of the product; 0 where it does not run.
            columns: inputs of it.
            values: of the size of its outputs, in memory at once.
        """
        walked = _FLOAT * (_WEIGHTS * rows * columns + self.batch * (columns + values * rows))
        return walked, _ALIVE * self.batches * min(_SMALL, _FLOAT * self.batch * columns)

    def walking_operations(self, rows: int, columns: int) -> float:
        """Multiplications and additions that a walk takes for one product."""
        return _SLOWER * 2.0 * self.tokens * rows * columns


def calibration_cost(
    bundle: Bundle, plan: Plan, inputs: "CalibrationSet", calibrated: Iterable[str]
) -> CalibrationCost:
    """Add up the components that a calibration walks through.

    Args:
        bundle: before it is quantized.
        plan: every weight's fate.
        inputs: what it is calibrated on.
        calibrated: names of the solvers that need data.
    """
    solvers = set(calibrated)
    solved = {(a.component, a.node) for a in plan.assignments if a.action is Action.QUANTIZE and a.solver in solvers}

    def solving(component: Component, group: LinearGroup, load: _Load) -> CalibrationCost | None:
        rows, columns = (
            sum(_rows(node) for node in group.nodes if (component.name, str(node.name)) in solved),
            _columns(group),
        )
        if not rows:
            return None
        memory = columns * (_GRAMS * _FLOAT * columns + _SOLVING * min(rows, _ROWS))
        return CalibrationCost(memory, float(columns) ** 2 * (load.tokens + rows + columns), rows * columns)

    return _walking_cost(bundle, inputs, solving, plan.observes)


def search_cost(bundle: Bundle, scaled: Mapping[tuple[str, str], int], inputs: "CalibrationSet") -> CalibrationCost:
    """Cost of finding factors, in a walk of its own.

    Args:
        bundle: before it is quantized.
        scaled: for component and first node of each group that gets factors, how many rows a search rounds; without
            any group, nothing is walked.
        inputs: what it is calibrated on.
    """

    def searching(component: Component, group: LinearGroup, load: _Load) -> CalibrationCost | None:
        searched = scaled.get((component.name, str(group.nodes[0].name)))
        if searched is None:
            return None
        rows, columns = sum(map(_rows, group.nodes)), _columns(group)
        memory = _FLOAT * columns * (_SEARCHING * rows + _GRAMS * columns)
        rounded = searched and searched + rows  # once all, to draw those that are searched
        return CalibrationCost(memory, float(columns) ** 2 * (load.tokens + _DOUBLE * 2 * rounded), 0)

    return _walking_cost(bundle, inputs, searching) if scaled else CalibrationCost(0, 0.0, 0)


def _walking_cost(
    bundle: Bundle,
    inputs: "CalibrationSet",
    work: Callable[[Component, LinearGroup, _Load], CalibrationCost | None],
    observes: Callable[[Role], bool] = lambda role: False,
) -> CalibrationCost:
    """Cost of a walk through the encoders and the decoder, and of the work where it has come to a group.

    Args:
        bundle: before it is quantized.
        inputs: what runs through it.
        work: cost of what is done at a group; None where nothing is. The walk ends at the decoder's last group with
            work, whose products do not run any more.
        observes: whether values of the components of a role are observed, in a walk to the end.
    """
    peaks, operations, weights = [0], 0.0, 0
    for component in [*bundle.with_role(Role.VISION_ENCODER), *bundle.with_role(Role.DECODER)]:
        load, groups = _load(bundle, component, inputs), linear_groups(component.graph)
        done = {group: work(component, group, load) for group in groups}
        ends, observed = component.role is Role.DECODER, observes(component.role)
        if ends and not observed:
            groups = up_to_last(groups, lambda group, done=done: done[group] is not None)  # type: ignore[misc]
        for group in groups:
            rows = 0 if ends and group is groups[-1] else sum(map(_rows, group.nodes))
            walked, waiting = load.walking_bytes(rows, _columns(group), _BETWEEN + _OBSERVED * observed)
            cost = done[group] or CalibrationCost(0, 0.0, 0)
            peaks.append(max(walked, cost.memory_bytes) + waiting)
            operations += load.walking_operations(rows, _columns(group)) + cost.operations
            weights += cost.solved
    return CalibrationCost(max(peaks) + _pixels(bundle, inputs), operations, weights)


def _rows(linear: ir.Node) -> int:
    """Outputs of a linear."""
    return int(values_of(operand(linear, 1)).shape[1])


def _columns(group: LinearGroup) -> int:
    """Inputs of a group's linears."""
    return int(values_of(operand(group.nodes[0], 1)).shape[0])


def _load(bundle: Bundle, component: Component, inputs: "CalibrationSet") -> _Load:
    from hvlc.workflows.calibrate.inputs import BATCH_TOKENS

    sizes = _sizes(bundle, inputs)
    if component.role is Role.VISION_ENCODER:
        patches = [size.pixels // _patch_area(component) for size in sizes]
        return _Load(sum(patches), max(patches, default=0), len(patches))
    lengths = _lengths(inputs, sizes)
    if bundle.facts.kind is Kind.VISION_LANGUAGE:  # one after another
        return _Load(sum(lengths), max(lengths), len(lengths))
    batch = max(*lengths, min(BATCH_TOKENS, sum(lengths)))
    return _Load(sum(lengths), batch, -(-sum(lengths) // batch))


def _lengths(inputs: "CalibrationSet", sizes: list[VisualSize]) -> list[int]:
    """Tokens of every sequence, those of images included."""
    from hvlc.calibration.samples import TextSample

    texts = [len(sample.ids) for sample in inputs.samples if isinstance(sample, TextSample)]
    asked = zip(inputs.images, sizes, strict=True)
    return texts + [size.length + (sample.prompt.length if sample.prompt else 0) for sample, size in asked]


def _sizes(bundle: Bundle, inputs: "CalibrationSet") -> list[VisualSize]:
    """Sizes of a set's images at full size, after the image rule."""
    from hvlc.workflows.calibrate.sizes import measure_of

    if bundle.facts.image is None or not inputs.images:
        return []
    measure = measure_of(bundle.facts.image)
    return [measure(sample.picture.height, sample.picture.width) for sample in inputs.images]


def _patch_area(encoder: Component) -> int:
    """Pixels of one patch of an encoder's images."""
    sides = [node.attributes["strides"].as_ints() for node in encoder.graph if node.op_type == "Conv"]
    return prod(sides[0]) if sides else 1


def _pixels(bundle: Bundle, inputs: "CalibrationSet") -> int:
    """Bytes of the pieces of all images, which wait in memory."""
    return sum(_FLOAT * _CHANNELS * size.pixels for size in _sizes(bundle, inputs))


@cache
def product_speed() -> float:
    """Multiplications and additions a second of float32 products on this machine, from the median of a few."""
    values = np.linspace(-1, 1, _PROBE * _PROBE, dtype=np.float32).reshape(_PROBE, _PROBE)

    def once() -> float:
        started = time.perf_counter()
        values @ values
        return time.perf_counter() - started

    return 2.0 * _PROBE**3 / median(once() for _ in range(5))
