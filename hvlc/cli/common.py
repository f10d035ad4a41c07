"""Parts of every command: printing, progress bars and the option for JSON."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from hvlc.cli.streams import say_json


def show(data: Any, as_json: bool, human: Callable[[Any], None]) -> None:
    """Print `data` as JSON, or let `human` print it through a rich console."""
    if as_json:
        say_json(data)
        return
    human(console())


def console(*, stderr: bool = False) -> Any:
    """A rich console without automatic colours, for which brackets are brackets; on stderr lines are not wrapped."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=stderr)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with time left on a terminal; silence elsewhere."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    terminal = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda text, done, total: bars.update(task, description=f"{label} {text}", completed=done, total=total)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option that every command takes: JSON instead of tables."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(function)
