"""Proof that a package came from a checkpoint: the locked build is made again and every byte compared.

Qualcomm's compiler leaves some bytes of its binaries to chance: a few hundred of a vision encoder's million are other
ones in every compilation, as uninitialised memory is. Such a binary is run in emulation together with the new one, and
must compute the same to the last bit.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx

from hvlc.errors import Progress, UserError
from hvlc.files.digests import digest_file
from hvlc.files.scratch import scratch_directory, temporary_directory
from hvlc.graphs.builder import LAST_INDEX, MOST_TOKENS
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.manifest.tuning import Tuning
from hvlc.opening.graphs import load_graph
from hvlc.opening.package import open_package
from hvlc.package.tuning import apply_tuning
from hvlc.package.writer import code_digest, tool_versions
from hvlc.qnn.checking import Sample, emulate_file
from hvlc.qnn.compiler import CompileOptions
from hvlc.qnn.isolation import require_qnn
from hvlc.results.compilation import COMPILATION, Compilation, read_compilation
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.compiling import CompileRequest, compile_in_place
from hvlc.workflows.build.request import BuildRequest, open_checkpoint, open_request


@dataclass(frozen=True)
class RebuildResult:
    """A package that was made again.

    Attributes:
        files: how many are identical.
        bytes: how many are identical.
        changed_tools: name to version then and now, where they differ; "hvlc's code" stands for its digest.
        left_to_chance: binaries that are not identical but compute the same in emulation, and how many bytes differ.
        checked_before: whether the package has results of a check in emulation, which is not repeated.
    """

    files: int
    bytes: int
    changed_tools: dict[str, tuple[str, str]]
    left_to_chance: dict[str, int] = field(default_factory=dict)
    checked_before: bool = False


def rebuild(
    package: Path,
    checkpoint: Path,
    *,
    calibration: str | None = None,
    vrc: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RebuildResult:
    """Make a package again from its lock and hold every file against it.

    The second package lies beside the first while it is compared, and is removed in the end.

    Args:
        package: what `hvlc build` wrote.
        checkpoint: that it was built from.
        calibration: source of its calibration set; None where it was a built-in one, or none.
        vrc: directory of the resolution compressor that was put in; None where none was.
        threads: of the new build.
        progress: told of the steps.

    Raises:
        UserError: the package is damaged, the checkpoint or the calibration set is another one, a byte differs, or the
            package was compiled and the compiler is not installed.
        TargetError: a binary that differs cannot be emulated.
    """
    manifest = open_package(package, verify=True).manifest
    lock = Lock.load(package)
    compilation, tuned = read_compilation(package), manifest.tuned
    if compilation:
        require_qnn()
    _check_inputs(lock, open_checkpoint(checkpoint, vrc))
    home = package.resolve()
    with scratch_directory(home.parent, f".{home.name}.rebuild-") as work:
        recipe, target = work / "recipe.yaml", work / "target.toml"
        recipe.write_text(lock.recipe, "utf-8")
        target.write_text(lock.target, "utf-8")
        request = open_request(
            checkpoint,
            str(target),
            str(recipe),
            work / "package",
            threads=threads,
            vrc=vrc,
            calibration=_calibration_source(manifest, calibration),
            samples=manifest.sources.calibration_samples,
            context=manifest.context_length if manifest.is_staged else None,
            grids=manifest.images.grids if manifest.images else (),
            tile_batch=manifest.images.tile_batch if manifest.images else None,
            policy=tuned.policy_before if tuned else manifest.policy,
            aot=False,
        )
        _check_calibration(manifest, request)
        made = build(request, progress).manifest
        if compilation:
            made = _compiled(request.output, CompileOptions.of(request.target), compilation)
        if tuned:
            made = _tuned(request.output, tuned)
        changed = changed_tools(lock)
        there = {name: entry for name, entry in manifest.files.items() if name != LOCK}
        locked = [name for name in {*there, *lock.outputs} if there.get(name) != lock.outputs.get(name)]
        told = {LOCK, COMPILATION} if compilation else {LOCK}  # the latter's figures are not measured again
        different = {name for name in {*there, *made.files} - told if there.get(name) != made.files.get(name)}
        chance = _left_to_chance(package, request.output, manifest, different)
    wrong = sorted({*different, *locked} - set(chance))
    if wrong:
        tools = "; ".join(f"{name} was {then}, is {now}" for name, (then, now) in changed.items())
        raise UserError(
            "package.rebuild",
            f"a new build differs in {', '.join(wrong)}{f' ({tools})' if tools else ''}",
            "install the locked versions and try again" if tools else "report it: the same inputs gave other bytes",
        )
    same = {name: entry.bytes for name, entry in lock.outputs.items() if name not in (*chance, *(told - {LOCK}))}
    return RebuildResult(len(same), sum(same.values()), changed, chance, bool(compilation and compilation.checks))


def _tuned(directory: Path, tuned: Tuning) -> Manifest:
    """Make the choices of `hvlc tune` in a new build again.

    Raises:
        UserError: the package that was tuned had another manifest.
    """
    if digest_file(directory / MANIFEST) != tuned.origin:
        cause = f"the package was tuned from one whose manifest is {tuned.origin[:12]}..., and a new build has another"
        raise UserError("package.rebuild", cause, "build and tune the package again")
    return apply_tuning(directory, tuned)


def _compiled(directory: Path, options: CompileOptions, before: Compilation) -> Manifest:
    """Compile a new build as the package was compiled, without its check.

    Raises:
        UserError: other graphs came out.
    """
    shared = any(graph.shared_with for graph in before.graphs)
    made = compile_in_place(directory, options, CompileRequest(check=False, share_weights=shared))
    again = {graph.component: graph for graph in made.compilation.graphs}
    other = sorted(graph.component for graph in before.graphs if again.get(graph.component) != graph)
    if other or len(again) != len(before.graphs):
        cause = f"the compiler makes other graphs of {', '.join(other) or 'this package'} than {COMPILATION} says"
        raise UserError("package.rebuild", cause, "install the locked versions and try again")
    return made.manifest


def _left_to_chance(package: Path, again: Path, manifest: Manifest, different: Iterable[str]) -> dict[str, int]:
    """Binaries of one graph and one length that compute the same in emulation, and in how many bytes they differ."""
    found = {}
    for entry in manifest.components.values():
        binary = entry.compiled.binary if entry.compiled else ""
        if entry.compiled is None or binary not in different or entry.file in different:
            continue
        pair = [np.frombuffer((directory / binary).read_bytes(), np.uint8) for directory in (package, again)]
        if len(pair[0]) == len(pair[1]) and _compute_the_same(
            [directory / entry.file for directory in (package, again)], entry.compiled.provider_options
        ):
            found[binary] = int((pair[0] != pair[1]).sum())
    return found


def _compute_the_same(files: Iterable[Path], options: Mapping[str, str]) -> bool:
    """Whether compiled graphs of the same inputs give the same bits for them, in emulation."""
    made: list[list[dict[str, np.ndarray]]] = []
    for file in files:
        with temporary_directory("emulation") as scratch:
            made.append(list(emulate_file(file, options, [_drawn(file)], scratch)))
    first, *others = made
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)
        for other in others
        for a, b in zip(first, other, strict=True)
    )


def _drawn(file: Path) -> Sample:
    """Inputs of a compiled graph: random floats, and lengths of a first window."""
    random, feeds = np.random.default_rng(0), dict[str, np.ndarray]()
    inputs = {value.name: value.type.tensor_type for value in load_graph(file).graph.input}
    shapes = {name: [dim.dim_value for dim in kind.shape.dim] for name, kind in inputs.items()}
    lengths = {MOST_TOKENS: max((size for shape in shapes.values() for size in shape[2:3]), default=1)}
    lengths[LAST_INDEX] = next(iter(shapes.values()))[1] - 1
    for name, kind in inputs.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if name in lengths:
            feeds[name] = np.full(shapes[name], lengths[name], dtype)
        elif dtype.kind == "f":
            feeds[name] = random.standard_normal(shapes[name]).astype(dtype)
        else:
            feeds[name] = random.integers(0, np.iinfo(dtype).max, shapes[name]).astype(dtype)
    return Sample(feeds)


def changed_tools(lock: Lock) -> dict[str, tuple[str, str]]:
    """Tools that are installed in another version than the locked one."""
    then = {**lock.versions, "hvlc's code": lock.code[:16]}
    now = {**_installed(then), **tool_versions(), "hvlc's code": code_digest()[:16]}
    names = sorted({*then, *now})
    return {n: (then.get(n, "absent"), now.get(n, "absent")) for n in names if then.get(n) != now.get(n)}


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _check_inputs(lock: Lock, checkpoint: Checkpoint) -> None:
    found = checkpoint.file_digests
    locked = {name: (entry.bytes, entry.sha256) for name, entry in lock.checkpoint.items()}
    different = sorted(name for name in {*found, *locked} if found.get(name) != locked.get(name))
    if different:
        raise UserError(
            "package.inputs",
            f"{checkpoint.directory} is another checkpoint than the package was built from: {', '.join(different)}",
            "name the checkpoint that the lock describes",
        )


def _calibration_source(manifest: Manifest, given: str | None) -> str | None:
    """Source of the package's calibration set.

    Raises:
        UserError: it was the user's own, and nobody says where that is.
    """
    from hvlc.calibration.sources import BUILT_IN

    name = manifest.sources.calibration_name
    if given is None and name is not None and name not in BUILT_IN:
        cause = f"the package was calibrated on {name!r}, which does not come with hvlc"
        raise UserError("package.calibration", cause, "name its file or directory with --calibration")
    return given or name


def _check_calibration(manifest: Manifest, request: BuildRequest) -> None:
    """Hold the calibration set against the package's, before anything long starts."""
    if manifest.sources.calibration is None:
        return
    inputs = plan_build(request).inputs
    if inputs is None or inputs.digest != manifest.sources.calibration:
        cause = f"{request.calibration} is not what the package was calibrated on"
        raise UserError("package.calibration", cause, "name the source that the package was built with")
