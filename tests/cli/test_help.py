"""Every command has a summary that `--help` shows whole."""

from collections.abc import Iterator

import click
import pytest

from hvlc.cli import cli


def groups(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Group]]:
    """All groups of commands, with their paths."""
    if isinstance(command, click.Group):
        yield path, command
        for name, inner in command.commands.items():
            yield from groups(inner, (*path, name))


GROUPS = dict(groups(cli))


@pytest.mark.parametrize("path", GROUPS, ids=" ".join)
def test_no_summary_is_cut(path: tuple[str, ...]) -> None:
    group = GROUPS[path]
    with click.Context(group, info_name=" ".join(("hvlc", *path)), terminal_width=80) as context:
        text = group.get_help(context)
    assert cut(text) == []
    assert all(command.short_help or isinstance(command, click.Group) for command in group.commands.values())


def test_a_cut_summary_is_found() -> None:
    group = click.Group(
        "tools", commands=[click.Command("one", help="Words " * 40), click.Command("two", help="Short.")]
    )
    with click.Context(group, terminal_width=80) as context:
        assert [line.split()[0] for line in cut(group.get_help(context))] == ["one"]


def cut(text: str) -> list[str]:
    """Lines of a help text that end in dots."""
    return [line for line in text.splitlines() if line.rstrip().endswith("...") and not line.startswith("Usage:")]
