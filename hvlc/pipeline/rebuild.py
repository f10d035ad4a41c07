"""Proof that a package came from a checkpoint: the locked build is made again and every byte compared."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hvlc.checkpoint import Checkpoint
from hvlc.errors import UserError
from hvlc.lock import LOCK, Lock
from hvlc.manifest import Manifest
from hvlc.package.writer import code_digest, tool_versions
from hvlc.pipeline.build import build, plan_build
from hvlc.pipeline.request import BuildRequest, Progress


@dataclass(frozen=True)
class Rebuilt:
    """A package that was made again.

    Attributes:
        files: how many are identical.
        bytes: how many are identical.
        changed_tools: name to version then and now, where they differ; "hvlc's code" stands for its digest.
    """

    files: int
    bytes: int
    changed_tools: dict[str, tuple[str, str]]


def rebuild(
    package: Path,
    checkpoint: Path,
    *,
    calibration: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Rebuilt:
    """Make a package again from its lock and hold every file against it.

    The second package lies beside the first while it is compared, and is removed in the end.

    Args:
        package: what `hvlc build` wrote.
        checkpoint: that it was built from.
        calibration: source of its calibration set; None where it was a built-in one, or none.
        threads: of the new build.
        progress: told of the stages.

    Raises:
        UserError: the package is damaged, the checkpoint or the calibration set is another one, or a byte differs.
    """
    manifest = Manifest.load(package)
    manifest.verify(package)
    lock = Lock.load(package)
    _check_inputs(lock, Checkpoint.open(checkpoint))
    with tempfile.TemporaryDirectory(prefix=f".{package.name}.rebuild-", dir=package.resolve().parent) as work:
        recipe, target = Path(work) / "recipe.yaml", Path(work) / "target.toml"
        recipe.write_text(lock.recipe, "utf-8")
        target.write_text(lock.target, "utf-8")
        request = BuildRequest(
            checkpoint,
            str(target),
            str(recipe),
            Path(work) / "package",
            threads=threads,
            calibration=_calibration_source(manifest, calibration),
            samples=manifest.sources.calibration_samples,
            context=manifest.context_length if manifest.is_staged else None,
            aot=any(entry.compiled for entry in manifest.components.values()),
        )
        _check_calibration(manifest, request)
        made = build(request, progress).manifest
    changed = changed_tools(lock)
    there = {name: entry for name, entry in manifest.files.items() if name != LOCK}
    names = {*there, *lock.outputs, *made.files} - {LOCK}
    different = sorted(n for n in names if not there.get(n) == lock.outputs.get(n) == made.files.get(n))
    if different:
        tools = "; ".join(f"{name} was {then}, is {now}" for name, (then, now) in changed.items())
        raise UserError(
            "package.rebuild",
            f"a new build differs in {', '.join(different)}{f' ({tools})' if tools else ''}",
            "install the locked versions and try again" if tools else "report it: the same inputs gave other bytes",
        )
    return Rebuilt(len(lock.outputs), sum(entry.bytes for entry in lock.outputs.values()), changed)


def changed_tools(lock: Lock) -> dict[str, tuple[str, str]]:
    """What is installed in another version than the one that is locked."""
    then = {**lock.versions, "hvlc's code": lock.code[:16]}
    now = {**tool_versions(), "hvlc's code": code_digest()[:16]}
    names = sorted({*then, *now})
    return {n: (then.get(n, "absent"), now.get(n, "absent")) for n in names if then.get(n) != now.get(n)}


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
    """Where the package's calibration set comes from.

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
