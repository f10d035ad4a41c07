"""The calibration inside a build: its inputs, what it takes, and the walk of the planned solvers over them."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import Progress, UserError
from hvlc.files.reading import is_directory, is_file
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.facts import Kind
from hvlc.graphs.plan import Plan
from hvlc.manifest.manifest import MANIFEST, Manifest, Sources
from hvlc.passes.lists import walked_passes
from hvlc.passes.prepare.scale_channels import Factors
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.factors import pending_factors
from hvlc.workflows.build.prepared import BuildInputs, PlannedModel, PreparedBuild
from hvlc.workflows.build.request import BuildRequest
from hvlc.workflows.calibrate.cost import CalibrationCost, calibration_cost, search_cost

if TYPE_CHECKING:
    from hvlc.calibration.factors import ScaledGroup
    from hvlc.calibration.samples import CalibrationSet
    from hvlc.calibration.state import State


def calibration_inputs(
    request: BuildRequest, opened: BuildInputs, planned: PlannedModel, text: Path
) -> "CalibrationSet | None":
    """Set on which the plan's solvers are calibrated, factors found and ranges taken; None when nothing needs data.

    A measurement for a budget has used the set already, so it is not refused for want of use.

    Args:
        request: of the build.
        opened: what it reads.
        planned: the model in float, and its plan.
        text: directory of the tokenizer.

    Raises:
        UserError: the set is not there, or not fit for the model; or its levels have no place to be kept.
    """
    from hvlc.calibration.sources import Model, open_set
    from hvlc.calibration.state import check_apart, check_foreign
    from hvlc.workflows.calibrate.calibrate import calibrates_encoders, check_calibrated, default_source, needs_data

    bundle, plan, scaled, recipe = planned.bundle, planned.plan, planned.scaled, opened.recipe
    if not scaled and not needs_data(plan):
        source = None if opened.measured else request.calibration
        given = {"calibration": source, "samples": request.samples, "calibration-state": request.state}
        unused = ", ".join(f"--{name}" for name, value in given.items() if value is not None)
        if unused:
            cause = f"recipe {recipe.name} has nothing that is calibrated"
            raise UserError("calibration.unused", cause, f"leave {unused} out, or choose a recipe that needs it")
        return None
    if bundle.facts.kind is Kind.VISION:
        cause = "vision towers alone are not calibrated"
        raise UserError("calibration.kind", cause, "use a recipe with data-free solvers and float activations")
    check_calibrated(plan)
    check_apart(request.state_directory, request.output)
    check_foreign(request.state_directory)
    asked = recipe.calibration
    source = request.calibration or asked.source or default_source(bundle.facts)
    model = Model(text, bundle.facts, calibrates_encoders(plan, scaled, bundle))
    return open_set(source, model, samples=request.samples or asked.samples, tokens=asked.tokens, shorten=True)


def cost_of(bundle: Bundle, plan: Plan, inputs: "CalibrationSet", scaled: "Sequence[ScaledGroup]") -> CalibrationCost:
    """Cost of the search for factors, the solvers and the observers."""
    from hvlc.solvers.registry import CALIBRATED

    searched = search_cost(bundle, {(group.component, group.nodes[0]): group.searched for group in scaled}, inputs)
    return calibration_cost(bundle, plan, inputs, CALIBRATED).after(searched)


def fingerprint_of(sources: Sources) -> dict[str, str]:
    """Fingerprint of all that a calibration depends on, by the name of each input."""
    return {
        "checkpoint": sources.checkpoint,
        "recipe": sources.recipe,
        "target": sources.target,
        "calibration set": sources.calibration or "",
        "code of hvlc": sources.code,
        **{f"version of {name}": version for name, version in sources.versions.items()},
    }


def remove_finished(request: BuildRequest) -> None:
    """Remove the calibration of a package that is there: its build was killed when it was finished with it."""
    if not (is_directory(request.state_directory) and is_file(request.output / MANIFEST)):
        return
    from hvlc.calibration.state import State

    with contextlib.suppress(UserError):
        sources = Manifest.load(request.output).sources
        State.remove_finished(request.state_directory, fingerprint_of(sources))


def calibrate_plan(prepared: PreparedBuild, inputs: "CalibrationSet", state: "State", progress: Progress) -> int:
    """Find factors on the float model, then let the plan's solvers and observers see data: walks through graphs of
    their own, into the state that the package reads.

    Returns:
        The number of places that have calibrated levels, and of groups that have factors.
    """
    from hvlc.workflows.calibrate.calibrate import calibrate, find_factors, needs_data, pending_matrices

    planned, threads = prepared.planned, prepared.estimate.threads
    plan, scaled, checkpoint = planned.plan, planned.scaled, prepared.opened.checkpoint
    find_factors(_walked_bundle(checkpoint, planned), scaled, inputs, state, threads, progress)
    if needs_data(plan):
        factors = pending_factors(scaled, state.directory)
        calibrate(_walked_bundle(checkpoint, planned, factors), plan, inputs, state, threads, progress)
    return len(pending_matrices(plan, state.directory)) + len(scaled)


def _walked_bundle(
    checkpoint: Checkpoint, planned: PlannedModel, factors: Mapping[tuple[str, str], Factors] | None = None
) -> Bundle:
    """The float model as a calibration walks through it, exported again; with factors of a state folded in."""
    from hvlc.export import export_bundle

    bundle = export_bundle(checkpoint)
    planned.passes.run(bundle)
    walked_passes(planned.passes, factors or {}).run(bundle)
    return bundle
