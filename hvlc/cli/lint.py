"""Whether a target takes a model, on the command line."""

import sys
from pathlib import Path

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import PLACE, WORDS, Dimension


@click.command(short_help="Check a model or package against a target.")
@click.argument("model", type=PLACE)
@click.option("--target", type=WORDS, required=True, help="Name of a target, or a TOML file.")
@click.option("--dim", "dims", type=Dimension(), multiple=True, help="As if a dimension had this size: NAME=SIZE.")
@click.option("--probe", is_flag=True, help="Ask the target's compiler too (needs hvlc[qnn]).")
@click.option("--fix", is_flag=True, help="Rewrite what can be without changing a number; needs -o.")
@click.option("-o", "--output", type=PLACE, help="Directory for the fixed model.")
@click.option("--allow-hazards", is_flag=True, help="Accept nodes that run and whose numbers may be wrong.")
@click.option("--sarif", type=PLACE, help="Write the findings as a SARIF file too.")
@json_option
def lint(
    model: Path,
    target: str,
    dims: tuple[tuple[str, int], ...],
    probe: bool,
    fix: bool,
    output: Path | None,
    allow_hazards: bool,
    sarif: Path | None,
    as_json: bool,
) -> None:
    """Say of every node of MODEL (an ONNX file or a package) whether a target takes it, and why not.

    Exits with 3 when the target refuses a node that it does not declare to run on the CPU.
    """
    from hvlc.errors import TargetError
    from hvlc.report.lint import lint_sarif, lint_tables
    from hvlc.results import write_whole
    from hvlc.targets import load_target
    from hvlc.workflows.lint.lint import lint as run_lint

    if fix is (output is None):
        raise click.UsageError("--fix writes a new model and needs -o, and -o is for --fix")
    if dims and (probe or fix):
        raise click.UsageError("--dim is for the rules alone: the compiler and --fix see the model as it is")
    device = load_target(target)
    with progress("lint", 1) as step:
        found = run_lint(model, device, dims=dict(dims), probe=probe, output=output, progress=step)
    if sarif:
        import json

        write_whole(sarif, [json.dumps(lint_sarif(found), indent=1), "\n"])
    refused = found.refused(allow_hazards=allow_hazards)
    data = {"refused": refused, **found.model_dump(mode="json")}
    show(data, as_json, lambda console: console.print(lint_tables(found)))
    if refused:
        sys.exit(TargetError.exit_code)
