"""The README's table of families is what the tests hold: `HVLC_REGEN=1` writes it."""

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvlc.export import known_families

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- families: written by tests/test_family_table.py -->\n", "<!-- families: end -->\n"

#: For each level, its title and where the tests that hold it say for which families: a module and a name in it.
LEVELS: dict[str, tuple[tuple[str, str], ...]] = {
    "graphs equal transformers": (
        ("tests.export.tiny_families", "TEXT"),
        ("tests.export.test_families", "VISION"),
        ("tests.export.tiny_families", "VISION_LANGUAGE"),
    ),
    "answers as `generate`": (
        ("tests.export.tiny_families", "TEXT"),
        ("tests.runtime.test_generation", "FAMILIES"),
        ("tests.export.test_gemma3", "FAMILIES"),
        ("tests.export.test_overview_tiles", "FAMILIES"),
        ("tests.export.test_internvl", "FAMILIES"),
        ("tests.export.test_lfm2_vl", "FAMILIES"),
        ("tests.export.test_grid_families", "FAMILIES"),
        ("tests.export.test_pixtral", "FAMILIES"),
    ),
    "compiled for Snapdragons, emulated": (
        ("tests.workflows.test_fixed_families", "FAMILIES"),
        ("tests.workflows.test_snapdragon_vision", "FAMILIES"),
    ),
}


def held(places: tuple[tuple[str, str], ...]) -> set[str]:
    """Families that some test modules name."""
    return {str(name) for module, attribute in places for name in getattr(importlib.import_module(module), attribute)}


def opening(family: str) -> str:
    """What a family's module says that it is, without its source."""
    said = (importlib.import_module(f"hvlc.export.families.{family}").__doc__ or "").partition("\n")[0]
    return re.sub(r" \(arXiv [^)]*\)", "", said).rstrip(".")


def table() -> Iterator[str]:
    """The lines of the table."""
    levels = {title: held(places) for title, places in LEVELS.items()}
    yield f"| `model_type` | what | {' | '.join(levels)} |"
    yield f"| :--- | :--- |{' :---: |' * len(levels)}"
    for family in known_families():
        marks = " | ".join("yes" if family in found else "" for found in levels.values())
        yield f"| `{family}` | {opening(family)} | {marks} |".replace("|  |", "| |")


def written(readme: str, lines: str) -> str:
    """The README with these lines as its table."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{lines}{END}{after}"


def test_readme_has_the_table_that_tests_hold() -> None:
    readme = README.read_text("utf-8")
    assert readme.count(BEGIN) == readme.count(END) == 1
    expected = written(readme, "\n".join(table()) + "\n")
    if os.environ.get("HVLC_REGEN"):
        README.write_text(expected, "utf-8")
        readme = README.read_text("utf-8")
    assert readme == expected


def test_levels_are_of_families_that_are_exported() -> None:
    for title, places in LEVELS.items():
        assert held(places) <= set(known_families()), title
    assert held(LEVELS["graphs equal transformers"]) == set(known_families())


@pytest.mark.parametrize("lines", ["", "| `llama` | | yes |\n"])
def test_another_table_is_found(lines: str) -> None:
    readme = README.read_text("utf-8")
    assert written(readme, lines) != readme
