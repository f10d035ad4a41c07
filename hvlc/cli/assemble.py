"""A checkpoint with a choice of vision encoders, on the command line."""

from pathlib import Path

import click

from hvlc.cli.common import json_option, show
from hvlc.cli.options import PLACE, SEED, WORDS
from hvlc.errors import UserError


@click.command(short_help="Add a vision encoder.")
@click.argument("checkpoint", type=PLACE)
@click.option("--encoder", type=WORDS, required=True, help="NAME=CHECKPOINT whose vision tower is added.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the connector, which begins untrained.")
@click.option("-o", "--output", type=PLACE, required=True, help="Directory for the checkpoint.")
@json_option
def assemble(checkpoint: Path, encoder: str, seed: int, output: Path, as_json: bool) -> None:
    """Write CHECKPOINT with the vision tower of another one beside its own, to be chosen at each request.

    Both are of one family and share tile and patch size. The new connector is untrained.
    """
    from hvlc.workflows.assemble import assemble as write

    name, _, other = encoder.partition("=")
    if not name or not other:
        raise UserError("usage", f"--encoder is {encoder!r}", "give NAME=CHECKPOINT")
    write(checkpoint, name, Path(other), output, seed=seed)
    data = {"checkpoint": str(output), "encoders": ["main", name], "untrained": [name]}
    show(
        data,
        as_json,
        lambda console: console.print(f"{output}: encoders main and {name}, whose connector is untrained"),
    )
