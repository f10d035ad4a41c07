"""The demonstration: the shipped model built, asked and compared, on the command line."""

from pathlib import Path
from typing import Any

import click

from hvlc.cli.common import console, json_option, progress, show
from hvlc.cli.options import EXAMPLES, PLACE
from hvlc.files.writing import make_directory


@click.command(short_help="Build, ask and compare the shipped model.")
@click.option("-o", "--output", type=PLACE, default=Path("build/demo"), show_default=True, help="Directory to write.")
@click.option("-n", "--count", type=EXAMPLES, default=256, show_default=True, help="Held-out documents.")
@json_option
def demo(output: Path, count: int, as_json: bool) -> None:
    """Build the shipped checkpoint by three recipes, ask it questions, and compare."""
    from hvlc.report.comparison import summary_tables
    from hvlc.report.terminal import comparison_table
    from hvlc.workflows import demo as demonstration
    from hvlc.workflows.build.steps import STEPS

    make_directory(output, "output.write")
    quiet = console(stderr=True)
    with progress("build", len(STEPS)) as step:
        packages = demonstration.build_packages(output, lambda recipe: lambda what, *at: step(f"{recipe} {what}", *at))
    for asked in demonstration.ask(packages["w4a16"], 3):
        quiet.print(f"  {asked.question}  {asked.answer}  (expected {asked.expected})")
    with progress("eval", count) as step:
        resolutions = demonstration.measure_resolutions(output, packages["float32"], count, step)
    with progress("compare", count) as step:
        compared = demonstration.compare_recipes(output, packages, count, step)
    pages = [str(output / name) for name in ("comparison.html", "report.html")]
    data = {
        "pages": pages,
        "resolutions": [e.model_dump(mode="json", exclude={"examples"}) for e in resolutions],
        "comparison": compared.comparison.model_dump(mode="json"),
    }

    def human(console: Any) -> None:
        console.print(comparison_table(resolutions), summary_tables(compared.comparison, compared.evaluations))
        console.print(f"pages: {' '.join(pages)}", soft_wrap=True)

    show(data, as_json, human)
