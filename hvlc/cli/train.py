"""Training of the shipped checkpoints, on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvlc.cli.common import json_option, show
from hvlc.cli.options import PLACE, SEED
from hvlc.cli.streams import say
from hvlc.errors import UserError

if TYPE_CHECKING:
    from hvlc.training.recipe import Recipe


@click.group(short_help="Train a shipped checkpoint.")
def train() -> None:
    """Train one of the project's own reference checkpoints."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every training."""
    for option in (
        json_option,
        click.option("--seed", type=SEED, default=0, show_default=True),
        click.option("--work", type=PLACE, required=True, help="Directory for resumable state."),
        click.option("-o", "--output", type=PLACE, required=True, help="Directory for the checkpoint."),
    ):
        command = option(command)
    return command


@train.command(short_help="Train hypervl-nano from scratch.")
@_options
def nano(output: Path, work: Path, seed: int, as_json: bool) -> None:
    """Train hypervl-nano from scratch (one to three hours on two cores); resumes from WORK."""
    _require(output)
    from hvlc.training.nano import HyperVLNano

    _train(HyperVLNano, output, work, seed, as_json)


@train.command(short_help="Train smolvlm-nano from hypervl-nano.")
@_options
def smolvlm_nano(output: Path, work: Path, seed: int, as_json: bool) -> None:
    """Train smolvlm-nano, which starts from hypervl-nano (one to two hours on one core); resumes from WORK."""
    _require(output)
    from hvlc.training.smolvlm_nano import SmolVLMNano

    _train(SmolVLMNano, output, work, seed, as_json)


@train.command(short_help="Train qwen3vl-nano from hypervl-nano.")
@_options
def qwen3vl_nano(output: Path, work: Path, seed: int, as_json: bool) -> None:
    """Train qwen3vl-nano, which starts from hypervl-nano (an hour on one core); resumes from WORK."""
    _require(output)
    from hvlc.training.qwen3vl_nano import Qwen3VLNano

    _train(Qwen3VLNano, output, work, seed, as_json)


def _require(output: Path) -> None:
    """Look at what a training needs before it starts.

    Raises:
        UserError: packages that training needs are missing, or the output exists.
    """
    from hvlc.workflows.build.requirements import require_compile

    require_compile("training")
    if output.exists():
        raise UserError("output.exists", f"{output} exists", "choose another output")


def _progress(minutes: dict[str, float]) -> Callable[[Any], None]:
    """Say where a recipe stands whose stages, in order, take so many minutes."""
    stages = list(minutes)

    def report(update: Any) -> None:
        later = sum(minutes[stage] for stage in stages[stages.index(update.stage) + 1 :])
        left = (1 - update.over) * minutes[update.stage] + later
        values = " ".join(f"{name} {value:.3f}" for name, value in update.values.items())
        say(f"{update.stage} {update.over:4.0%} {values} | about {left:.0f} min left", error=True)

    return report


def _train(recipe: "type[Recipe]", output: Path, work: Path, seed: int, as_json: bool) -> None:
    scores = recipe.train(output, work, seed=seed, progress=_progress(recipe.MINUTES))
    data = {"checkpoint": str(output), "scores": scores}
    show(data, as_json, lambda console: console.print(f"checkpoint: {output} (scores in its README.md)"))
