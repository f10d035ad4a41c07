"""`hvlc tune`: what each choice of a package keeps and costs on a user's questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvlc.cli.common import json_option, progress, show
from hvlc.cli.options import COUNTS, EXAMPLES, FACTORS, PLACE, WORDS, Real, tokens

if TYPE_CHECKING:
    from rich.table import Table

    from hvlc.results.tuning import TuningFront


@click.command(short_help="Choose encoder, compressor and bound by questions.")
@click.argument("package", type=PLACE)
@click.option("--data", type=WORDS, required=True, help='Questions: a JSON Lines file, "documents", "docvqa:DIR", ...')
@click.option("-o", "--output", type=PLACE, required=True, help="Directory of the tuned package.")
@click.option("--report", type=PLACE, help="Directory for front.json, .png and .svg.")
@click.option("--floor", type=Real(0, 1), default=0.99, show_default=True, help="Share of the score to keep.")
@click.option("--margins", type=FACTORS, default=(), help="Factors on the compressor's scale, such as 0.9,1,1.1.")
@click.option("--bounds", type=COUNTS, default=(), help="Visual tokens for an image, such as 256,512.")
@click.option("-n", "--count", type=EXAMPLES, help="Questions (default: all).")
@click.option("--work", type=PLACE, help="File that keeps the answers, so that a run that was killed goes on.")
@click.option("--max-new-tokens", type=tokens(1), default=32, show_default=True, help="Bound of an answer.")
@json_option
def tune(package: Path, output: Path, report: Path | None, as_json: bool, **options: Any) -> None:
    """Ask PACKAGE questions by each encoder, margin of the compressor and bound of visual tokens, and write the best.

    The fastest choice that keeps the floor of the score on one half of the questions is held against the other half.
    The tuned package is a copy with that choice in it; PACKAGE stays as it is.
    """
    from hvlc.workflows.sensitivity.sensitivity import check_results
    from hvlc.workflows.tune.tune import FRONT, TuneRequest, require_confirmed
    from hvlc.workflows.tune.tune import tune as tuned

    plots = [Path(FRONT).stem + suffix for suffix in (".png", ".svg")]
    if report is not None:
        check_results(report, [FRONT, *plots], force=False)
    request = TuneRequest(package, output=output, journal=options.pop("work"), **options)
    with progress("tune", 1) as step:
        front = tuned(request, step)
    if report is not None:
        _write(front, report, FRONT, plots)
    show({"output": str(output), **front.model_dump(mode="json")}, as_json, lambda c: c.print(_table(front)))
    require_confirmed(front)


def _write(front: "TuningFront", report: Path, name: str, plots: list[str]) -> None:
    """Write the report's files."""
    from hvlc.files.writing import make_directory
    from hvlc.report.tuning import draw_tuning
    from hvlc.results.files import UNWRITABLE, write_results

    make_directory(report, UNWRITABLE)
    drawn = draw_tuning(front, [report / plot for plot in plots])
    write_results({report / name: [front.model_dump_json(indent=1), "\n"]}, drawn)


def _table(front: "TuningFront") -> "Table":
    """The front, the choice marked."""
    from rich.table import Table

    title = f"{front.data}: {front.n} questions, {front.full_score:.1%} at full size"
    table = Table("", "encoder", "margin", "bound", "kept", "confirmed", "tokens", "ms", title=title)
    for at, one in enumerate(front.candidates):
        if one.best or at == front.chosen:
            margin = "full size" if one.margin is None else f"{one.margin:g}"
            kept = (f"{one.kept_choosing:.1%}", f"{one.kept_confirming:.1%}")
            bound = "-" if one.bound is None else str(one.bound)
            mark = "*" if at == front.chosen else ""
            table.add_row(mark, one.encoder, margin, bound, *kept, f"{one.tokens:.0f}", f"{1000 * one.seconds:.0f}")
    return table
