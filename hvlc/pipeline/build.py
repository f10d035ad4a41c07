"""The build, stage by stage: checkpoint, bundle, passes, plan, package."""

import hashlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlc.built import BuildResult
from hvlc.bundle import Bundle, JournalEntry, Role
from hvlc.checkpoint import Checkpoint, digest_file
from hvlc.errors import TargetError, UserError
from hvlc.manifest import MANIFEST, Manifest, Sources
from hvlc.package.atomic import atomic_directory, check_output
from hvlc.package.writer import code_digest, tool_versions, write_package
from hvlc.plan import Action, Plan
from hvlc.recipes.resolve import resolve
from hvlc.recipes.schema import Recipe, load_recipe, recipe_path
from hvlc.target import Target, load_target, target_path

_EXECUTION_PROVIDER = "cpu"  # the only one so far
STAGES = ("open", "export", "passes", "plan", "quantize", "package")

#: Called with the stage's name and its position when it starts.
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        checkpoint: a checkpoint directory.
        target: name or path of a target.
        recipe: name or path of a recipe.
        output: directory to write.
        force: replace an existing package.
    """

    checkpoint: Path
    target: str
    recipe: str
    output: Path
    force: bool = False


class _Stages:
    """Announces and times the stages, and keeps the journal that their passes write to."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or (lambda stage, index: None)
        self.journal: list[JournalEntry] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int], None]]:
        """A stage; the yielded function takes the number of things it made or changed."""
        self._progress(name, STAGES.index(name))
        started = time.perf_counter()
        counts: list[int] = []
        yield counts.append
        self.seconds[name] = time.perf_counter() - started
        self.journal.append(JournalEntry(name, "*", sum(counts), (), self.seconds[name]))


def sources_of(request: BuildRequest, checkpoint: Checkpoint) -> Sources:
    """Digests of a build's inputs: equal sources make an equal package."""
    return Sources(
        model_type=checkpoint.model_type,
        checkpoint=checkpoint.digest,
        recipe_name=load_recipe(request.recipe).name,
        recipe=digest_file(recipe_path(request.recipe)),
        target_name=load_target(request.target).name,
        target=digest_file(target_path(request.target)),
        code=code_digest(),
        versions=tool_versions(),
    )


def build(request: BuildRequest, progress: Progress | None = None) -> BuildResult:
    """Turn a checkpoint into a package.

    Nothing is visible at `request.output` before the package is whole, and nothing is left when it fails.

    Raises:
        UserError: bad input, an existing output, a full disk.
        TargetError: the target cannot take what the recipe asks for.
    """
    stages = _Stages(progress)
    with stages.stage("open") as count:
        check_output(request.output, force=request.force)
        recipe, target = load_recipe(request.recipe), load_target(request.target)
        checkpoint = Checkpoint.open(request.checkpoint)
        sources = sources_of(request, checkpoint)
        count(len(checkpoint.tensors))
    bundle, plan = _planned(checkpoint, recipe, target, stages)
    _check_disk(request.output, bundle, plan)
    with stages.stage("quantize") as count:
        count(_quantize(bundle, plan))
    with stages.stage("package") as count, atomic_directory(request.output, force=request.force) as partial:
        manifest = write_package(bundle, checkpoint.directory, partial, sources, plan.bits_per_weight(Role.DECODER))
        count(len(manifest.files))
    return BuildResult(request.output, manifest, plan, tuple(stages.journal), stages.seconds)


def plan_build(checkpoint: Path, target: str, recipe: str) -> Plan:
    """The plan of a build, without building.

    Raises:
        UserError, TargetError: whatever would stop the build.
    """
    return _planned(Checkpoint.open(checkpoint), load_recipe(recipe), load_target(target), _Stages())[1]


def require_compile(work: str) -> None:
    """Refuse work that needs torch where it is not installed.

    Raises:
        UserError: torch, transformers or optimum is missing.
    """
    missing = [name for name in ("torch", "transformers", "optimum") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("install.compile", f"{work} needs {', '.join(missing)}", "pip install 'hvlc[compile]'")


def _planned(checkpoint: Checkpoint, recipe: Recipe, target: Target, stages: _Stages) -> tuple[Bundle, Plan]:
    """Export, run the structural passes, resolve the recipe."""
    with stages.stage("export") as count:
        require_compile("a build")
        from hvlc.calibration.solvers import SOLVERS
        from hvlc.export import export_bundle

        bundle = export_bundle(checkpoint)
        bundle.journal = stages.journal
        count(len(bundle.components))
    with stages.stage("passes") as count:
        for step in structural_passes(bundle.facts, target):
            step.run(bundle)
            count(1)
    with stages.stage("plan") as count:
        _check_target(bundle, target)
        plan = resolve(recipe, bundle, target, SOLVERS)
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


def structural_passes(facts: Mapping[str, Any], target: Target) -> list[Any]:
    """The passes before quantization, in order."""
    from hvlc.passes.compress_resolution import CompressResolution
    from hvlc.passes.fuse_skip_norm import FuseSkipNorm
    from hvlc.passes.stitch_tiles import StitchTiles
    from hvlc.passes.tile_images import TileImages

    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
    return [
        TileImages(facts["tile_size"], facts["cell_size"], mean, std),
        CompressResolution(facts["proxy_size"], facts["min_scale"], facts["scale_step"], mean, std),
        StitchTiles(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]),
        FuseSkipNorm(target),
    ]


def _quantize(bundle: Bundle, plan: Plan) -> int:
    """Perform the plan, then join the encoders as they are by then; returns the number of quantized places."""
    from hvlc.calibration.solvers import SOLVERS
    from hvlc.passes.quantize_weights import QuantizeWeights
    from hvlc.passes.select_encoder import SelectEncoder

    QuantizeWeights(plan, SOLVERS).run(bundle)
    facts: dict[str, Any] = bundle.facts
    SelectEncoder(facts["tile_size"] // facts["cell_size"], facts["hidden_size"]).run(bundle)
    return sum(a.action is not Action.KEEP for a in plan.assignments)


def _check_disk(output: Path, bundle: Bundle, plan: Plan) -> None:
    """Refuse before the work when the package cannot fit.

    Raises:
        UserError: too little free space.
    """
    planned = {(a.component, a.weight) for a in plan.assignments}
    rest = sum(
        value.const_value.nbytes
        for component in bundle.components.values()
        for value in component.graph.initializers.values()
        if value.const_value is not None and (component.name, value.name) not in planned
    )
    needed, free = plan.stored_bytes + rest, shutil.disk_usage(output.parent).free
    if needed > free:
        raise UserError(
            "output.disk_full",
            f"the package needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free",
            "free space or choose another disk",
        )


def is_current(request: BuildRequest) -> bool:
    """Whether `request.output` already holds exactly what this request would build; a damaged package is not."""
    if not (request.output / MANIFEST).is_file():
        return False
    try:
        manifest = Manifest.load(request.output)
        manifest.verify(request.output)
    except UserError:
        return False
    return manifest.sources == sources_of(request, Checkpoint.open(request.checkpoint))


def source_digest(manifest: Manifest) -> str:
    """Hex SHA-256 of a package's manifest: equal digests are equal packages."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
