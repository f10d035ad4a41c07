"""The build, stage by stage: checkpoint, bundle, passes, plan, package."""

import hashlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hvlc.built import BuildResult, Estimate
from hvlc.bundle import Bundle, JournalEntry, Role
from hvlc.checkpoint import Checkpoint
from hvlc.errors import Collector, HvlcError, TargetError, UserError
from hvlc.lock import Provenance
from hvlc.manifest import MANIFEST, Kind, Manifest, Sources
from hvlc.package.atomic import atomic_directory, check_output
from hvlc.package.writer import check_tokenizer, code_digest, tokenizer_files, tool_versions, write_package
from hvlc.pipeline.calibration_cost import CalibrationCost, calibration_cost, search_cost
from hvlc.pipeline.estimate import estimate, needs_of, processors
from hvlc.pipeline.memory import MemoryWatch, current_memory
from hvlc.pipeline.prepare import check_stored, fold_awaited, plan_factors, rotations
from hvlc.plan import Action, CacheType, Plan
from hvlc.quantized import Solved
from hvlc.recipes.budget import allocate, explicit, with_budget
from hvlc.recipes.resolve import resolve
from hvlc.recipes.schema import BudgetSpec, Preparation, Recipe, dump_recipe, load_recipe, recipe_path
from hvlc.target import Target, load_target, target_path

if TYPE_CHECKING:
    from hvlc.calibration.factors import ScaledGroup
    from hvlc.calibration.samples import CalibrationSet
    from hvlc.pipeline.calibrate import Observed

_EXECUTION_PROVIDER = "cpu"  # the only one so far
_MOST_THREADS = 64
STAGES = ("open", "export", "passes", "plan", "quantize", "calibrate", "package")

#: Called with what is being done, how far it is, and how far it goes.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        checkpoint: a checkpoint directory or a GGUF file.
        target: name or path of a target.
        recipe: name or path of a recipe.
        output: directory to write.
        force: replace an existing package.
        threads: that evaluate weights; None is one for each processor. The package does not depend on it.
        max_memory: bytes of unshared memory that the build may take; fewer threads are used where that helps.
        calibration: where calibration inputs come from (`hvlc.calibration.sources`); None is the recipe's.
        samples: of the calibration; None is the recipe's number.
        state: directory that keeps what a calibration found while it goes on; None is one beside the output.
        budget: "4.5bpw" or "40MB", within which formats are chosen; None is the recipe's, if it has one.
        cache: directory that keeps the sensitivities that a budget is spent by; None is the user's cache.
    """

    checkpoint: Path
    target: str
    recipe: str
    output: Path
    force: bool = False
    threads: int | None = None
    max_memory: int | None = None
    calibration: str | None = None
    samples: int | None = None
    state: Path | None = None
    budget: str | None = None
    cache: Path | None = None

    @property
    def state_directory(self) -> Path:
        """Where a calibration keeps what it found."""
        return self.state or self.output.parent / f"{self.output.name}.calibration"


@dataclass(frozen=True)
class Document:
    """A recipe or target as it was when the build read it; its file may change while the build runs.

    Attributes:
        name: as it calls itself.
        text: of its file.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hex digest of the file's bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """A build that is ready to be written: every decision is made, no weight was read.

    Attributes:
        checkpoint: the input.
        bundle: the finished graphs, their weights lazy.
        plan: every weight's fate.
        estimate: what writing takes.
        documents: the recipe and the target.
        inputs: what the plan is calibrated on, if anything in it needs data.
        target: what it is for.
        prepare: what is done to the float model first.
        scaled: linears that get factors, which the calibration finds.
        text: where the tokenizer is while the build goes on.
    """

    checkpoint: Checkpoint
    bundle: Bundle
    plan: Plan
    estimate: Estimate
    documents: tuple[Document, Document]
    inputs: "CalibrationSet | None"
    target: Target
    prepare: Preparation
    scaled: "tuple[ScaledGroup, ...]"
    text: Path


class _Stages:
    """Announces and times the stages, and keeps the journal that their passes write to."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or (lambda what, done, total: None)
        self.journal: list[JournalEntry] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int], None]]:
        """A stage; the yielded function takes the number of things it made or changed."""
        self._progress(name, STAGES.index(name), len(STAGES))
        started = time.perf_counter()
        counts: list[int] = []
        yield counts.append
        self.seconds[name] = time.perf_counter() - started
        self.journal.append(JournalEntry(name, "*", sum(counts), (), self.seconds[name]))

    def calibrated(self, what: str, done: int, total: int) -> None:
        """Progress inside the calibration of a component, in samples of its stretches."""
        self._progress(f"calibrate {what}", done, total)

    def measured(self, what: str, done: int, total: int) -> None:
        """Progress of the measurement that a budget needs, in shares of its work."""
        self._progress(f"sensitivity {what}", done, total)

    def written(self, done: int, total: int) -> None:
        """Progress inside the last stage, in bytes."""
        self._progress(f"{STAGES[-1]} (MB)", done // 1_000_000, -(-total // 1_000_000))


class _Digesting:
    """Digests a checkpoint in the background, which reads every file once while graphs are made."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._work: Future[Checkpoint] | None = None
        self._checkpoint: Checkpoint | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._checkpoint:
            self._checkpoint.given_up.set()  # at the good end nobody listens any more
        self._executor.shutdown()

    def start(self, checkpoint: Checkpoint) -> None:
        """Begin."""

        def digest() -> Checkpoint:
            checkpoint.digest_files()
            return checkpoint

        self._checkpoint = checkpoint
        self._work = self._executor.submit(digest)

    def finished(self) -> Checkpoint:
        """The checkpoint, once its digests are known."""
        if self._work is None:
            raise HvlcError("build.digest", "digesting was never started", "report it")
        return self._work.result()


def _documents(request: BuildRequest, recipe: Recipe, target: Target) -> tuple[Document, Document]:
    """The texts of a recipe and a target that were just read."""
    texts = [path.read_bytes().decode() for path in (recipe_path(request.recipe), target_path(request.target))]
    return Document(recipe.name, texts[0]), Document(target.name, texts[1])


def _provenance(
    checkpoint: Checkpoint, recipe: Document, target: Document, inputs: "CalibrationSet | None"
) -> Provenance:
    """What a build is made from, in enough detail to make it again; equal sources make an equal package."""
    sources = Sources(
        model_type=checkpoint.model_type,
        checkpoint=checkpoint.digest,
        recipe_name=recipe.name,
        recipe=recipe.sha256,
        target_name=target.name,
        target=target.sha256,
        code=code_digest(),
        versions=tool_versions(),
        calibration_name=inputs.name if inputs else None,
        calibration=inputs.digest if inputs else None,
        calibration_samples=len(inputs.samples) if inputs else None,
    )
    return Provenance(sources, checkpoint.file_digests, recipe.text, target.text)


def build(request: BuildRequest, progress: Progress | None = None) -> BuildResult:
    """Turn a checkpoint into a package.

    Nothing is visible at `request.output` before the package is whole, and nothing is left when it fails, except what
    a calibration found: the same build goes on from there.

    Raises:
        UserError: bad input, an existing output, a full disk, more memory than allowed.
        TargetError: the target cannot take what the recipe asks for. Several problems come in one error.
    """
    stages = _Stages(progress)
    with MemoryWatch(request.max_memory) as memory, _Digesting() as digesting, _scratch() as scratch:
        prepared = _prepare(request, stages, scratch, digesting.start)
        estimate = prepared.estimate

        def written(done: int) -> None:
            memory.check()
            stages.written(done, estimate.disk_bytes)

        def calibrated(what: str, done: int, total: int) -> None:
            memory.check()
            stages.calibrated(what, done, total)

        if prepared.inputs is not None:
            provenance = _provenance(digesting.finished(), *prepared.documents, prepared.inputs)
            with stages.stage("calibrate") as count:
                count(_calibrate(request, prepared, prepared.inputs, provenance.sources, calibrated))
        with stages.stage("package") as count, atomic_directory(request.output, force=request.force) as partial:
            bits = prepared.plan.bits_per_weight(Role.DECODER)
            manifest = write_package(
                prepared.bundle,
                prepared.text,
                partial,
                lambda: _provenance(digesting.finished(), *prepared.documents, prepared.inputs),
                bits,
                estimate.threads,
                written,
            )
            count(len(manifest.files))
    if prepared.inputs is not None:
        from hvlc.calibration.state import State

        State(request.state_directory).remove()
    return BuildResult(
        request.output, manifest, prepared.plan, tuple(stages.journal), stages.seconds, memory.peak, estimate
    )


def plan_build(request: BuildRequest, progress: Progress | None = None, *, anywhere: bool = False) -> Prepared:
    """Everything that a build decides, without building.

    Args:
        request: of the build.
        progress: told of the stages.
        anywhere: the output is not settled yet; its disk is looked at, it is not.

    Raises:
        UserError, TargetError: whatever would stop the build, all of it at once.
    """
    with _scratch() as scratch:
        return _prepare(request, _Stages(progress), scratch, anywhere=anywhere)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory for what is read out of a checkpoint on the way; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="hvlc-") as directory:
        yield Path(directory)


def require_compile(work: str) -> None:
    """Refuse work that needs what only building installs, where it is not installed.

    Raises:
        UserError: torch, transformers, optimum or numba is missing.
    """
    missing = [name for name in ("torch", "transformers", "optimum", "numba") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("install.compile", f"{work} needs {', '.join(missing)}", "pip install 'hvlc[compile]'")


def _prepare(
    request: BuildRequest,
    stages: _Stages,
    scratch: Path,
    opened: Callable[[Checkpoint], None] = lambda checkpoint: None,
    *,
    anywhere: bool = False,
) -> Prepared:
    """Open, export, run the passes, resolve the recipe, perform the plan lazily; every problem is found here."""
    found = Collector()
    with stages.stage("open") as count:
        checkpoint = recipe = target = None
        installed = False
        with found:
            require_compile("a build")
            installed = True
        with found:
            if not anywhere:
                check_output(request.output, force=request.force)
        with found:
            recipe = load_recipe(request.recipe)
            recipe = with_budget(recipe, request.budget) if request.budget else recipe
        with found:
            target = load_target(request.target)
        with found:
            checkpoint = Checkpoint.open(request.checkpoint)
        if not installed or checkpoint is None or recipe is None or target is None:
            found.raise_all()
            raise HvlcError("build.open", "an input is missing without a problem", "report it")
        documents = _documents(request, recipe, target)
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
    inputs, text, scaled = None, checkpoint.directory, plan_factors(bundle, plan, recipe.prepare)
    with stages.stage("quantize") as count:
        from hvlc.pipeline.calibrate import Observed, awaited_matrices

        with found:
            text = text_files(checkpoint, scratch)
            check_tokenizer(text, bundle.facts)
        with found:
            inputs = _calibration_inputs(request, recipe, plan, scaled, bundle, text, measured)
        cost = _cost(bundle, plan, inputs, scaled) if inputs else None
        fold_awaited(bundle, scaled, request.state_directory)
        observed = Observed.awaited(bundle, plan, request.state_directory)
        count(_quantize(bundle, plan, target, awaited_matrices(plan, request.state_directory), observed))
        needs, base = needs_of(bundle), current_memory().unshared
        copied = tokenizer_files(text)
        expected = [estimate(needs, checkpoint, copied, threads, base, cost) for threads in _thread_counts(request)]
    fitting = [e for e in expected if request.max_memory is None or e.memory_bytes <= request.max_memory]
    with found:
        _check_memory(expected[-1], request.max_memory)
    with found:
        _check_disk(request.output, expected[0].disk_bytes)
    found.raise_all()
    return Prepared(checkpoint, bundle, plan, fitting[0], documents, inputs, target, recipe.prepare, scaled, text)


def _within_budget(
    request: BuildRequest,
    checkpoint: Checkpoint,
    recipe: Recipe,
    budget: BudgetSpec,
    target: Target,
    scratch: Path,
    stages: _Stages,
) -> Recipe:
    """The recipe with a format for every weight; sensitivities are measured first, as far as they are not known.

    What is locked and digested is this recipe, so that a package can be made again without another measurement.

    Raises:
        UserError, TargetError: the budget is too small, or the model cannot be measured.
    """
    from hvlc.pipeline.sensitivity import Measuring, measure

    text = text_files(checkpoint, scratch)
    source, threads = request.calibration or recipe.calibration.source, request.threads or processors()
    how = Measuring.of(budget, source, request.cache, min(threads, _MOST_THREADS))
    sensitivity = measure(checkpoint, text, recipe, target, how, stages.measured)
    return explicit(recipe, sensitivity, allocate(sensitivity, budget))


def text_files(checkpoint: Checkpoint, scratch: Path) -> Path:
    """Where the tokenizer is: beside the weights, or in `scratch` when a GGUF file has it inside.

    Raises:
        UserError: the file's tokenizer cannot be read.
    """
    if checkpoint.gguf is None or (checkpoint.directory / "tokenizer.json").is_file():
        return checkpoint.directory
    from hvlc.export.gguf_tokenizer import write_gguf_tokenizer

    write_gguf_tokenizer(checkpoint.gguf, scratch)
    return scratch


def _calibration_inputs(
    request: BuildRequest,
    recipe: Recipe,
    plan: Plan,
    scaled: "Sequence[ScaledGroup]",
    bundle: Bundle,
    text: Path,
    measured: bool,
) -> "CalibrationSet | None":
    """What the plan's solvers are calibrated on, factors found and ranges taken; None when nothing needs data.

    A measurement for a budget (`measured`) has used the set already, so it is not refused for want of use.

    Raises:
        UserError: the set is not there, or not fit for the model; or its levels have no place to be kept.
    """
    from hvlc.calibration.sources import Model, open_set
    from hvlc.calibration.state import check_apart, check_foreign
    from hvlc.pipeline.calibrate import calibrates_encoders, check_calibrated, default_source, needs_data

    if not scaled and not needs_data(plan):
        source = None if measured else request.calibration
        given = {"calibration": source, "samples": request.samples, "calibration-state": request.state}
        unused = ", ".join(f"--{name}" for name, value in given.items() if value is not None)
        if unused:
            cause = f"recipe {recipe.name} has nothing that is calibrated"
            raise UserError("calibration.unused", cause, f"leave {unused} out, or choose a recipe that needs it")
        return None
    if bundle.facts["kind"] == Kind.VISION:
        cause = "vision towers alone are not calibrated"
        raise UserError("calibration.kind", cause, "use a recipe with data-free solvers and float activations")
    check_calibrated(plan)
    check_apart(request.state_directory, request.output)
    check_foreign(request.state_directory)
    asked = recipe.calibration
    source = request.calibration or asked.source or default_source(bundle.facts)
    model = Model(text, bundle.facts, calibrates_encoders(plan, scaled, bundle))
    return open_set(source, model, samples=request.samples or asked.samples, tokens=asked.tokens)


def _cost(bundle: Bundle, plan: Plan, inputs: "CalibrationSet", scaled: "Sequence[ScaledGroup]") -> CalibrationCost:
    """What the search for factors, the solvers and the observers take."""
    from hvlc.calibration.registry import CALIBRATED

    searched = search_cost(bundle, {(group.component, group.nodes[0]): group.searched for group in scaled}, inputs)
    return calibration_cost(bundle, plan, inputs, CALIBRATED).after(searched)


def _calibrate(
    request: BuildRequest, prepared: Prepared, inputs: "CalibrationSet", sources: Sources, progress: Progress
) -> int:
    """Find factors on the float model, then let the plan's solvers and observers see data: walks through graphs of
    their own, into the state that the package reads.

    Returns:
        The number of places that have calibrated levels, and of groups that have factors.
    """
    from hvlc.calibration.state import State
    from hvlc.pipeline.calibrate import awaited_matrices, calibrate, find_factors, needs_data

    fingerprint = {
        "checkpoint": sources.checkpoint,
        "recipe": sources.recipe,
        "target": sources.target,
        "calibration set": inputs.digest,
        "code of hvlc": sources.code,
        **{f"version of {name}": version for name, version in sources.versions.items()},
    }
    state = State.open(request.state_directory, fingerprint)
    scaled, threads = prepared.scaled, prepared.estimate.threads
    find_factors(_walked_bundle(prepared), scaled, inputs, state, threads, progress)
    if needs_data(prepared.plan):
        bundle = _walked_bundle(prepared, scaled, state.directory)
        calibrate(bundle, prepared.plan, inputs, state, threads, progress)
    return len(awaited_matrices(prepared.plan, state.directory)) + len(scaled)


def _walked_bundle(prepared: Prepared, scaled: "Sequence[ScaledGroup]" = (), directory: Path = Path()) -> Bundle:
    """The float model as a calibration walks through it, with factors of a state folded in."""
    from hvlc.export import export_bundle
    from hvlc.passes.keep_positions import KeepPositions

    bundle = export_bundle(prepared.checkpoint)
    for step in float_passes(bundle.facts, prepared.target, prepared.prepare):
        step.run(bundle)
    fold_awaited(bundle, scaled, directory)
    KeepPositions().run(bundle)
    return bundle


def _thread_counts(request: BuildRequest) -> list[int]:
    """Numbers of threads to try, most first."""
    return list(range(min(request.threads or processors(), _MOST_THREADS), 0, -1))


def _planned(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, stages: _Stages, found: Collector
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
        from hvlc.calibration.registry import CALIBRATED, SOLVERS, solver_problems

        with found:
            _check_target(bundle, target)
        with found:
            check_stored(bundle, recipe.prepare)
            options = {name: solver.options for name, solver in CALIBRATED.items()}
            plan = resolve(recipe, bundle, target, {*SOLVERS, *CALIBRATED}, options)
            found.problems += solver_problems(plan)
            count(len(plan.assignments))
    return bundle, plan


def _check_target(bundle: Bundle, target: Target) -> None:
    """Hold every node against the target, before anything is written.

    Raises:
        TargetError: the target needs what hvlc cannot emit yet, or refuses operators; all of them at once.
    """
    problems = []
    if target.execution_provider != _EXECUTION_PROVIDER:
        problems.append(f"packages for the execution provider {target.execution_provider!r} cannot be written yet")
    if target.fixed_shapes:
        problems.append("it needs fixed shapes, and sequences and tiles are dynamic")
    refused: dict[str, int] = {}
    for component in bundle.components.values():
        for node in component.graph.all_nodes():
            verdict = target.takes_op(node.op_type, node.domain)
            if not verdict:
                refused[verdict.reason] = refused.get(verdict.reason, 0) + 1
    problems += [f"{reason} ({count} nodes)" for reason, count in sorted(refused.items())]
    if problems:
        raise TargetError("target.refused", f"target {target.name}: {'; '.join(problems)}", "choose another target")


def float_passes(facts: Mapping[str, Any], target: Target, prepare: Preparation) -> list[Any]:
    """The passes before the plan, in order."""
    return [*structural_passes(facts, target), *rotations(prepare)]


def structural_passes(facts: Mapping[str, Any], target: Target) -> list[Any]:
    """Those that no recipe asks for, in order: what makes tokens of images is for models that see and speak."""
    from hvlc.passes.compress_resolution import CompressResolution
    from hvlc.passes.fuse_skip_norm import FuseSkipNorm
    from hvlc.passes.stitch_tiles import StitchTiles
    from hvlc.passes.tile_images import TileImages

    if facts["kind"] != Kind.VISION_LANGUAGE:
        return [FuseSkipNorm(target)]
    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
    return [
        TileImages(facts["tile_size"], facts["cell_size"], mean, std),
        CompressResolution(facts["proxy_size"], facts["min_scale"], facts["scale_step"], mean, std),
        StitchTiles(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]),
        FuseSkipNorm(target),
    ]


def _quantize(
    bundle: Bundle, plan: Plan, target: Target, solved: Mapping[tuple[str, str], Solved], observed: "Observed"
) -> int:
    """Perform the plan, then join what is equal by then; returns the number of quantized places."""
    from hvlc.calibration.registry import SOLVERS
    from hvlc.passes.narrow_tables import NarrowTables
    from hvlc.passes.pack_projections import PackProjections
    from hvlc.passes.quantize_activations import QuantizeActivations
    from hvlc.passes.quantize_kv_cache import QuantizeKVCache
    from hvlc.passes.quantize_weights import QuantizeWeights
    from hvlc.passes.quantize_weights_qdq import QuantizeWeightsQDQ
    from hvlc.passes.select_encoder import SelectEncoder
    from hvlc.prequantized.taking import stored_levels

    quantize_weights = QuantizeWeights if plan.activations is None else QuantizeWeightsQDQ
    quantize_weights(plan, SOLVERS, {**stored_levels(plan, bundle), **solved}).run(bundle)
    if plan.activations is not None:
        QuantizeActivations(plan, observed.ranges).run(bundle)
    if plan.kv_cache is CacheType.INT8:
        QuantizeKVCache(observed.magnitudes).run(bundle)
    PackProjections().run(bundle)
    NarrowTables(target).run(bundle)
    facts: dict[str, Any] = bundle.facts
    if facts["kind"] == Kind.VISION_LANGUAGE:
        SelectEncoder(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]).run(bundle)
    return sum(a.action is not Action.KEEP for a in plan.assignments)


def _check_disk(output: Path, needed: int) -> None:
    """Refuse before the work when the package cannot fit.

    Raises:
        UserError: too little free space.
    """
    if not output.parent.is_dir():
        return  # a problem of its own
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise UserError(
            "output.disk_full",
            f"the package needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free",
            "free space or choose another disk",
        )


def _check_memory(least: Estimate, allowed: int | None) -> None:
    """Refuse before the work when the build would take more memory than it may.

    Raises:
        UserError: even with one thread.
    """
    if allowed is not None and least.memory_bytes > allowed:
        raise UserError(
            "memory.limit",
            f"the build takes about {least.memory_bytes / 1e6:.0f} MB of memory, --max-memory allows "
            f"{allowed / 1e6:.0f} MB",
            f"allow {least.memory_bytes * 1.05 / 1e6:.0f} MB",
        )


def is_current(request: BuildRequest) -> bool:
    """Whether `request.output` already holds exactly what this request, with the recipe's own calibration set, would
    build; a damaged package is not.
    """
    if not (request.output / MANIFEST).is_file():
        return False
    try:
        manifest = Manifest.load(request.output)
        manifest.verify(request.output)
    except UserError:
        return False
    documents = _documents(request, load_recipe(request.recipe), load_target(request.target))
    found = _provenance(Checkpoint.open(request.checkpoint), *documents, None).sources
    ours = dict.fromkeys(("calibration_name", "calibration", "calibration_samples"))  # follows from recipe and code
    return manifest.sources.model_copy(update=ours) == found


def source_digest(manifest: Manifest) -> str:
    """Hex SHA-256 of a package's manifest: equal digests are equal packages."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
