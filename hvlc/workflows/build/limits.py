"""Limits that refuse a build before its work: the target, the disk, the memory."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from hvlc.errors import TargetError, UserError, raise_all
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.placement import Placement
from hvlc.graphs.shapes import dynamic_dims, infer_shapes
from hvlc.lint.engine import lint_graph
from hvlc.manifest.manifest import Manifest
from hvlc.results.build import Estimate
from hvlc.targets import Compiler, Operation, Target, target_for

_OTHER = "choose another target"
_PADDED_STATE = (
    "a decoder of fixed shapes takes a prompt in chunks, the last one padded, and the state of the decoder's "
    "convolutions would hold the padding"
)
_CUT_BLOCKS = (
    "the visual tokens of an image see those that follow, and a decoder of fixed shapes takes a prompt in chunks, of "
    "which the next is not there yet"
)
_CPU = "cpu"  # the execution provider that no package needs to name


def check_target(bundle: Bundle, target: Target) -> None:
    """Hold every node of dynamic shapes against what it is for, before the work; `check_fixed` does the others.

    Raises:
        TargetError: the target needs what hvlc cannot emit yet, or refuses operators; all of them at once.
    """
    problems = []
    if not target.fixed_shapes and target.execution_provider != _CPU and target.provider is None:
        problems.append(f"packages for the execution provider {target.execution_provider!r} cannot be written yet")
    if target.fixes(Role.DECODER) and bundle.facts.text is not None and not bundle.facts.text.rewinds:
        problems.append(_PADDED_STATE)
    if target.fixes(Role.DECODER) and bundle.facts.image is not None and bundle.facts.image.image_blocks:
        problems.append(_CUT_BLOCKS)
    problems += _refused(target, [c for c in bundle.components.values() if not target.fixes(c.role)])
    _raise(target, problems)


def check_compiler(target: Target, *, aot: bool) -> None:
    """Refuse before the work what would have to be compiled in the end, where the compiler is not installed.

    Raises:
        UserError: onnxruntime-qnn is not installed, or the target names no chip.
    """
    if not aot or target.compiler is Compiler.NONE:
        return
    from hvlc.qnn.compiler import CompileOptions
    from hvlc.qnn.isolation import require_qnn

    try:
        CompileOptions.of(target)
        require_qnn()
    except UserError as missing:
        raise UserError(missing.code, missing.cause, f"{missing.fix}, or leave it to others: --no-aot") from missing


def check_fixed(bundle: Bundle, target: Target) -> None:
    """Hold every component that has to have fixed shapes against the target; their values get their shapes.

    Raises:
        TargetError: a dimension is not fixed, a value has too many of them, a graph has too many weights, or the
            target refuses operators; all of it at once.
    """
    placed = [c for c in bundle.components.values() if target.fixes(c.role)]
    problems: list[str] = []
    for component in placed:
        infer_shapes(component.graph)
        problems += _shape_problems(component, target)
    _raise(target, [*problems, *_refused(target, placed)])


def check_written(directory: Path, manifest: Manifest, target: Target) -> None:
    """Hold the graphs of a package that are not for the CPU against every rule of the target, now scales are known.

    Args:
        directory: of the package.
        manifest: of it.
        target: that it was made for.

    Raises:
        TargetError: the target refuses a node, or computes wrong numbers for it; all of them at once.
    """
    placed = {name: entry for name, entry in manifest.components.items() if entry.placement is not Placement.CPU}
    reports = [lint_graph(directory / e.file, target, name=name, role=e.role) for name, e in placed.items()]
    found = [(report.name, finding) for report in reports for finding in report.findings]
    raise_all(
        [
            TargetError("target.refused", f"{name}: {one.node} ({one.operator}): {one.reason}", one.fix or _OTHER)
            for name, one in found
        ]
    )


def _shape_problems(component: Component, target: Target) -> Iterator[str]:
    """Values that a target of fixed shapes does not take; the first of each kind is named, the others are counted."""
    values = [*component.graph.inputs, *(v for node in component.graph.all_nodes() for v in node.outputs if v.name)]
    named = {value: f"{component.name}: {value.name}" for value in values}
    dynamic = [f"{named[value]} {cause}" for value in values if (cause := dynamic_dims(value))]
    most = target.max_rank
    deep = [v for v in values if v.shape is not None and most is not None and len(v.shape) > most]
    for found in (dynamic, [f"{named[v]} has {len(v.shape or ())} dimensions, {most} are taken" for v in deep]):
        if found:
            yield found[0] + (f" ({len(found) - 1} more values)" if len(found) > 1 else "")
    size = sum(tensor.nbytes for v in component.graph.initializers.values() if (tensor := v.const_value) is not None)
    verdict = target.takes_part(size)
    if not verdict:
        yield f"{component.name}: {verdict.reason}"


def _refused(target: Target, components: Iterable[Component]) -> list[str]:
    """Nodes that a target refuses by operator and attributes, each reason with their number and what to do about it.

    Types, scales and the values of constants are held against it once they are written: `check_written`.
    """
    homes = [(target_for(component.role, target), component.graph) for component in components]
    nodes = [(home, _by_attributes(node)) for home, graph in homes for node in graph.all_nodes()]
    found = [next(iter(home.findings(node)), None) for home, node in nodes]
    counted = Counter((one.reason, one.fix) for one in found if one is not None)
    return [f"{reason} ({count} nodes{f'; {fix}' if fix else ''})" for (reason, fix), count in sorted(counted.items())]


def _by_attributes(node: ir.Node) -> Operation:
    """A node without what it reads and writes: no condition on those holds, nor on axes, which their rank counts."""
    plain = {name: given.value for name, given in node.attributes.items() if name != "axis"}
    return Operation(node.op_type, node.domain, plain)


def _raise(target: Target, problems: Sequence[str]) -> None:
    if problems:
        raise TargetError("target.refused", f"target {target.name}: {'; '.join(problems)}", _OTHER)


def check_disk(output: Path, needed: int) -> None:
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


def check_memory(least: Estimate, allowed: int | None) -> None:
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
