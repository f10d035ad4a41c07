"""The build, stage by stage: checkpoint, bundle, passes, plan, package."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import Collector, HvlcError, UserError
from hvlc.files.scratch import temporary_directory
from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.plan import Plan
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.opening.package import open_package
from hvlc.package.atomic import KeptError, atomic_directory, check_output
from hvlc.package.text import PackageText, settle_text, tokenizer_files
from hvlc.package.writer import write_package
from hvlc.recipes.budget import allocate, explicit, with_budget
from hvlc.recipes.loading import load_recipe
from hvlc.recipes.resolve import resolve
from hvlc.recipes.schema import BudgetSpec, Recipe, dump_recipe
from hvlc.results.build import BuildResult
from hvlc.targets import Target, load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.estimate import estimate, needs_of, processors
from hvlc.workflows.build.limits import (
    check_compiler,
    check_disk,
    check_memory,
    check_target,
    check_written,
    is_compiled_for,
)
from hvlc.workflows.build.lowering import fix_for, float_passes, quantize
from hvlc.workflows.build.memory import MemoryWatch, current_memory
from hvlc.workflows.build.prepare import check_stored, fold_awaited, plan_factors
from hvlc.workflows.build.request import BuildRequest, Document, Progress, documents_of, provenance_of
from hvlc.workflows.build.requirements import require_compile, text_files
from hvlc.workflows.build.scales import with_wide_scales
from hvlc.workflows.build.steps import Digesting, Stages
from hvlc.workflows.calibrate.calibrating import (
    Prepared,
    calibrate_plan,
    calibration_inputs,
    cost_of,
    fingerprint_of,
    remove_finished,
)

if TYPE_CHECKING:
    from hvlc.calibration.state import State

_MOST_THREADS = 64


def build(request: BuildRequest, progress: Progress | None = None) -> BuildResult:
    """Turn a checkpoint into a package.

    Nothing is visible at `request.output` before the package is whole, and nothing is left when it fails, except what
    a calibration found: the same build goes on from there.

    Raises:
        UserError: bad input, an existing output, a full disk, more memory than allowed.
        TargetError: the target cannot take what the recipe asks for. Several problems come in one error.
    """
    stages = Stages(progress)
    with (
        MemoryWatch(request.max_memory) as memory,
        Digesting() as digesting,
        temporary_directory("build") as scratch,
        ExitStack() as held,
    ):
        prepared = _prepare(request, stages, scratch, digesting.start, reads=True)
        estimate = prepared.estimate

        def written(done: int) -> None:
            memory.check()
            stages.written(done, estimate.disk_bytes)

        def calibrated(what: str, done: int, total: int) -> None:
            memory.check()
            stages.calibrated(what, done, total)

        state = None
        if prepared.inputs is not None:
            from hvlc.calibration.state import State

            provenance = provenance_of(digesting.finished(), *prepared.documents, prepared.inputs)
            with stages.stage("calibrate") as count:
                fingerprint = fingerprint_of(provenance.sources)
                state = held.enter_context(State.held(request.state_directory, fingerprint))
                count(calibrate_plan(prepared, prepared.inputs, state, calibrated))
        with _removing(state), atomic_directory(request.output, force=request.force) as partial:
            with stages.stage("package") as count:
                bits = prepared.plan.bits_per_weight(Role.DECODER)
                manifest = write_package(
                    prepared.bundle,
                    prepared.text,
                    prepared.package_text,
                    partial,
                    lambda: provenance_of(digesting.finished(), *prepared.documents, prepared.inputs),
                    bits,
                    prepared.target.tried,
                    estimate.threads,
                    written,
                )
                check_written(partial, manifest, prepared.target)
                count(len(manifest.files))
            if request.aot and is_compiled_for(prepared.target):
                manifest = _compiled(partial, prepared.target, stages)
    return BuildResult(
        request.output, manifest, prepared.plan, tuple(stages.journal), stages.seconds, memory.peak, estimate
    )


@contextmanager
def _removing(state: "State | None") -> Iterator[None]:
    """Remove what a calibration found when its package is whole, also where that has to stay beside its place."""
    try:
        yield
    except KeptError:
        if state:
            state.remove()
        raise
    if state:
        state.remove()


def plan_build(request: BuildRequest, progress: Progress | None = None, *, anywhere: bool = False) -> Prepared:
    """Everything that a build decides, without building.

    Args:
        request: of the build.
        progress: told of the stages.
        anywhere: the output is not settled yet; its disk is looked at, it is not.

    Raises:
        UserError, TargetError: whatever would stop the build, all of it at once.
    """
    with temporary_directory("build") as scratch:
        return _prepare(request, Stages(progress), scratch, anywhere=anywhere)


def _compiled(directory: Path, target: Target, stages: Stages) -> Manifest:
    """Compile the NPU components of a package that was just written, and check them in emulation."""
    from hvlc.workflows.build.compiling import compile_in_place

    with stages.stage("compile") as count:
        package = compile_in_place(directory, target, progress=stages.compiled)
        count(len(package.compilation.graphs))
    return package.manifest


def _prepare(
    request: BuildRequest,
    stages: Stages,
    scratch: Path,
    opened: Callable[[Checkpoint], None] = lambda checkpoint: None,
    *,
    anywhere: bool = False,
    reads: bool = False,
) -> Prepared:
    """Open, export, run the passes, resolve the recipe, perform the plan lazily; every problem is found here.

    `reads`: whether weights may be read to decide about their scales; a plan alone reads none.
    """
    found = Collector()
    with stages.stage("open") as count:
        checkpoint = recipe = target = None
        installed = False
        with found:
            require_compile("a build")
            installed = True
        with found:
            if not anywhere:
                remove_finished(request)
                check_output(request.output, force=request.force)
        with found:
            recipe = load_recipe(request.recipe)
            recipe = with_budget(recipe, request.budget) if request.budget else recipe
        with found:
            target = load_target(request.target)
            check_compiler(target, aot=request.aot and not anywhere)
        with found:
            checkpoint = Checkpoint.open(request.checkpoint)
        if not installed or checkpoint is None or recipe is None or target is None:
            found.raise_all()
            raise HvlcError("build.open", "an input is missing without a problem", "report it")
        documents = documents_of(request, recipe, target)
        opened(checkpoint)
        count(len(checkpoint.tensors))
    measured = recipe.budget is not None
    if recipe.budget is not None:
        found.raise_all()
        recipe = _within_budget(request, checkpoint, recipe, recipe.budget, target, scratch, stages)
        documents = (Document(recipe.name, dump_recipe(recipe)), documents[1])
    bundle, plan = _planned(checkpoint, recipe, target, stages, found)
    if bundle is None or plan is None:
        found.raise_all()
        raise HvlcError("build.plan", "there is no plan and no problem", "report it")
    if reads and not found.problems:
        plan = with_wide_scales(plan, bundle, _thread_counts(request)[0])
    package_text = PackageText()
    inputs, text, scaled = None, checkpoint.directory, plan_factors(bundle, plan, recipe.prepare)
    with stages.stage("quantize") as count:
        from hvlc.workflows.calibrate.calibrate import Observed, awaited_matrices

        with found:
            text = text_files(checkpoint, scratch)
            package_text = settle_text(text, bundle.facts)
        with found:
            inputs = calibration_inputs(request, recipe, plan, scaled, bundle, text, measured)
        cost = cost_of(bundle, plan, inputs, scaled) if inputs else None
        fold_awaited(bundle, scaled, request.state_directory)
        observed = Observed.awaited(bundle, plan, request.state_directory)
        count(quantize(bundle, plan, target, awaited_matrices(plan, request.state_directory), observed))
        with found:
            fix_for(bundle, target, request.context, text)
        needs, base = needs_of(bundle), current_memory().unshared
        copied = tokenizer_files(text)
        expected = [estimate(needs, checkpoint, copied, threads, base, cost) for threads in _thread_counts(request)]
    fitting = [e for e in expected if request.max_memory is None or e.memory_bytes <= request.max_memory]
    with found:
        check_memory(expected[-1], request.max_memory)
    with found:
        check_disk(request.output, expected[0].disk_bytes)
    found.raise_all()
    notes = (*checkpoint.notes, *package_text.notes, *(inputs.notes if inputs else ()))
    plan = replace(plan, notes=tuple(dict.fromkeys(notes)))
    return Prepared(
        checkpoint, bundle, plan, fitting[0], documents, inputs, target, recipe.prepare, scaled, text, package_text
    )


def _within_budget(
    request: BuildRequest,
    checkpoint: Checkpoint,
    recipe: Recipe,
    budget: BudgetSpec,
    target: Target,
    scratch: Path,
    stages: Stages,
) -> Recipe:
    """The recipe with a format for every weight; sensitivities are measured first, as far as they are not known.

    What is locked and digested is this recipe, so that a package can be made again without another measurement.

    Raises:
        UserError, TargetError: the budget is too small, or the model cannot be measured.
    """
    from hvlc.workflows.sensitivity.sensitivity import Measuring, measure

    text = text_files(checkpoint, scratch)
    source, threads = request.calibration or recipe.calibration.source, request.threads or processors()
    how = Measuring.of(budget, source, request.cache, min(threads, _MOST_THREADS))
    sensitivity = measure(checkpoint, text, recipe, target, how, stages.measured)
    return explicit(recipe, sensitivity, allocate(sensitivity, budget))


def _thread_counts(request: BuildRequest) -> list[int]:
    """Numbers of threads to try, most first."""
    return list(range(min(request.threads or processors(), _MOST_THREADS), 0, -1))


def _planned(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, stages: Stages, found: Collector
) -> tuple[Bundle | None, Plan | None]:
    """Export, run the structural passes, resolve the recipe; None for what could not be made."""
    with stages.stage("export") as count, found:
        from hvlc.export import export_bundle

        bundle = None
        with found:
            bundle = export_bundle(checkpoint)
            bundle.journal = stages.journal
            count(len(bundle.components))
        found.problems += checkpoint.problems
    if bundle is None:
        return None, None
    with stages.stage("passes") as count:
        for step in float_passes(bundle.facts, target, recipe.prepare):
            step.run(bundle)
            count(1)
    plan = None
    with stages.stage("plan") as count:
        from hvlc.solvers.registry import CALIBRATED, SOLVERS, solver_problems

        with found:
            check_target(bundle, target)
        with found:
            check_stored(bundle, recipe.prepare)
            options = {name: solver.options for name, solver in CALIBRATED.items()}
            plan = resolve(recipe, bundle, target, {*SOLVERS, *CALIBRATED}, options)
            found.problems += solver_problems(plan)
            count(len(plan.assignments))
    return bundle, plan


def is_current(request: BuildRequest) -> bool:
    """Whether `request.output` already holds exactly what this request, with the recipe's own calibration set, would
    build; a damaged package is not.
    """
    if not (request.output / MANIFEST).is_file():
        return False
    try:
        manifest = open_package(request.output, verify=True).manifest
    except UserError:
        return False
    documents = documents_of(request, load_recipe(request.recipe), load_target(request.target))
    found = provenance_of(Checkpoint.open(request.checkpoint), *documents, None).sources
    ours = dict.fromkeys(("calibration_name", "calibration", "calibration_samples"))  # follows from recipe and code
    return manifest.sources.model_copy(update=ours) == found
