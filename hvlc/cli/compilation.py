"""Compiling a package for a device, on the command line."""

from pathlib import Path
from typing import Any

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import PLACE, SIZE, WORDS, Real


@click.command("compile", short_help="Compile a package for an NPU.")
@click.argument("package", type=PLACE)
@click.option("--target", type=WORDS, required=True, help="Name of a target, or a TOML file.")
@click.option("-o", "--output", type=PLACE, required=True, help="Directory to write.")
@click.option("--force", is_flag=True, help="Replace an existing package.")
@click.option("--check/--no-check", default=True, help="Run what was compiled, in emulation, against the CPU.")
@click.option(
    "--check-seconds", type=Real(0, 1e6), default=150, show_default=True, help="Time that emulation may take."
)
@click.option(
    "--tolerance", type=Real(0, 1e6), help="Most noise of an output, e.g. 0.01 (default: what rounding explains)."
)
@click.option("--share-weights", is_flag=True, help="One binary for prompt and token graphs; no emulation loads it.")
@click.option("--max-memory", type=SIZE, help="Address space that the compiler may take, e.g. 8GB.")
@json_option
def compile_command(
    package: Path,
    target: str,
    output: Path,
    force: bool,
    check: bool,
    check_seconds: float,
    tolerance: float | None,
    share_weights: bool,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Compile PACKAGE, which `hvlc build --no-aot` wrote, for a Snapdragon's NPU (needs hvlc[qnn])."""
    from hvlc.qnn.compiler import CompileOptions
    from hvlc.qnn.isolation import Isolation
    from hvlc.report.compilation import compilation_tables
    from hvlc.targets import load_target
    from hvlc.workflows.build.compiling import CompileRequest, compile_package

    request = CompileRequest(
        check=check,
        check_seconds=check_seconds,
        tolerance=tolerance,
        share_weights=share_weights,
        isolation=Isolation(max_memory=max_memory),
    )
    with progress("compile", 1) as step:
        made = compile_package(
            package, output, CompileOptions.of(load_target(target)), request, force=force, progress=step
        )
    cost = {"seconds": made.seconds, "peak_bytes": made.peak_bytes, "bytes": made.manifest.total_bytes}
    data = {**made.compilation.model_dump(mode="json"), **cost}
    show(data, as_json, lambda console: console.print(compilation_tables(made.compilation)))


def of_package(directory: Path) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Compilation of a package as JSON and as tables; both are empty where it was not compiled."""
    from hvlc.report.compilation import compilation_tables
    from hvlc.results.compilation import read_compilation

    found = read_compilation(directory)
    return ({"compilation": found.model_dump(mode="json")}, (compilation_tables(found),)) if found else ({}, ())
