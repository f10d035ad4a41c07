"""Compiles the NPU components of a package for one chip, runs them in emulation, and writes the package anew."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvlc.errors import Progress, TargetError, UserError
from hvlc.files.digests import digest_file
from hvlc.files.scratch import scratch_directory
from hvlc.graphs.placement import Phase, Placement
from hvlc.inputs.documents import read_json
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import MANIFEST, CompiledEntry, ComponentEntry, FileEntry, Manifest
from hvlc.opening.graphs import load_graph
from hvlc.opening.package import open_package
from hvlc.package.atomic import atomic_directory
from hvlc.package.prune import data_files, prune_data
from hvlc.qnn.checking import Sample, check_compiled
from hvlc.qnn.compiler import PROVIDER, Compiled, CompileOptions, compile_graph, compile_graphs
from hvlc.qnn.isolation import Isolation, require_qnn
from hvlc.results.compilation import COMPILATION, Compilation, GraphCheck, NotChecked
from hvlc.workflows.build.emulation import Amount, component_samples

_CONFIG = "genai_config.json"
_TOOL = "onnxruntime-qnn"
#: Name of the provider in genai_config.json.
_GENAI_PROVIDER = "QNN"
_ALWAYS_UNCHECKED = (
    NotChecked(what="speed, memory and the last bit on a device", reason="emulation on x86-64 shows none of them"),
)
_SHARED = "graphs of one binary share weights, which the emulation cannot load; its graphs were checked one by one"


@dataclass(frozen=True)
class CompileRequest:
    """Request to compile a package.

    Attributes:
        check: whether compiled graphs are run in emulation.
        amount: how much of each.
        check_seconds: that emulation may take in all; what it does not reach is named in the report.
        tolerance: most noise of an output; None follows from the depth of each graph.
        share_weights: put the graphs for the prompt and for one token into one binary, which no emulation can load.
        isolation: bounds of time and memory for one compilation.
    """

    check: bool = True
    amount: Amount = field(default_factory=Amount)
    check_seconds: float = 150
    tolerance: float | None = None
    share_weights: bool = False
    isolation: Isolation = field(default_factory=Isolation)


@dataclass(frozen=True)
class CompiledPackage:
    """A package that was compiled.

    Attributes:
        directory: where it is.
        manifest: of it.
        compilation: what was compiled and checked.
        seconds: of each component's compilation.
        peak_bytes: most resident memory of the compiler.
    """

    directory: Path
    manifest: Manifest
    compilation: Compilation
    seconds: Mapping[str, float]
    peak_bytes: int


def compile_package(
    source: Path,
    output: Path,
    options: CompileOptions,
    request: CompileRequest | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> CompiledPackage:
    """Compile a package that was built with its graphs left to their runtime (`--no-aot`).

    Args:
        source: what `hvlc build --no-aot` wrote.
        output: appears whole, or not at all.
        options: what to compile for.
        request: how.
        force: replace an older package.
        progress: told of the components.

    Raises:
        UserError: no such package, or it was changed, or the compiler is not installed.
        TargetError: see `compile_in_place`.
    """
    manifest = open_package(source, verify=True).manifest
    _placed(source, manifest, options.target)  # refuses before anything is copied
    with atomic_directory(output, force=force) as partial:
        for name in (*manifest.files, MANIFEST):
            shutil.copyfile(source / name, partial / name)
        made = compile_in_place(partial, options, request, progress)
    return CompiledPackage(output, made.manifest, made.compilation, made.seconds, made.peak_bytes)


def compile_in_place(
    directory: Path, options: CompileOptions, request: CompileRequest | None = None, progress: Progress | None = None
) -> CompiledPackage:
    """Compile every NPU component of a package in a directory that nobody else sees yet.

    Each becomes a file of the same name that refers to a context binary beside it, with the same inputs and outputs.
    Data files keep what the other graphs read; configuration, lock and manifest are made anew.

    Args:
        directory: the package; it is left half-done by an error.
        options: what to compile for.
        request: how.
        progress: told of the components.

    Raises:
        UserError: the package has no NPU component, is compiled already or was built for another target, or the
            compiler is not installed.
        TargetError: a component does not compile wholly for the target's chip, or computes something else there.
    """
    require_qnn()
    directory = directory.resolve()  # the compiler's process has a working directory of its own
    request, told = request or CompileRequest(), progress or (lambda what, done, total: None)
    manifest = open_package(directory).manifest
    placed = _placed(directory, manifest, options.target)
    samples = component_samples(directory, manifest, request.amount) if request.check else {}
    with scratch_directory(directory, ".compiled-") as made:
        compiled: dict[str, Compiled] = {}
        for number, (name, entry) in enumerate(placed.items()):
            told(f"compile {name}", number, len(placed))
            compiled[name] = compile_graph(directory / entry.file, options, made, request.isolation)
        checks, unchecked = _checks(compiled, samples, request, told)
        if request.share_weights:
            compiled |= _shared(directory, placed, options, made, request.isolation)
            binaries = sorted({c.context.binary.name for c in compiled.values() if c.record.shared_with})
            unchecked += [NotChecked(what=binary, reason=_SHARED) for binary in binaries]
        compilation = Compilation(
            target=options.target,
            compiler=next(iter(compiled.values())).compiler,
            graphs=tuple(c.record for c in compiled.values()),
            checks=tuple(checks),
            not_checked=(*unchecked, *_ALWAYS_UNCHECKED),
        )
        before = {name: data_files(load_graph(directory / entry.file)) for name, entry in placed.items()}
        for path in sorted(made.iterdir()):
            path.replace(directory / path.name)
    _drop_weights(directory, manifest, set().union(*before.values()))
    seconds = {name: c.seconds for name, c in compiled.items()}
    written = _describe(directory, manifest, compiled, compilation)
    return CompiledPackage(directory, written, compilation, seconds, max(c.peak_bytes for c in compiled.values()))


def _placed(directory: Path, manifest: Manifest, target: str) -> dict[str, ComponentEntry]:
    """The components that are compiled.

    Raises:
        UserError: there is none, or they are compiled already, or were built for another target.
    """
    placed = {name: entry for name, entry in manifest.components.items() if entry.placement is Placement.NPU}
    if not placed:
        cause = f"{directory.name} has no component for an NPU: it was built for {manifest.sources.target_name}"
        raise UserError("compile.nothing", cause, "build it for the target with --no-aot")
    done = [name for name, entry in placed.items() if entry.compiled]
    if done:
        cause = f"{', '.join(done)} of {directory.name} are compiled already"
        raise UserError("compile.done", cause, "compile the package that was built with --no-aot")
    if manifest.sources.target_name != target:
        cause = f"{directory.name} was built for {manifest.sources.target_name}, not for {target}"
        raise UserError("compile.target", cause, "build it for each target: graphs and limits are the target's")
    return placed


def _checks(
    compiled: Mapping[str, Compiled], samples: Mapping[str, Sequence[Sample]], request: CompileRequest, told: Progress
) -> tuple[list[GraphCheck], list[NotChecked]]:
    """Run what can be run in time, small graphs first."""
    if not request.check:
        return [], [NotChecked(what="every compiled graph", reason="emulation was not asked for")]
    checks: list[GraphCheck] = []
    unchecked: list[NotChecked] = []
    ends = time.monotonic() + request.check_seconds
    for number, (name, made) in enumerate(sorted(compiled.items(), key=lambda item: item[1].record.binary_bytes)):
        told(f"emulate {name}", number, len(compiled))
        left = ends - time.monotonic()
        if not samples.get(name):
            unchecked.append(NotChecked(what=name, reason="no input that the package's own graphs make reaches it"))
            continue
        try:
            inputs = request.amount.describe()
            checks.append(
                check_compiled(made, samples[name], inputs, request.tolerance, Isolation(seconds=max(left, 0.1)))
            )
        except TargetError as error:
            if error.code != "check.timeout":
                raise
            reason = f"emulation takes longer than the {request.check_seconds:g} s that it was given in all"
            unchecked.append(NotChecked(what=name, reason=reason))
    return checks, unchecked


def _shared(
    directory: Path, placed: Mapping[str, ComponentEntry], options: CompileOptions, made: Path, isolation: Isolation
) -> Iterator[tuple[str, Compiled]]:
    """The decoder's graphs for prompts and for tokens again, in pairs that share their weights."""
    for name, entry in placed.items():
        if entry.phase is not Phase.PROMPT:
            continue
        other = f"{name.removesuffix(Phase.PROMPT)}{Phase.TOKEN}"
        for stem in (name, other):
            (made / f"{stem}_qnn.bin").unlink()
        files = [directory / placed[stem].file for stem in (name, other)]
        yield from zip((name, other), compile_graphs(files, options, made, isolation), strict=True)


def _drop_weights(directory: Path, manifest: Manifest, files: set[str]) -> None:
    """Cut out of data files what only the compiled graphs have read."""
    kept = [name for name in manifest.files if name.endswith(".onnx")]
    prune_data(directory, kept, sorted(files))


def _describe(
    directory: Path, manifest: Manifest, compiled: Mapping[str, Compiled], compilation: Compilation
) -> Manifest:
    """Write report, configuration, lock and manifest of a package whose graphs are there."""
    (directory / COMPILATION).write_text(compilation.model_dump_json(indent=1) + "\n", "utf-8")
    if (directory / _CONFIG).is_file():
        config = read_json(directory / _CONFIG, "package.configuration")
        _write(directory / _CONFIG, with_provider(config, {c.context.file.name: c.options for c in compiled.values()}))
    versions = {**manifest.sources.versions, _TOOL: compilation.compiler}
    lock = Lock.load(directory)
    (directory / LOCK).unlink()
    outputs = _entries(directory)
    _write(directory / LOCK, lock.model_copy(update={"outputs": outputs, "versions": versions}).model_dump(mode="json"))
    components = {
        name: entry.model_copy(update={"compiled": _entry(compiled[name])}) if name in compiled else entry
        for name, entry in manifest.components.items()
    }
    content = manifest.model_dump(mode="json") | {
        "sources": {**manifest.sources.model_dump(mode="json"), "versions": versions},
        "components": {name: entry.model_dump(mode="json") for name, entry in components.items()},
        "files": {name: entry.model_dump(mode="json") for name, entry in _entries(directory).items()},
    }
    written = Manifest.parse(content, MANIFEST)  # from plain values, so that it is validated
    _write(directory / MANIFEST, written.model_dump(mode="json"))
    return written


def with_provider(config: Mapping[str, Any], compiled: Mapping[str, CompileOptions]) -> dict[str, Any]:
    """genai_config.json with the provider named for every stage of the decoder that is compiled.

    Args:
        config: as it was.
        compiled: options by the file that they belong to.
    """
    changed: dict[str, Any] = json.loads(json.dumps(config))
    for stages in changed["model"]["decoder"].get("pipeline", ()):
        for stage in stages.values():
            if stage["filename"] in compiled:
                options = {_GENAI_PROVIDER: compiled[stage["filename"]].running()}
                stage["session_options"]["provider_options"] = [options]
    return changed


def _entry(compiled: Compiled) -> CompiledEntry:
    context = compiled.context
    return CompiledEntry(
        binary=context.binary.name,
        chip=context.chip,
        soc_model=context.soc_model,
        htp_arch=context.htp_arch,
        sdk=context.sdk,
        provider=PROVIDER,
        provider_options=compiled.options.running(),
    )


def _entries(directory: Path) -> dict[str, FileEntry]:
    """Every file of the package but its manifest."""
    paths = sorted(path for path in directory.iterdir() if path.name != MANIFEST and path.is_file())
    return {path.name: FileEntry(bytes=path.stat().st_size, sha256=digest_file(path)) for path in paths}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
