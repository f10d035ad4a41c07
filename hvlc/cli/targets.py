"""The devices and runtimes, on the command line."""

import click

from hvlc.cli.common import json_option, show
from hvlc.cli.options import WORDS


@click.group(short_help="List and show targets.")
def targets() -> None:
    """The shipped devices and runtimes."""


@targets.command(name="list", short_help="List the shipped targets.")
@json_option
def list_targets(as_json: bool) -> None:
    """Names, descriptions, and how far each was tried."""
    from hvlc.report.lint import targets_table
    from hvlc.targets import load_target, shipped_targets

    loaded = [load_target(name) for name in shipped_targets()]
    data = {target.name: {"description": target.description, "tried": target.tried.value} for target in loaded}
    show(data, as_json, lambda console: console.print(targets_table(loaded)))


@targets.command(name="show", short_help="Print a target with what it extends.")
@click.argument("name", type=WORDS)
@json_option
def show_target(name: str, as_json: bool) -> None:
    """The target NAME (or a TOML file) with what it extends: every limit, and how it is known."""
    from hvlc.report.lint import target_table
    from hvlc.targets import load_target

    target = load_target(name)
    show(target.model_dump(mode="json"), as_json, lambda console: console.print(target_table(target)))
