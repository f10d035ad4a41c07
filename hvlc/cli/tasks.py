"""Tasks of evaluations, on the command line."""

from pathlib import Path
from typing import Any

import click

from hvlc.cli.common import json_option, show
from hvlc.cli.options import EXAMPLES, PLACE, WORDS
from hvlc.errors import UserError, nearest


@click.group(short_help="Tasks of evaluations.")
def tasks() -> None:
    """Look at tasks, and write documents as public benchmarks are laid out."""


@tasks.command(name="list", short_help="List tasks and their metrics.")
@json_option
def list_tasks(as_json: bool) -> None:
    """List the tasks of `hvlc eval --task` with their metrics and prompts."""
    from hvlc.evaluation.benchmarks.published import BENCHMARKS

    rows: list[dict[str, Any]] = [
        {"task": "documents", "title": "held-out documents of the shipped model", "metric": "exact_match"},
        {"task": "FILE.jsonl", "title": "your questions", "metric": "exact_match, or each line's own"},
    ]
    for name, benchmark in BENCHMARKS.items():
        facts = {"metric": benchmark.metric, "suffix": benchmark.suffix, "max_new_tokens": benchmark.new_tokens}
        rows.append({"task": f"{name}:DIR", "title": benchmark.title, **facts})
    show({"tasks": rows}, as_json, lambda console: _print(console, rows))


def _print(console: Any, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("task", "what", "metric", "text after every question"):
        table.add_column(title)
    for row in rows:
        table.add_row(row["task"], row["title"], row["metric"], row.get("suffix", "").strip())
    console.print(table)


@tasks.command(short_help="Write documents in a benchmark's layout.")
@click.argument("benchmark", type=WORDS)
@click.option("-o", "--output", type=PLACE, required=True, help="Directory to write.")
@click.option("-n", "--count", type=EXAMPLES, default=256, show_default=True, help="Documents.")
@click.option("--json-files", is_flag=True, help="JSON with image files beside it, in the place of Parquet.")
@json_option
def write(benchmark: str, output: Path, count: int, json_files: bool, as_json: bool) -> None:
    """Write held-out documents of the shipped model as BENCHMARK is published: docvqa, chartqa, textvqa or ocrbench."""
    from hvlc.evaluation.benchmarks.writing import WRITABLE, write_json, write_parquet
    from hvlc.evaluation.documents import DocumentsTask
    from hvlc.package.atomic import atomic_directory

    if benchmark not in WRITABLE:
        raise UserError(
            "task.unknown", f"there is no layout {benchmark!r:.80} to write", nearest(benchmark[:80], WRITABLE)
        )
    written = write_json if json_files else write_parquet
    with atomic_directory(output, force=False) as place:
        written(benchmark, DocumentsTask(count), place, count)
    data = {"output": str(output), "task": f"{benchmark}:{output}", "questions": count}
    show(data, as_json, lambda console: console.print(f"{count} questions; hvlc eval PACKAGE --task {data['task']}"))
