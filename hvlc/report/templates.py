"""Jinja templates of the pages; whatever they are given is escaped."""

from pathlib import Path

import jinja2

_HERE = Path(__file__).parent


def asset(name: str) -> str:
    """The text of a file beside the templates."""
    return (_HERE / name).read_text(encoding="utf-8")


def page_environment() -> jinja2.Environment:
    """An environment for the templates; a value that a template misses is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
