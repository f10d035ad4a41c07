"""Sensitivity on the command line: the damage of quantization part by part, and the gain from size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import EXAMPLES, PLACE, ROWS, SAMPLES, THREADS, WORDS, Blocks, tokens
from hvlc.cli.streams import say
from hvlc.files.writing import make_directory

_PARTS = 1000  # of the progress


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that both commands share."""
    formats = click.option(
        "--format",
        "formats",
        type=Blocks(),
        multiple=True,
        default=("int4b32", "int8b32"),
        show_default=True,
        help="Format to try; repeat for several.",
    )
    options = (
        click.argument("checkpoint", type=PLACE, required=False),
        click.option(
            "--target", type=WORDS, default="cpu", show_default=True, help="Name of a target, or a TOML file."
        ),
        click.option(
            "--recipe",
            type=WORDS,
            default="w4a16",
            show_default=True,
            help="Recipe whose matrices are tried; its fixed rules stay.",
        ),
        formats,
        click.option(
            "--solver", type=WORDS, default="rtn", show_default=True, help="Who chooses the levels in a trial."
        ),
        click.option("--calibration", type=WORDS, help='Inputs: "text", "documents", a file or a directory.'),
        click.option("--samples", type=SAMPLES, default=8, show_default=True, help="How many inputs."),
        click.option("--tokens", type=tokens(8), default=256, show_default=True, help="Length of a text."),
        click.option(
            "--no-loss", is_flag=True, help="Do not compare answers: output errors alone, which is much faster."
        ),
        click.option(
            "--scaled", is_flag=True, help="Compare answers for the coarsest format alone, and scale the others."
        ),
        click.option("--threads", type=THREADS, help="Threads (default: every processor)."),
        click.option("--cache", type=PLACE, help="Keeps what was measured (default: the user's cache)."),
        click.option("--force", is_flag=True, help="Replace older results in the output."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(short_help="Measure what quantizing each part costs.")
@_options
@click.option("-o", "--output", type=PLACE, help="Directory for sensitivity.json, .png and .svg.")
@click.option("--top", type=ROWS, default=20, show_default=True, help="How many parts to list; 0 is all.")
@json_option
def sensitivity(output: Path | None, top: int, as_json: bool, force: bool, **options: Any) -> None:
    """Measure what quantizing each part of CHECKPOINT, and nothing else, does to its answers.

    A part is a group of matrices that share an input. For every format: the relative squared error of the part's
    output, and the mean divergence of the model's answers from the float model's in nats per token.
    """
    from hvlc.report.sensitivity import sensitivity_tables
    from hvlc.results.files import UNWRITABLE, write_results
    from hvlc.workflows.sensitivity.sensitivity import check_results, measure

    names = [f"sensitivity.{kind}" for kind in ("json", "png", "svg")]
    if output:
        check_results(output, names, force=force)
    with _opened(**options) as (opened, how), progress("sensitivity", _PARTS) as step:
        found = measure(opened.checkpoint, opened.text, opened.recipe, opened.target, how, step, _announce)
    if output:
        from hvlc.report.figures import draw_sensitivity

        make_directory(output, UNWRITABLE)
        data, *plots = (output / name for name in names)
        write_results({data: [found.model_dump_json(indent=1), "\n"]}, draw_sensitivity(found, plots))
    show(found.model_dump(mode="json"), as_json, lambda console: console.print(sensitivity_tables(found, top)))


@click.command(short_help="Write the front of size and accuracy.")
@_options
@click.option("-o", "--output", type=PLACE, required=True, help="Directory for front.json, plots and recipes.")
@click.option("--points", type=click.IntRange(2, 1000), default=9, show_default=True, help="Number of budgets.")
@click.option("--measure", "measured", is_flag=True, help="Build and measure a package for every point.")
@click.option("--text", type=PLACE, help="UTF-8 file that a language model's perplexity is measured on.")
@click.option("--score-tokens", type=tokens(16), default=16_384, show_default=True, help="Tokens of it.")
@click.option("-n", "--count", type=EXAMPLES, default=256, show_default=True, help="Documents to ask about.")
@json_option
def pareto(
    output: Path,
    points: int,
    measured: bool,
    text: Path | None,
    score_tokens: int,
    count: int,
    as_json: bool,
    force: bool,
    **options: Any,
) -> None:
    """Write what size buys of CHECKPOINT's answers: recipes for a series of budgets, and their predicted damage."""
    from hvlc.report.sensitivity import front_table
    from hvlc.workflows.sensitivity.pareto import FRONT, Scoring
    from hvlc.workflows.sensitivity.pareto import pareto as make_front
    from hvlc.workflows.sensitivity.sensitivity import check_results

    plots = [Path(FRONT).stem + suffix for suffix in (".png", ".svg")]
    check_results(output, [FRONT, *plots], force=force)
    scoring = Scoring(text, score_tokens, count) if measured else None
    with _opened(**options) as (opened, how), progress("pareto", _PARTS) as step:
        front = make_front(
            opened,
            how,
            output,
            count=points,
            scoring=scoring,
            plots=plots,
            force=force,
            progress=step,
            announce=_announce,
        )
    show(front.model_dump(mode="json"), as_json, lambda console: console.print(front_table(front)))


def _announce(text: str) -> None:
    say(text, error=True)


@contextmanager
def _opened(
    checkpoint: Path | None,
    target: str,
    recipe: str,
    formats: tuple[tuple[int, int], ...],
    solver: str,
    calibration: str | None,
    samples: int,
    tokens: int,
    no_loss: bool,
    scaled: bool,
    threads: int | None,
    cache: Path | None,
) -> Iterator[tuple[Any, Any]]:
    """Open the inputs of a measurement and its options."""
    from hvlc.recipes.schema import FormatSpec
    from hvlc.workflows.build.estimate import processors
    from hvlc.workflows.sensitivity.sensitivity import SensitivityOptions, opened
    from hvlc.zoo import nano_checkpoint

    tried = tuple(FormatSpec.model_validate({"bits": b, "block_size": size}) for b, size in dict.fromkeys(formats))
    how = SensitivityOptions(
        tried,
        solver,
        calibration,
        samples,
        tokens,
        loss=not no_loss,
        scaled=scaled,
        cache=cache,
        threads=threads or processors(),
    )
    with opened(checkpoint or nano_checkpoint(), recipe, target) as found:
        yield found, how
