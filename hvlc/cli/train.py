"""Training of the shipped checkpoint, on the command line."""

from pathlib import Path
from typing import Any

import click

from hvlc.cli.common import json_option, show
from hvlc.cli.options import PLACE, SEED
from hvlc.cli.streams import say
from hvlc.errors import UserError


@click.group(short_help="Train the shipped checkpoint.")
def train() -> None:
    """Train the project's own reference checkpoint."""


@train.command(short_help="Train hypervl-nano from scratch.")
@click.option("-o", "--output", type=PLACE, required=True, help="Directory for the checkpoint.")
@click.option("--work", type=PLACE, required=True, help="Directory for resumable state.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@json_option
def nano(output: Path, work: Path, seed: int, as_json: bool) -> None:
    """Train hypervl-nano from scratch (one to three hours on two cores); resumes from WORK."""
    from hvlc.workflows.build.requirements import require_compile

    require_compile("training")
    from hvlc.training.nano import MINUTES
    from hvlc.training.nano import train as train_nano

    if output.exists():
        raise UserError("output.exists", f"{output} exists", "choose another output")
    stages = list(MINUTES)

    def report(update: Any) -> None:
        left = (1 - update.over) * MINUTES[update.stage] + sum(
            MINUTES[s] for s in stages[stages.index(update.stage) + 1 :]
        )
        values = " ".join(f"{name} {value:.3f}" for name, value in update.values.items())
        say(f"{update.stage} {update.over:4.0%} {values} | about {left:.0f} min left", error=True)

    scores = train_nano(output, work, seed=seed, progress=report)
    data = {"checkpoint": str(output), "scores": scores}
    show(data, as_json, lambda console: console.print(f"checkpoint: {output} (scores in its README.md)"))
