"""Training, on the command line: the shipped checkpoints, and what belongs to a user's own model."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import EXAMPLES, NUMBERS, PLACE, SEED, WORDS, Real, tokens
from hvlc.cli.streams import say
from hvlc.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from hvlc.export.compressor import CompressorSettings
    from hvlc.training.recipe import Recipe
    from hvlc.workflows.train.dcl import DclResult


@click.group(short_help="Train parts of a model, or a shipped one.")
def train() -> None:
    """Train a part of your own model, or one of the project's reference checkpoints."""


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


@train.command(short_help="Train a resolution compressor for a model.")
@click.argument("checkpoint", type=PLACE)
@click.option("--data", type=WORDS, required=True, help='Questions: a JSON Lines file, "documents", "docvqa:DIR", ...')
@click.option("--labels", type=click.Choice(("equivalence", "loss")), default="equivalence", show_default=True)
@click.option(
    "--equivalence",
    type=click.Choice(("exact", "anls", "numeric")),
    default="exact",
    show_default=True,
    help="When an answer is as good as that at full size.",
)
@click.option(
    "--scales", type=NUMBERS, default=(), help="Per side, such as 0.25,0.5,0.75,1 (default: all that it chooses)."
)
@click.option("--encoder", type=WORDS, default="auto", show_default=True, help="That answers for the labels.")
@click.option("--floor", type=Real(0, 1), default=0.99, show_default=True, help="Share of the score to keep.")
@click.option("--image-only", is_flag=True, help="Do not look at the question.")
@click.option("--minutes", type=Real(0, 100_000), default=10.0, show_default=True, help="Of the network's training.")
@click.option("--max-new-tokens", type=tokens(1), default=32, show_default=True, help="Bound of an answer.")
@click.option("-n", "--count", type=EXAMPLES, default=1200, show_default=True, help="Train documents, of shipped ones.")
@_options
def vrc(checkpoint: Path, output: Path, work: Path, seed: int, as_json: bool, **options: Any) -> None:
    """Train a Visual Resolution Compressor for CHECKPOINT; resumes from WORK.

    The model answers every question at every scale; the network learns how far each image may be shrunk. It is accepted
    only if held-out questions keep the floor of the score; hvlc build --vrc puts it into a package.
    """
    from hvlc.workflows.train.vrc import VrcRequest, train_vrc

    count, reads = options.pop("count"), not options.pop("image_only")
    counts = {"train": count, "calibration": max(8, count // 3), "heldout": min(512, max(8, count // 2))}
    request = VrcRequest(
        checkpoint, output=output, work=work, seed=seed, counts=counts, reads_question=reads, **options
    )
    with progress("vrc", 1) as step:
        settings = train_vrc(request, step)
    data = {"output": str(output), **settings.model_dump(mode="json")}
    show(data, as_json, lambda console: console.print(_told(output, settings)))


@train.command(short_help="Let a small encoder answer as the large one.")
@click.argument("checkpoint", type=PLACE)
@click.option("--data", type=WORDS, required=True, help='Questions: a JSON Lines file, "documents", "docvqa:DIR", ...')
@click.option("--small", type=WORDS, default="", help="Encoder that learns (default: the one that is not the default).")
@click.option(
    "--method",
    type=click.Choice(("dcl", "ce")),
    default="dcl",
    show_default=True,
    help="Learn from the large encoder's distributions too, or from answers alone.",
)
@click.option(
    "--parts",
    type=click.Choice(("small", "all")),
    default="small",
    show_default=True,
    help="What learns: the small encoder, or both encoders and the language model.",
)
@click.option("--alone", is_flag=True, help="Leave the large encoder out, to compare.")
@click.option("--weight", type=Real(0, 1000), default=1.0, show_default=True, help="Factor on the divergence.")
@click.option("--temperature", type=Real(0.01, 100), default=2.0, show_default=True, help="Of the divergence.")
@click.option("--rate", type=Real(0, 1), default=5e-4, show_default=True, help="Peak learning rate.")
@click.option("--minutes", type=Real(0, 100_000), default=10.0, show_default=True, help="Of training.")
@click.option("--max-new-tokens", type=tokens(1), default=32, show_default=True, help="Bound of an answer.")
@click.option("-n", "--count", type=EXAMPLES, default=256, show_default=True, help="Held-out documents of the shipped.")
@_options
def dcl(checkpoint: Path, output: Path, work: Path, seed: int, as_json: bool, **options: Any) -> None:
    """Dual Consistency Learning for CHECKPOINT, which has two encoders; resumes from WORK.

    The small encoder learns to answer through the language model as the large one does. Both are measured on held-out
    questions, before and after; the output is a checkpoint like the one that was given.
    """
    from hvlc.workflows.train.dcl import DclRequest, train_dcl

    counts = {"train": 20_000, "calibration": 8, "heldout": options.pop("count")}
    request = DclRequest(checkpoint, output=output, work=work, seed=seed, counts=counts, **options)
    with progress("dcl", 1) as step:
        result = train_dcl(request, step)
    data = {"output": str(output), **asdict(result)}
    show(data, as_json, lambda console: console.print(_dcl_table(result)))


def _dcl_table(result: "DclResult") -> "Table":
    """Scores of both encoders and their agreement, before and after."""
    from rich.table import Table

    table = Table("", "before", "after")

    def told(share: float, low: float, high: float) -> str:
        return f"{share:.1%} ({low:.1%} to {high:.1%})"

    for name in (result.small, result.large):
        scores = [found.encoders[name] for found in (result.before, result.after)]
        table.add_row(f"{name}: score", *(told(one.score, one.low, one.high) for one in scores))
    table.add_row("same answer", *(told(one.same, one.low, one.high) for one in (result.before, result.after)))
    return table


def _told(output: Path, settings: "CompressorSettings") -> str:
    """Sentence on what a compressor keeps and saves."""
    found = settings.held_out
    if found is None:
        return f"{output}: not measured"
    kept = f"{found.kept:.1%} of the score ({found.kept_low:.1%} to {found.kept_high:.1%})"
    saved = f"{found.saved:.1%} of the visual tokens, the oracle {found.oracle_saved:.1%}"
    return f"{output}: {found.n} held-out questions keep {kept} and save {saved}"


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
