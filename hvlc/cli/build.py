"""Builds and their plans, on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvlc.cli import compilation
from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import GRIDS, PLACE, SAMPLES, SIZE, THREADS, TILE_BATCH, WORDS, tokens

if TYPE_CHECKING:
    from hvlc.workflows.build.request import BuildRequest


def _build_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `build` and `plan` share."""
    options = (
        click.argument("checkpoint", type=PLACE, required=False),
        click.option(
            "--target", type=WORDS, default="cpu", show_default=True, help="Name of a target, or a TOML file."
        ),
        click.option(
            "--recipe", type=WORDS, default="w4a16", show_default=True, help="Name of a recipe, or a YAML file."
        ),
        click.option("--force", is_flag=True, help="Replace an existing package."),
        click.option("--threads", type=THREADS, help="Threads that evaluate weights (default: every processor)."),
        click.option("--max-memory", type=SIZE, help="Memory the build may take, e.g. 2GB; refused when too little."),
        click.option(
            "--calibration", type=WORDS, help='What to calibrate on: "text", "documents", a file or a directory.'
        ),
        click.option("--samples", type=SAMPLES, help="Calibration samples (default: the recipe's number)."),
        click.option(
            "--calibration-state",
            "state",
            type=PLACE,
            help="Keeps what a calibration found until the build is done (default: beside the output).",
        ),
        click.option(
            "--budget", type=WORDS, help="Choose formats within this size, e.g. 4.5bpw (bits per weight) or 40MB."
        ),
        click.option("--cache", type=PLACE, help="Keeps measurements of sensitivity (default: the user's cache)."),
        click.option("--context", type=tokens(1), help="Tokens of a KV cache of fixed shapes (NPU targets)."),
        click.option(
            "--grids",
            type=GRIDS,
            default=(),
            help="Heights and widths in pixels that images are resized to, e.g. 448x448,448x896 (NPU targets).",
        ),
        click.option("--tile-batch", type=TILE_BATCH, help="Tiles per encoder run (default: the target's)."),
        click.option("--vrc", type=PLACE, help="Resolution compressor to put in (hvlc train vrc)."),
        click.option("--policy", type=PLACE, help="YAML file of rules for encoders (default: the recipe's)."),
        click.option("--aot/--no-aot", default=True, help="Compile for the device here, where its compiler can."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(short_help="Turn a checkpoint into a package.")
@_build_options
@click.option("-o", "--output", type=PLACE, required=True, help="Directory to write.")
@json_option
def build(output: Path, as_json: bool, **options: Any) -> None:
    """Turn CHECKPOINT (a directory, a GGUF file or a model of the hub; default: hypervl-nano) into a package."""
    from hvlc.report.builds import build_record, build_tables
    from hvlc.workflows.build.build import build as run_build
    from hvlc.workflows.build.steps import STEPS

    with progress("build", len(STEPS)) as step:
        result = run_build(_build_request(output, **options), step)
    data, tables = compilation.of_package(output)
    show(build_record(result) | data, as_json, lambda console: console.print(build_tables(result), *tables))


@click.command(short_help="Show what a build would do and take.")
@_build_options
@click.option("-o", "--output", type=PLACE, help="Directory that a build would write.")
@click.option("--weights", "each", is_flag=True, help="List every weight, not one line for each kind.")
@json_option
def plan(output: Path | None, each: bool, as_json: bool, **options: Any) -> None:
    """Show what a build would do to every weight and what it would take, without building."""
    from hvlc.report.builds import plan_record, plan_table
    from hvlc.workflows.build.build import plan_build

    planned = plan_build(
        _build_request(output or Path("package"), anywhere=output is None, **options), anywhere=output is None
    )
    plan, estimate = planned.plan, planned.estimate
    show(plan_record(plan, estimate), as_json, lambda console: console.print(plan_table(plan, estimate, each=each)))


def _build_request(output: Path, checkpoint: Path | None, **options: Any) -> "BuildRequest":
    from hvlc.workflows.build.request import open_request

    return open_request(_checkpoint(checkpoint), output=output, **options)


def _checkpoint(given: Path | None) -> Path:
    if given is not None:
        return given
    from hvlc.zoo import nano_checkpoint

    return nano_checkpoint()
