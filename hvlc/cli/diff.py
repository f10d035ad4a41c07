"""In what two packages differ, on the command line."""

import sys
from pathlib import Path

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import PLACE, WORDS


@click.command(short_help="Show how two packages differ.")
@click.argument("a", type=PLACE)
@click.argument("b", type=PLACE)
@click.option("--details", is_flag=True, help="List every node, tensor and key that differs.")
@click.option("--component", type=WORDS, help="List what differs in this component alone.")
@click.option("--exit-code", is_flag=True, help="Exit with 4 when the packages differ.")
@json_option
def diff(a: Path, b: Path, details: bool, component: str | None, exit_code: bool, as_json: bool) -> None:
    """Show in what package B differs from A: files, graphs whatever their names, weights, settings, tokenizer."""
    from hvlc.errors import GateError, UserError, nearest
    from hvlc.manifest.manifest import Manifest
    from hvlc.package.difference import difference
    from hvlc.report.difference import difference_tables, summary

    known = list(dict.fromkeys(name for directory in (a, b) for name in Manifest.load(directory).components))
    if component is not None and component not in known:
        raise UserError(
            "diff.component", f"no component {component!r}: {nearest(component, known)}", "name one of them"
        )
    with progress("diff", len(known)) as step:
        found = difference(a, b, progress=step)
    if component is not None:
        found = found.model_copy(update={"components": tuple(c for c in found.components if c.name == component)})
    data = {"summary": summary(found), "identical": found.identical, "equivalent": found.equivalent}
    show(
        data | found.model_dump(mode="json"),
        as_json,
        lambda console: console.print(difference_tables(found, details=details, component=component)),
    )
    if exit_code and not found.identical:
        sys.exit(GateError.exit_code)
