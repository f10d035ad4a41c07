"""Wording rules that can be looked for (CONTRIBUTING.md): in the code, its data and the documents."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: "is no", but for what is said so: "there is no", "is no longer", "is no more than".
_IS_NO = re.compile(r"(?<![Tt]here )\b(?:is|are) no (?!longer\b|more\b|less\b|need\b|one\b)[A-Za-z]")
#: Beginnings of docstrings and of an attribute's comment that leave out what the thing is, or which thing is judged.
_HEADLESS = re.compile(
    r'(?:"""|^\s*#: )(?:Of|That|It|Whose|Those|Who|What|How|Where|Which|Why|When|As|Whatever'
    r"|Whether (?:it|they|this|that|these|those))\b"
)
_QUOTATION = re.compile(r"\*[^*\n]*\*|\"is no\"|`[^`\n]*`")


def texts(root: Path) -> Iterator[Path]:
    """Sources, recipes, targets and documents; the changelog is history."""
    for pattern in ("hvlc/**/*.py", "hvlc/recipes/*.yaml", "hvlc/targets/**/*.toml", "docs/**/*.md", "README.md"):
        yield from sorted(root.glob(pattern))


def odd(root: Path) -> list[str]:
    """Lines that break a rule, as `file:line: text`."""
    found = []
    for path in texts(root):
        before = ""
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            said = _QUOTATION.sub("", line)
            goes_on = before.lstrip().startswith("#:") and line.lstrip().startswith("#:")
            if _IS_NO.search(said) or (path.suffix == ".py" and not goes_on and _HEADLESS.search(line)):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()}")
            before = line
    return found


def test_the_wording_holds() -> None:
    assert odd(ROOT) == []


@pytest.mark.parametrize(
    ("line", "is_odd"),
    [
        ("# a value that is no number", True),
        ("# values that are no numbers", True),
        ('"""Of a package."""', True),
        ('"""Those that are read."""', True),
        ('    """What a package says."""', True),
        ('    """How many they are."""', True),
        ('"""Where it lies."""', True),
        ('"""As stored."""', True),
        ('"""Whether it is read."""', True),
        ("#: What a parser raises.", True),
        ("    #: Of a package.", True),
        ("# there is no package", False),
        ("# There are no exceptions", False),
        ("# a file that is no longer read", False),
        ("# *is not a*, never *is no x*", False),
        ('"""Size of a package."""', False),
        ('"""Whether a package is read."""', False),
        ("#: Errors of a parser.", False),
        ("#: Errors of a parser.\n#: It has many.", False),
        ("# What follows is read.", False),
    ],
)
def test_a_planted_line_is_found(tmp_path: Path, line: str, is_odd: bool) -> None:
    (tmp_path / "hvlc").mkdir()
    (tmp_path / "hvlc/a.py").write_text(f"{line}\n")
    assert bool(odd(tmp_path)) is is_odd
