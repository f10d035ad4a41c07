"""Calibration inputs on the command line."""

from pathlib import Path

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import MOST_SAMPLES, PLACE, WORDS, tokens


@click.group(short_help="Look at calibration inputs.")
def calibration() -> None:
    """Look at the inputs that a model is calibrated on."""


@calibration.command(name="show", short_help="Check calibration inputs and show their balance.")
@click.argument("source", type=WORDS)
@click.option("--checkpoint", type=PLACE, help="What is calibrated (default: the shipped hypervl-nano).")
@click.option(
    "--samples", type=click.IntRange(1, MOST_SAMPLES), default=128, show_default=True, help="How many at most."
)
@click.option("--tokens", type=tokens(1), default=512, show_default=True, help="Length of a window of text.")
@json_option
def show_calibration(source: str, checkpoint: Path | None, samples: int, tokens: int, as_json: bool) -> None:
    """Check SOURCE and show how balanced it is.

    SOURCE is "documents", "text", a .txt file, a .jsonl file, or a directory of texts or images. Lines of a .jsonl file
    hold text, prompt, messages, or image and question. Images are counted at full size, before the resolution
    compressor.
    """
    from hvlc.report.calibration import balance_record, balance_tables
    from hvlc.workflows.build.requirements import require_compile
    from hvlc.workflows.calibrate.show import show_inputs
    from hvlc.zoo import nano_checkpoint

    require_compile("calibration")
    with progress("images", samples) as step:
        balance = show_inputs(
            source,
            checkpoint or nano_checkpoint(),
            samples=samples,
            tokens=tokens,
            progress=lambda done: step("", done, samples),
        )
    show(balance_record(balance), as_json, lambda console: console.print(balance_tables(balance)))
