"""A plan's calibration: inputs from a set, the components in the order they run, levels into a state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hvlc.calibration.engine import Calibration, matrix_key
from hvlc.calibration.factors import FactorSearch, ScaledGroup
from hvlc.calibration.observation import Observation
from hvlc.calibration.samples import CalibrationSet
from hvlc.calibration.segments import Walk
from hvlc.calibration.state import State, pending
from hvlc.errors import Progress, UserError
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.facts import Facts, Kind
from hvlc.graphs.plan import Action, CacheType, Plan, RangeMethod
from hvlc.passes.quantize.quantize_activations import calibrated_values, check_ranges
from hvlc.passes.quantize.quantize_kv_cache import cached_values, rotated_keys
from hvlc.solvers.registry import CALIBRATED, SOLVERS
from hvlc.weights.lazy import Expression, LazyTensor, expression_of
from hvlc.weights.quantized import Dequantized, Quantization, SolvedWeight
from hvlc.workflows.calibrate.inputs import text_feeds
from hvlc.workflows.calibrate.vision import VisionForward, features_of

_TEXT_SOURCE, _IMAGE_SOURCE = "text", "documents"

_Feeds = Sequence[Mapping[str, np.ndarray]]
#: Goes through a component on feeds and keeps the wanted values.
_Walk = Callable[[Component, _Feeds, Sequence[ir.Value]], Walk]


def needs_data(plan: Plan) -> bool:
    """Whether anything of the plan does: a solver, static activations, an int8 cache."""
    solved = any(a.action is Action.QUANTIZE and a.solver in CALIBRATED for a in plan.assignments)
    return solved or any(plan.observes(role) for role in Role)


def calibrates_encoders(plan: Plan, groups: Sequence[ScaledGroup], bundle: Bundle) -> bool:
    """Whether a vision encoder has a solver that needs data, static activations, or gets factors."""
    encoders = {component.name for component in bundle.with_role(Role.VISION_ENCODER)}
    solved = any(a.solver in CALIBRATED and a.role is Role.VISION_ENCODER for a in plan.assignments)
    return solved or plan.observes(Role.VISION_ENCODER) or any(group.component in encoders for group in groups)


def check_calibrated(plan: Plan) -> None:
    """Refuse what a calibration cannot reach: tables are looked up and multiply nothing.

    Raises:
        UserError: a table has a solver that needs data.
    """
    tables = [a for a in plan.assignments if a.role is Role.EMBEDDING and a.action is Action.QUANTIZE]
    for table in tables:
        if table.solver in CALIBRATED:
            cause = f"{table.weight} is looked up: solver {table.solver} has no inputs to calibrate it on"
            raise UserError("calibration.table", cause, "give its rule a data-free solver, such as rtn")


def default_source(facts: Facts) -> str:
    """The built-in set for a kind of model."""
    return _TEXT_SOURCE if facts.kind is Kind.LANGUAGE else _IMAGE_SOURCE


def pending_matrices(plan: Plan, directory: Path) -> dict[tuple[str, str], SolvedWeight]:
    """Matrices that a calibration will have put into a state, by component and node; a tied table's is the head's."""
    heads = {(a.component, a.node): a for a in plan.assignments}
    found = {}
    for assignment in plan.assignments:
        owner = heads[assignment.shares] if assignment.shares else assignment
        if assignment.action is Action.KEEP or owner.solver not in CALIBRATED or owner.format is None:
            continue
        key, shape = matrix_key(owner.component, owner.node), (owner.out_features, owner.in_features)
        found[assignment.component, assignment.node] = pending(directory, key, shape, owner.format)
    return found


def observations(bundle: Bundle, plan: Plan) -> dict[str, Observation]:
    """Observations of its components' values that the package reads, by component.

    Args:
        bundle: before its products are quantized.
        plan: every weight's fate.
    """
    method = plan.activations.range if plan.activations else RangeMethod.MINMAX
    found = {}
    for role in (Role.VISION_ENCODER, Role.DECODER):
        for component in bundle.with_role(role) if plan.observes(role) else []:
            cache = cached_values(component) if plan.kv_cache is CacheType.INT8 else {}
            activations = calibrated_values(component, plan)
            found[component.name] = Observation(
                component.name, activations, method, cache, rotated_keys(component) if cache else frozenset()
            )
    return found


@dataclass(frozen=True)
class PendingObservations:
    """Ranges and magnitudes that calibration will have found of a package's values, as lazy expressions.

    Attributes:
        ranges: float32 `[2]` of activations, by component and value.
        magnitudes: float32 `[kv_heads, head_size]` of the decoder's present keys and values.
    """

    ranges: dict[str, dict[str, Expression]]
    magnitudes: dict[str, Expression]

    @classmethod
    def pending(cls, bundle: Bundle, plan: Plan, directory: Path) -> "PendingObservations":
        """Observations that a state will hold.

        Args:
            bundle: before its products are quantized.
            plan: every weight's fate.
            directory: of the state.
        """
        found = observations(bundle, plan)
        ranges = {name: wanted.ranges(directory) for name, wanted in found.items()}
        return cls(ranges, {name: m for wanted in found.values() for name, m in wanted.magnitudes(directory).items()})


def calibrate(
    bundle: Bundle, plan: Plan, inputs: CalibrationSet, state: State, threads: int, progress: Progress
) -> None:
    """Solve every matrix of a plan whose solver needs data, and observe what the package reads of its values.

    Args:
        bundle: of a checkpoint that speaks, after the structural passes, its decoder with all positions; not the one
            that is written.
        plan: every weight's fate.
        inputs: what to calibrate on.
        state: where levels and ranges are put, and taken from where they are known.
        threads: of onnxruntime.
        progress: told what is done.

    Raises:
        UserError: values are not finite, or some are always 0.
    """
    _round_tables(bundle, plan)
    wanted_of = observations(bundle, plan)

    def solve(component: Component, feeds: _Feeds, wanted: Sequence[ir.Value]) -> Walk:
        mine = plan.for_component(component.name)
        observation = wanted_of.get(component.name)
        job = Calibration(component, feeds, mine, state, threads, state.directory, observation)
        return job.run(progress, wanted)

    _walk(bundle, inputs, threads, solve)
    check_ranges({name: observation.ranges(state.directory) for name, observation in wanted_of.items()})


def find_factors(
    bundle: Bundle,
    groups: Sequence[ScaledGroup],
    inputs: CalibrationSet,
    state: State,
    threads: int,
    progress: Progress,
) -> None:
    """Find the factors of every group on the float model.

    Args:
        bundle: as `calibrate` takes it; without factors.
        groups: that get factors.
        inputs: what to search on.
        state: where factors are put, and taken from where they are known.
        threads: of onnxruntime.
        progress: told what is done.
    """
    if all(group.is_known(state) for group in groups):
        return

    def search(component: Component, feeds: _Feeds, wanted: Sequence[ir.Value]) -> Walk:
        mine = [group for group in groups if group.component == component.name]
        return FactorSearch(component, feeds, mine, state, threads, state.directory).run(progress, wanted)

    _walk(bundle, inputs, threads, search)


def _walk(bundle: Bundle, inputs: CalibrationSet, threads: int, walk: _Walk) -> None:
    """Go through the components in the order in which they run: encoders on all images, then the decoder."""
    decoder = bundle.with_role(Role.DECODER)[0]
    if bundle.facts.kind is not Kind.VISION_LANGUAGE:
        walk(decoder, list(text_feeds(decoder, inputs)), ())
        return
    forward = VisionForward.open(bundle, inputs, threads)
    pieces = forward.pieces(range(len(forward.seen)))

    def encode(encoder: Component, turn: Sequence[int]) -> list[np.ndarray]:
        output = features_of(encoder)
        walked = walk(encoder, pieces, [output])
        return [walked.value(output, place) for place in forward.places(turn)]

    features = forward.encoded(encode)
    walk(decoder, forward.decoder_feeds(forward.every(features)), ())


def _round_tables(bundle: Bundle, plan: Plan) -> None:
    """Look tokens up as the package will: in the levels of a table whose solver needs no data."""
    for assignment in plan.assignments:
        if assignment.role is not Role.EMBEDDING or assignment.solver not in SOLVERS or assignment.format is None:
            continue
        graph = bundle.components[assignment.component].graph
        table = graph.initializers[assignment.weight]
        if table.const_value is not None:
            rounded = Quantization(expression_of(table.const_value), assignment.format, SOLVERS[assignment.solver])
            table.const_value = LazyTensor(assignment.weight, Dequantized(rounded))
