"""Lint of a model or a package: its graphs against a target, by rules and by the compiler; what can be fixed."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from hvlc.errors import Progress, UserError, nearest
from hvlc.files.digests import digest_file
from hvlc.files.links import leads_outside
from hvlc.files.reading import is_directory, is_file, shown, state_of
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.inputs.onnx_data import check_tensors, external_path, locations_of
from hvlc.inputs.onnx_model import open_model
from hvlc.lint.engine import lint_graph
from hvlc.lint.graphs import symbolic_dims
from hvlc.manifest.lock import LOCK
from hvlc.manifest.manifest import MANIFEST, FileEntry, Manifest
from hvlc.opening.package import open_package
from hvlc.package.atomic import atomic_directory, check_output
from hvlc.passes.lists import RefusedNodes, fixing_passes
from hvlc.results.lint import GraphLint, Lint
from hvlc.targets import Severity, Target
from hvlc.workflows.lint.probing import probed, require_compiler

#: Operators that are written in those of a later opset.
_LATE = frozenset({"com.microsoft.SkipSimplifiedLayerNormalization", "com.microsoft.RotaryEmbedding"})
_SHAPE_LIMITS = frozenset({"fixed_shapes", "max_rank"})  # another operator of the same shapes breaks them too
_NORMS = frozenset({"RMSNormalization"})  # that are right when their rows lie along one axis
_ROLE = Role.DECODER  # of a file that is not a component; the passes that fix ask for none


@dataclass(frozen=True)
class _Graph:
    """One graph to look at."""

    path: Path
    name: str
    role: str | None


def lint(
    model: Path,
    target: Target,
    *,
    dims: Mapping[str, int] | None = None,
    probe: bool = False,
    output: Path | None = None,
    progress: Progress | None = None,
) -> Lint:
    """Hold a model against a target.

    Args:
        model: ONNX file, or directory of a package.
        target: asked about every node.
        dims: sizes of symbolic dimensions: the model is judged as if they were fixed. The compiler sees the file as it
            is, so it cannot be asked then.
        probe: whether to ask the target's compiler too.
        output: directory for the model with everything fixed that can be without changing what it computes; the lint
            is then of that model. Nothing is fixed without it.
        progress: told the graph, its place and their number.

    Raises:
        UserError: no model is there, the compiler is not installed or the target has none, or the output exists.
    """
    if probe:
        require_compiler(target)
    graphs = _graphs(model)
    _check_dims(graphs, dims or {})
    fixed: dict[str, int] | None = None
    declined: tuple[str, ...] = ()
    if output is not None:
        check_output(output, force=False)
        fixed, declined = _fix(model, graphs, target, output)
        graphs = _graphs(output if is_directory(model) else output / model.name)
    found = []
    for place, graph in enumerate(graphs):
        if progress:
            progress(graph.name, place, len(graphs))
        one = lint_graph(graph.path, target, name=graph.name, role=graph.role, dims=dims)
        found.append(probed(one, target) if probe and not one.on_cpu else one)
    return Lint(
        target=target.name,
        tried=target.tried.value,
        partial=target.partial,
        graphs=tuple(found),
        fixed=fixed,
        declined=declined,
    )


def _graphs(model: Path) -> list[_Graph]:
    """The graphs of a package in the order they run, or the one of a file.

    Raises:
        UserError: no model is there.
    """
    if not is_directory(model):
        if state_of(model) is None:
            raise UserError("lint.missing", f"{shown(model)} does not exist", "name an ONNX file or a package")
        return [_Graph(model, model.stem, None)]
    components = open_package(model).manifest.components
    return [_Graph(model / entry.file, name, entry.role) for name, entry in components.items()]


def _check_dims(graphs: Sequence[_Graph], dims: Mapping[str, int]) -> None:
    """Refuse sizes of dimensions that no graph has.

    Raises:
        UserError: a name is unknown.
    """
    known = set().union(*(symbolic_dims(graph.path) for graph in graphs)) if dims else set()
    for name in sorted(dims.keys() - known):
        hint = nearest(name, known) if known else "every dimension is fixed already"
        raise UserError("lint.dim", f"no dimension {name!r} in the model", hint)


def _fix(model: Path, graphs: Sequence[_Graph], target: Target, output: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Write the model with every fix that is exact."""
    changed: dict[str, int] = {}
    declined: list[str] = []
    with atomic_directory(output, force=False) as partial:
        for name, source in _files(model):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, partial / name)
        for graph in graphs:
            before = lint_graph(graph.path, target, name=graph.name, role=graph.role)
            if before.on_cpu or not before.findings:
                continue
            written = partial / graph.path.name
            for name, count, reasons in _fix_graph(written, before, target):
                changed[name] = changed.get(name, 0) + count
                declined += [f"{graph.name}: {reason}" for reason in reasons]
        if is_directory(model) and changed:
            _renew_manifest(partial)
    return changed, tuple(declined)


def _files(model: Path) -> Iterator[tuple[str, Path]]:
    """Files of a model: those of a package, or a graph and the data that it names; names below the output.

    Raises:
        UserError: one is missing, or lies outside.
    """
    if is_directory(model):
        # A lock says how to make the same files again, and those of a fixed model are others.
        for name in (*Manifest.load(model).files, MANIFEST):
            if name != LOCK:
                yield name, _within(model, name)
        return
    yield model.name, model
    graph = open_model(model, "lint")
    check_tensors(graph, model.parent, "lint")
    for location in sorted(locations_of(graph)):
        yield location, external_path(location, model.parent, "lint")


def _within(package: Path, name: str) -> Path:
    """A file of a package."""
    path = package / name
    if leads_outside(path, package):
        raise UserError("package.escape", f"{shown(name)} lies outside {package}", "do not trust this package")
    if not is_file(path):
        raise UserError(
            "package.incomplete", f"{shown(name)} is missing from {package}", "build or copy the package again"
        )
    return path


def _fix_graph(path: Path, found: GraphLint, target: Target) -> Iterator[tuple[str, int, list[str]]]:
    """Run the passes over one graph file, in place; yields their counts and what they declined."""
    model = ir.load(path)
    for place, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}[{place}]"
    component = Component(found.name, _ROLE, model, found.name)
    named = {finding.node for finding in found.findings}
    bundle = Bundle("", {component.name: component})
    fixing_passes(target, _refused(found, target)).run(bundle)
    for entry in bundle.journal:
        # What a pass declines elsewhere nobody asked for.
        declined = [s for s in entry.skipped if s.where == found.name or s.where.partition(" input ")[0] in named]
        if entry.changed or declined:
            yield entry.step, entry.changed, [f"{skip.where}: {skip.reason}" for skip in declined]
    if any(entry.changed for entry in bundle.journal):
        onnx.save(ir.to_proto(model), path)


def _refused(found: GraphLint, target: Target) -> RefusedNodes:
    """Nodes that a target refuses, by what can be done about it."""
    rules = {f"rules.{name}": rule for name, rule in target.rules.items()}
    asked = [(f.node, operand) for f in found.findings if f.rule in rules for operand in rules[f.rule].when.inputs]
    return RefusedNodes(
        late=any(finding.operator in _LATE for finding in found.findings),
        products=frozenset(finding.node for finding in found.findings if finding.rule not in _SHAPE_LIMITS),
        wide=frozenset(f.node for f in found.findings if f.rule in rules and rules[f.rule].is_about("int64")),
        no_zero_points=frozenset(node for node, operand in asked if operand.gives_zero_point is False),
        negative_scales=frozenset(node for node, operand in asked if operand.scale_below == 0),
        norms=any(f.operator in _NORMS and f.weight is Severity.HAZARD for f in found.findings),
    )


def _renew_manifest(directory: Path) -> None:
    """Bring sizes and digests up to date."""
    manifest = Manifest.load(directory)
    files = {
        name: FileEntry(bytes=(directory / name).stat().st_size, sha256=digest_file(directory / name))
        for name in manifest.files
        if name != LOCK
    }
    text = manifest.model_copy(update={"files": files}).model_dump_json(indent=1)
    (directory / MANIFEST).write_text(text + "\n", "utf-8")
