"""Verification of a package by its digests or by a new build, on the command line."""

from pathlib import Path

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import PLACE, THREADS, WORDS


@click.command(short_help="Compare a package's files with their digests.")
@click.argument("directory", type=PLACE)
@click.option("--rebuild", "checkpoint", type=PLACE, help="Build again from this CHECKPOINT and compare every byte.")
@click.option(
    "--calibration", type=WORDS, help="With --rebuild: the package's calibration set, where it does not come with hvlc."
)
@click.option("--vrc", type=PLACE, help="With --rebuild: the resolution compressor that was put in.")
@click.option("--threads", type=THREADS, help="Threads of the new build (default: every processor).")
@json_option
def verify(
    directory: Path,
    checkpoint: Path | None,
    calibration: str | None,
    vrc: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Hold every file of the package in DIRECTORY against its digest, or against a new build."""
    from hvlc.opening.package import open_package
    from hvlc.opening.tokenizer import check_tokenizer

    if checkpoint is not None:
        _verify_rebuilt(directory, checkpoint, calibration, vrc, threads, as_json)
        return
    package = open_package(directory, verify=True)
    check_tokenizer(directory)
    files, ignored = len(package.manifest.files), list(package.ignored)
    text = f"{files} files are as they were built"
    if ignored:
        text += f"; not part of the package, and read by nothing: {', '.join(ignored)}"
    data = {"files": files, "valid": True, "ignored": ignored}
    show(data, as_json, lambda console: console.print(text, soft_wrap=True))


def _verify_rebuilt(
    directory: Path,
    checkpoint: Path,
    calibration: str | None,
    vrc: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    from hvlc.workflows.build.rebuild import rebuild
    from hvlc.workflows.build.steps import STEPS

    with progress("rebuild", len(STEPS)) as step:
        made = rebuild(directory, checkpoint, calibration=calibration, vrc=vrc, threads=threads, progress=step)
    chance = made.left_to_chance
    data = {"files": made.files, "bytes": made.bytes, "identical": not chance, "changed_tools": made.changed_tools}
    data["left_to_chance"] = chance
    lines = [f"{made.files} files ({made.bytes / 1e6:.2f} MB) of a new build are identical to the last byte"]
    lines += [
        f"{name} differs in {count} bytes, which the compiler leaves to chance, and computes the same in emulation"
        for name, count in chance.items()
    ]
    lines += ["what the package says of its check in emulation was not measured again"] * made.checked_before
    lines += [f"although {name} was {then} and is {now}" for name, (then, now) in made.changed_tools.items()]
    show(data, as_json, lambda console: console.print("\n".join(lines)))
