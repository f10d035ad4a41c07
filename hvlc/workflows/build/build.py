"""The build: everything is decided, then calibrated, written and compiled."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hvlc.errors import Progress, UserError
from hvlc.files.scratch import temporary_directory
from hvlc.graphs.bundle import Role
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.opening.package import open_package
from hvlc.package.atomic import KeptError, atomic_directory
from hvlc.package.writer import write_package
from hvlc.results.build import BuildResult
from hvlc.targets import Compiler
from hvlc.workflows.build.limits import check_written
from hvlc.workflows.build.memory import MemoryWatch
from hvlc.workflows.build.prepare import prepare
from hvlc.workflows.build.prepared import PreparedBuild
from hvlc.workflows.build.request import BuildRequest, provenance_of
from hvlc.workflows.build.steps import BuildSteps, Digesting
from hvlc.workflows.calibrate.build_calibration import calibrate_plan, fingerprint_of

if TYPE_CHECKING:
    from hvlc.calibration.state import State
    from hvlc.qnn.compiler import CompileOptions


def build(request: BuildRequest, progress: Progress | None = None) -> BuildResult:
    """Turn a checkpoint into a package.

    Nothing is visible at `request.output` before the package is whole, and nothing is left when it fails, except what
    a calibration found: the same build goes on from there.

    Raises:
        UserError: bad input, an existing output, a full disk, more memory than allowed.
        TargetError: the target cannot take what the recipe asks for. Several problems come in one error.
    """
    steps = BuildSteps(progress)
    with (
        MemoryWatch(request.max_memory) as memory,
        Digesting() as digesting,
        temporary_directory("build") as scratch,
        ExitStack() as held,
    ):
        prepared = prepare(request, steps, scratch, digesting.start, reads=True)
        opened, estimate = prepared.opened, prepared.estimate

        def written(done: int) -> None:
            memory.check()
            steps.written(done, estimate.disk_bytes)

        def calibrated(what: str, done: int, total: int) -> None:
            memory.check()
            steps.calibrated(what, done, total)

        state = None
        if prepared.inputs is not None:
            from hvlc.calibration.state import State

            provenance = provenance_of(digesting.finished(), *opened.documents, prepared.inputs)
            with steps.step("calibrate") as count:
                fingerprint = fingerprint_of(provenance.sources)
                state = held.enter_context(State.held(request.state_directory, fingerprint))
                count(calibrate_plan(prepared, prepared.inputs, state, calibrated))
        with _removing(state), atomic_directory(request.output, force=request.force) as partial:
            with steps.step("package") as count:
                bits = prepared.plan.bits_per_weight(Role.DECODER)
                manifest = write_package(
                    prepared.bundle,
                    prepared.text,
                    prepared.package_text,
                    partial,
                    lambda: provenance_of(digesting.finished(), *opened.documents, prepared.inputs),
                    bits,
                    request.target.tried,
                    estimate.threads,
                    written,
                    request.policy or opened.recipe.policy,
                )
                check_written(partial, manifest, request.target)
                count(len(manifest.files))
            if request.aot and request.target.compiler is not Compiler.NONE:
                from hvlc.qnn.compiler import CompileOptions

                manifest = _compiled(partial, CompileOptions.of(request.target), steps)
    return BuildResult(
        request.output, manifest, prepared.plan, tuple(steps.journal), steps.seconds, memory.peak, estimate
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


def plan_build(request: BuildRequest, progress: Progress | None = None, *, anywhere: bool = False) -> PreparedBuild:
    """Everything that a build decides, without building.

    Args:
        request: of the build.
        progress: told of the steps.
        anywhere: the output is not settled yet; its disk is looked at, it is not.

    Raises:
        UserError, TargetError: whatever would stop the build, all of it at once.
    """
    with temporary_directory("build") as scratch:
        return prepare(request, BuildSteps(progress), scratch, anywhere=anywhere)


def _compiled(directory: Path, options: "CompileOptions", steps: BuildSteps) -> Manifest:
    """Compile the NPU components of a package that was just written, and check them in emulation."""
    from hvlc.workflows.build.compiling import compile_in_place

    with steps.step("compile") as count:
        package = compile_in_place(directory, options, progress=steps.compiled)
        count(len(package.compilation.graphs))
    return package.manifest


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
    found = provenance_of(request.open_checkpoint(), *request.documents, None).sources
    ours = dict.fromkeys(("calibration_name", "calibration", "calibration_samples"))  # follows from recipe and code
    return manifest.sources.model_copy(update=ours) == found
