"""Bisection on the command line: the first stage in which a package departs from its reference."""

import sys
from pathlib import Path
from typing import Any

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import PLACE, WORDS, Real, tokens
from hvlc.cli.variants import variant_option
from hvlc.errors import GateError
from hvlc.files.writing import make_directory

_FILES = ("bisect.json", "bisect.md", "bisect.svg", "bisect.png")


@click.command(short_help="Name the stage where a package departs.")
@click.argument("directory", type=PLACE)
@click.option("--reference", type=PLACE, required=True, help="Checkpoint or package to hold it against.")
@click.option("--image", "images", type=PLACE, multiple=True, help="Image file; repeat for several.")
@click.option("--prompt", type=WORDS, required=True, help="The question.")
@click.option("--encoder", type=WORDS, default="auto", show_default=True, help="Name of a vision encoder, or auto.")
@click.option("--no-vrc", is_flag=True, help="Keep the full resolution.")
@click.option(
    "--tolerance",
    type=Real(0, 1e6),
    help="Relative error of any stage (default: by the precision that a stage computes with).",
)
@click.option("--max-new-tokens", type=tokens(1), default=16, show_default=True, help="Bound of the answer.")
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Threads of onnxruntime (default: it chooses)."
)
@click.option("-o", "--output", type=PLACE, help="Directory for bisect.json, .md, .svg and .png.")
@click.option("--force", is_flag=True, help="Replace older results in the output.")
@json_option
@variant_option
def bisect(
    directory: Path, images: tuple[Path, ...], no_vrc: bool, output: Path | None, force: bool, as_json: bool, **how: Any
) -> None:
    """Name the stage where the package in DIRECTORY departs from its reference.

    Every stage, from tokenization over each layer to sampling, is run on the reference's inputs and on the package's
    own. Exits with 4 if a stage departs.
    """
    from hvlc.report.bisection import bisection_tables
    from hvlc.workflows.bisect.bisect import Request
    from hvlc.workflows.bisect.bisect import bisect as run_bisect
    from hvlc.workflows.sensitivity.sensitivity import check_results

    if output:
        check_results(output, _FILES, force=force)
    request = Request(directory, images=images, vrc=not no_vrc, **how)
    with progress("bisect", 1) as step:
        found = run_bisect(request, step)
    if output:
        _write(found, output)
    show(found.model_dump(mode="json"), as_json, lambda console: console.print(bisection_tables(found)))
    if found.departs:
        sys.exit(GateError.exit_code)


def _write(found: Any, output: Path) -> None:
    from hvlc.report.bisection import bisection_markdown
    from hvlc.report.bisection_plot import draw_bisection
    from hvlc.results.files import UNWRITABLE, write_results

    make_directory(output, UNWRITABLE)
    data, text, *plots = (output / name for name in _FILES)
    texts = {data: [found.model_dump_json(indent=1), "\n"], text: [bisection_markdown(found)]}
    write_results(texts, draw_bisection(found, plots))
