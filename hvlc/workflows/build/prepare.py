"""Everything that is decided before the first weight is read, in four functions: open, plan, lower, estimate.

Problems of the user's input and of the target are collected on the way, so that all of them are told at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import Collector, UserError, nearest
from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.facts import Facts
from hvlc.graphs.plan import Action, Plan
from hvlc.manifest.policy import EncoderPolicy
from hvlc.package.atomic import check_output
from hvlc.package.text import PackageText, settle_text, tokenizer_files
from hvlc.passes.lists import Quantities, float_passes, quantizing_passes
from hvlc.passes.order import PassList
from hvlc.recipes.budget import allocate, explicit, with_budget
from hvlc.recipes.resolve import resolve
from hvlc.recipes.schema import BudgetSpec, dump_recipe
from hvlc.results.build import Estimate
from hvlc.targets import Target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.activations import activation_caps
from hvlc.workflows.build.estimate import estimate, processors, weight_totals
from hvlc.workflows.build.factors import check_stored, pending_factors, plan_factors
from hvlc.workflows.build.grids import grids_of
from hvlc.workflows.build.limits import check_compiler, check_disk, check_memory, check_target
from hvlc.workflows.build.lowering import fix_for, static_context
from hvlc.workflows.build.memory import current_memory
from hvlc.workflows.build.prepared import BuildInputs, PlannedModel, PreparedBuild
from hvlc.workflows.build.request import BuildRequest, Document
from hvlc.workflows.build.requirements import require_compile, text_files
from hvlc.workflows.build.scales import with_wide_scales
from hvlc.workflows.build.steps import BuildSteps
from hvlc.workflows.calibrate.build_calibration import calibration_inputs, cost_of, remove_finished
from hvlc.workflows.calibrate.cost import CalibrationCost

if TYPE_CHECKING:
    from hvlc.calibration.samples import CalibrationSet

_MOST_THREADS = 64


def prepare(
    request: BuildRequest,
    steps: BuildSteps,
    scratch: Path,
    opened: Callable[[Checkpoint], None] = lambda checkpoint: None,
    *,
    anywhere: bool = False,
    reads: bool = False,
) -> PreparedBuild:
    """Decide everything that a build has to decide.

    Args:
        request: of the build.
        steps: told of each.
        scratch: directory for what is read out of a checkpoint.
        opened: called with the checkpoint as soon as it is open.
        anywhere: the output is not settled yet; its disk is looked at, it is not.
        reads: whether weights may be read to decide about their scales; a plan alone reads none.

    Raises:
        UserError, TargetError: whatever would stop the build, all of it at once.
    """
    found = Collector()
    inputs = _open(request, steps, found, anywhere=anywhere)
    opened(inputs.checkpoint)
    if inputs.recipe.budget is not None:
        found.raise_all()
        inputs = _within_budget(request, inputs, inputs.recipe.budget, scratch, steps)
    planned = _plan(request, inputs, steps, found, threads=_thread_counts(request)[0] if reads else 0)
    lowered = _lower(request, inputs, planned, scratch, steps, found)
    expected = _estimate(request, inputs, planned, lowered, found)
    planned = replace(planned, plan=replace(planned.plan, notes=_notes(inputs, lowered)))
    return PreparedBuild(inputs, planned, lowered.inputs, lowered.text, lowered.package_text, expected)


def _notes(opened: BuildInputs, lowered: "_Lowered") -> tuple[str, ...]:
    """Notes on decisions about the checkpoint, its text and the calibration set, each once."""
    said = lowered.inputs.notes if lowered.inputs else ()
    return tuple(dict.fromkeys((*opened.checkpoint.notes, *lowered.package_text.notes, *said)))


def _open(request: BuildRequest, steps: BuildSteps, found: Collector, *, anywhere: bool) -> BuildInputs:
    """Read the headers of the checkpoint; refuse what no plan could mend."""
    with steps.step("open") as count:
        checkpoint = recipe = installed = None
        with found:
            require_compile("a build")
            installed = True
        with found:
            if not anywhere:
                remove_finished(request)
                check_output(request.output, force=request.force)
        with found:
            recipe = with_budget(request.recipe, request.budget) if request.budget else request.recipe
        with found:
            check_compiler(request.target, aot=request.aot and not anywhere)
        with found:
            checkpoint = request.open_checkpoint()
        found.require(installed)
        checkpoint, recipe = found.require(checkpoint), found.require(recipe)
        count(len(checkpoint.tensors))
    return BuildInputs(checkpoint, recipe, request.documents)


def _within_budget(
    request: BuildRequest, opened: BuildInputs, budget: BudgetSpec, scratch: Path, steps: BuildSteps
) -> BuildInputs:
    """Give every weight a format; sensitivities are measured first, unless they are known.

    What is locked and digested is the recipe with these formats, so that a package can be made again without another
    measurement.

    Raises:
        UserError, TargetError: the budget is too small, or the model cannot be measured.
    """
    from hvlc.workflows.sensitivity.sensitivity import SensitivityOptions, measure

    checkpoint, recipe = opened.checkpoint, opened.recipe
    text = text_files(checkpoint, scratch)
    source = request.calibration or recipe.calibration.source
    how = SensitivityOptions.of(budget, source, request.cache, _thread_counts(request)[0])
    sensitivity = measure(checkpoint, text, recipe, request.target, how, steps.measured)
    chosen = explicit(recipe, sensitivity, allocate(sensitivity, budget))
    documents = (Document(chosen.name, dump_recipe(chosen)), opened.documents[1])
    return replace(opened, recipe=chosen, documents=documents, measured=True)


def _plan(
    request: BuildRequest, opened: BuildInputs, steps: BuildSteps, found: Collector, *, threads: int
) -> PlannedModel:
    """Export, run the passes on the float model, and decide every weight's fate.

    Args:
        request: of the build.
        opened: what is read.
        steps: told of each.
        found: problems so far.
        threads: that read weights to decide about their scales; 0: none are read.
    """
    bundle, passes = _float_bundle(request, opened, steps, found)
    with steps.step("plan") as count:
        plan = found.require(_resolved(request.target, opened, bundle, found))
        if threads and not found.problems:
            plan = with_wide_scales(plan, bundle, threads)
        count(len(plan.assignments))
    return PlannedModel(bundle, passes, plan, plan_factors(bundle, plan, opened.recipe.prepare))


def _float_bundle(
    request: BuildRequest, opened: BuildInputs, steps: BuildSteps, found: Collector
) -> tuple[Bundle, PassList]:
    """The exported model after its first passes, and these."""
    from hvlc.export import export_bundle

    bundle = None
    with steps.step("export") as count:
        with found:
            bundle = export_bundle(opened.checkpoint)
            bundle.journal = steps.journal
            count(len(bundle.components))
        found.problems += opened.checkpoint.problems
    bundle = found.require(bundle)
    with found:
        check_policy(request.policy or opened.recipe.policy, bundle.facts)
    with steps.step("passes") as count:
        passes = None
        with found:
            room = _room(request, bundle.facts)
            grids = grids_of(request, opened.checkpoint, opened.recipe, bundle.facts, room)
            passes = float_passes(bundle.facts, request.target, opened.recipe.prepare, grids)
        passes = found.require(passes)
        passes.run(bundle)
        with found:
            bundle.facts = with_tile_batch(bundle.facts, request)
        count(len(passes.passes))
    return bundle, passes


def with_tile_batch(facts: Facts, request: BuildRequest) -> Facts:
    """Facts with the pieces per run that a request or its target asks for, where graphs leave it open.

    Raises:
        UserError: a number is asked for, and the model sees no images or the target fixes it.
    """
    fixed = request.target.fixes(Role.VISION_ENCODER)
    if request.tile_batch is not None and (facts.image is None or fixed):
        cause = f"the target {request.target.name} fixes one tile per run" if fixed else "the model sees no images"
        raise UserError("build.tile_batch", f"--tile-batch is {request.tile_batch}, and {cause}", "leave it out")
    if facts.image is None or fixed:
        return facts
    return replace(facts, image=replace(facts.image, tile_batch=request.tile_batch or request.target.tile_batch))


def check_policy(policy: EncoderPolicy | None, facts: Facts) -> None:
    """Refuse a policy that a model cannot follow.

    Args:
        policy: of the request or the recipe. None: none is asked for.
        facts: of the model.

    Raises:
        UserError: the model sees no images, or has no encoder of a name, or nothing to read a scale from.
    """
    if policy is None:
        return
    if facts.image is None:
        raise UserError("build.policy", "a policy is given, and the model sees no images", "leave the policy out")
    there = facts.image.encoders
    if unknown := sorted(policy.encoders - set(there)):
        cause = f"the policy names {', '.join(unknown)}, and the model's encoders are {', '.join(there)}"
        raise UserError("build.policy", cause, nearest(unknown[0], there))
    scales = [rule for rule in policy.rules if (rule.above_scale, rule.below_scale) != (None, None)]
    if scales and facts.image.compressor is None:
        cause = f"a rule for {scales[0].encoder} reads the compressor's scale, and the model has no compressor"
        raise UserError("build.policy", cause, "write a rule about pixels or visual tokens")


def _room(request: BuildRequest, facts: Facts) -> int | None:
    """Positions of a sequence, where the shapes of vision encoders are fixed; None where they are not.

    Raises:
        UserError: the context that is asked for is too long or too short.
    """
    target = request.target
    if not target.fixes(Role.VISION_ENCODER) or facts.text is None:
        return None
    longest = facts.text.context_length
    return static_context(longest, target, request.context) if target.fixes(Role.DECODER) else longest


def _resolved(target: Target, opened: BuildInputs, bundle: Bundle, found: Collector) -> Plan | None:
    """The recipe resolved for a bundle and a target; None: it cannot be."""
    from hvlc.solvers.registry import CALIBRATED, SOLVERS, solver_problems

    plan = None
    with found:
        check_target(bundle, target)
    with found:
        check_stored(bundle, opened.recipe.prepare)
        options = {name: solver.options for name, solver in CALIBRATED.items()}
        plan = resolve(opened.recipe, bundle, target, {*SOLVERS, *CALIBRATED}, options)
        found.problems += solver_problems(plan)
    return plan


@dataclass(frozen=True)
class _Lowered:
    """Results of lowering beside the graphs.

    Attributes:
        inputs: what the plan is calibrated on; None: nothing in it needs data.
        text: directory of the tokenizer.
        package_text: what of it the package takes.
        cost: of the calibration; None: there is none.
    """

    inputs: "CalibrationSet | None"
    text: Path
    package_text: PackageText
    cost: CalibrationCost | None


def _lower(
    request: BuildRequest,
    opened: BuildInputs,
    planned: PlannedModel,
    scratch: Path,
    steps: BuildSteps,
    found: Collector,
) -> _Lowered:
    """Perform the plan on the bundle, with lazy weights, and give the target what it wants of shapes and places."""
    bundle, plan, scaled = planned.bundle, planned.plan, planned.scaled
    inputs, text, package_text = None, opened.checkpoint.directory, PackageText()
    with steps.step("quantize") as count:
        with found:
            text = text_files(opened.checkpoint, scratch)
            package_text = settle_text(text, bundle.facts)
        with found:
            inputs = calibration_inputs(request, opened, planned, text)
        cost = cost_of(bundle, plan, inputs, scaled) if inputs else None
        passes = quantizing_passes(
            planned.passes, bundle.facts, request.target, plan, _quantities(planned, request.state_directory)
        )
        passes.run(bundle)
        with found:
            fix_for(bundle, passes, request.target, request.context, text)
        count(sum(a.action is not Action.KEEP for a in plan.assignments))
    return _Lowered(inputs, text, package_text, cost)


def _quantities(planned: PlannedModel, directory: Path) -> Quantities:
    """The numbers that a plan is performed with, those of a calibration as they will be in the state's directory."""
    from hvlc.graphs.stored_levels import stored_levels
    from hvlc.solvers.registry import SOLVERS
    from hvlc.workflows.calibrate.calibrate import PendingObservations, pending_matrices

    bundle, plan = planned.bundle, planned.plan
    observed = PendingObservations.pending(bundle, plan, directory)
    solved = {**stored_levels(plan, bundle), **pending_matrices(plan, directory)}
    factors = pending_factors(planned.scaled, directory)
    return Quantities(SOLVERS, solved, observed.ranges, observed.magnitudes, factors)


def _estimate(
    request: BuildRequest, opened: BuildInputs, planned: PlannedModel, lowered: _Lowered, found: Collector
) -> Estimate:
    """Estimate of the build, with as many threads as fit into memory; raises the problems found until now."""
    totals, base = weight_totals(planned.bundle), current_memory().unshared
    copied = tokenizer_files(lowered.text)
    expected = [
        estimate(totals, opened.checkpoint, copied, threads, base, lowered.cost) for threads in _thread_counts(request)
    ]
    with found:
        check_memory(expected[-1], request.max_memory)
    with found:
        check_disk(request.output, expected[0].disk_bytes)
    found.raise_all()
    chosen = next(e for e in expected if request.max_memory is None or e.memory_bytes <= request.max_memory)
    caps = {} if request.target.fixes(Role.VISION_ENCODER) else activation_caps(planned.bundle)
    return replace(chosen, activation_bytes=caps)


def _thread_counts(request: BuildRequest) -> list[int]:
    """Numbers of threads to try, most first."""
    return list(range(min(request.threads or processors(), _MOST_THREADS), 0, -1))
