"""What refuses a build before its work: the target, the disk, the memory."""

import shutil
from pathlib import Path

from hvlc.built import Estimate
from hvlc.bundle import Bundle
from hvlc.errors import TargetError, UserError
from hvlc.target import Target

_EXECUTION_PROVIDER = "cpu"  # the only one so far


def check_target(bundle: Bundle, target: Target) -> None:
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
