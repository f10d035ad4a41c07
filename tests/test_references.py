"""Modules, files and paths that documents and docstrings name in backticks exist."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_QUOTED = re.compile(r"`(hvlc(?:\.[a-z_0-9]+)+)(?:\.[A-Z]\w*(?:\.\w+)*)?`")
_PATH = re.compile(r"(?<![\w/.-])((?:hvlc|tests|docs|examples|benchmarks)/[\w./-]*\w\.(?:py|md|toml|yaml|png|svg))\b")
_FOREIGN = ("docs/ContribOperators.md", "docs/ExternalData.md")  # onnxruntime's and onnx's
_PLACEHOLDER = re.compile(r"[A-Z]{4}")  # hvlc/recipes/NAME.yaml


def _texts(root: Path) -> Iterator[Path]:
    for pattern in ("*.md", "docs/**/*.md", "hvlc/**/*.py", "tests/**/*.py", "benchmarks/*", "examples/**/*"):
        yield from (p for p in root.glob(pattern) if p.is_file() and p.suffix in (".py", ".md"))


def stale(root: Path) -> list[str]:
    """References below `root` that lead nowhere, as `file: reference`."""
    found = []
    for text in _texts(root):
        if text.name == "CHANGELOG.md" or text.name in (Path(__file__).name, "test_english.py"):
            continue
        content = text.read_text("utf-8")
        for name in _QUOTED.findall(content):
            if not name.endswith(".json") and not _resolves(root, name):
                found.append(f"{text.relative_to(root)}: {name}")
        paths = (path for path in _PATH.findall(content) if not _PLACEHOLDER.search(path) and path not in _FOREIGN)
        found += [f"{text.relative_to(root)}: {path}" for path in paths if not (root / path).exists()]
    return found


def _resolves(root: Path, dotted: str) -> bool:
    """Whether a dotted name is a module, or a name that its module defines."""
    pieces = dotted.split(".")
    for count in (len(pieces), len(pieces) - 1):
        module = root.joinpath(*pieces[:count])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.is_file():
                return count == len(pieces) or _defines(file.read_text("utf-8"), pieces[-1])
    return False


def _defines(source: str, name: str) -> bool:
    return re.search(rf"^(?:def |class |from .* import .*\b)?{name}\b", source, re.MULTILINE) is not None


def test_every_reference_leads_somewhere() -> None:
    assert stale(ROOT) == []


def test_stale_references_are_found(tmp_path: Path) -> None:
    (tmp_path / "hvlc").mkdir()
    (tmp_path / "hvlc/a.py").write_text(
        '"""See `hvlc.a.there`, `hvlc.a.gone`, `hvlc.b`, hvlc/a.py, docs/none.md."""\nthere = 1\n'
    )
    assert stale(tmp_path) == ["hvlc/a.py: hvlc.a.gone", "hvlc/a.py: hvlc.b", "hvlc/a.py: docs/none.md"]
