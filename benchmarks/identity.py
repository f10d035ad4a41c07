"""What a change of hvlc's code does to the bytes of packages: two checkouts build the same, and every file is compared.

    git worktree add ../before v0.1.0
    python benchmarks/identity.py ../before . CHECKPOINT [MORE ...] [--recipes float32 w4a16] [--target cpu]
        [--samples N] [--work DIR] [--json]

Both checkouts run in this Python, one build at a time. Of JSON files that differ the keys are named that do, of graphs
how many nodes, inputs, outputs and initializers there are and which kinds differ. A recipe that both refuse is compared
by what they say. `hvlc.json` and `hvlc.lock.json` name the version of the code and differ always; the exit code is 1
where anything else does. Builds that WORK has already are not made again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from hvlc.files.digests import digest_file
from hvlc.manifest.lock import LOCK
from hvlc.manifest.manifest import MANIFEST
from hvlc.recipes.loading import load_recipe, shipped_recipes

_SIDES = ("before", "after")
_ALWAYS = (LOCK, MANIFEST)


@dataclass(frozen=True)
class Comparison:
    """One recipe for one checkpoint, built by both.

    Attributes:
        checkpoint: name of its directory.
        recipe: its name.
        identical: files of equal bytes.
        different: files that differ or that one side lacks, with what differs.
        refused: what both say that do not build it; empty: they do.
    """

    checkpoint: str
    recipe: str
    identical: int
    different: dict[str, list[str]]
    refused: str = ""

    @property
    def same(self) -> bool:
        """Whether nothing differs but what names the version of the code."""
        return not self.different.keys() - set(_ALWAYS)


def build(checkout: Path, checkpoint: Path, recipe: str, output: Path, options: Sequence[str]) -> tuple[int, str]:
    """The exit code of a build by a checkout, and its last lines: what is wrong, where that is not 0."""
    code, log = output.with_name(f"{output.name}.rc"), output.with_name(f"{output.name}.log")
    if not code.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "hvlc", "build", str(checkpoint), "--recipe", recipe, "-o", str(output)]
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "COLUMNS": "200"}
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(
                [*command, *options], cwd=checkout, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        code.write_text(str(done.returncode), "utf-8")
    return int(code.read_text("utf-8")), log.read_text("utf-8").replace(str(output), "OUTPUT").strip()


def compared(checkpoint: str, recipe: str, packages: Sequence[Path]) -> Comparison:
    """Every file of two packages."""
    names = sorted({path.name for package in packages for path in package.iterdir() if path.is_file()})
    different: dict[str, list[str]] = {}
    for name in names:
        a, b = (package / name for package in packages)
        if not a.exists() or not b.exists():
            different[name] = [f"{_SIDES[b.exists()]} alone"]
        elif digest_file(a) != digest_file(b):
            different[name] = list(_differences(a, b))
    return Comparison(checkpoint, recipe, len(names) - len(different), different)


def _differences(a: Path, b: Path) -> Iterator[str]:
    """What differs in two files of different bytes."""
    if a.suffix == ".json":
        first, second = (dict(_leaves(json.loads(path.read_text("utf-8")))) for path in (a, b))
        yield from sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    elif a.suffix == ".onnx":
        yield from _graph_differences(a, b)
    else:
        yield f"{a.stat().st_size} and {b.stat().st_size} bytes"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _graph_differences(a: Path, b: Path) -> Iterator[str]:
    models = [onnx.load(str(path), load_external_data=False) for path in (a, b)]
    for kind in ("node", "input", "output", "initializer"):
        first, second = ([one.SerializeToString() for one in getattr(model.graph, kind)] for model in models)
        if first != second:
            both = len(set(first) & set(second))
            yield f"{kind}: {len(first)} and {len(second)}, {both} of them the same"
    for model in models:
        model.graph.Clear()
    if models[0] != models[1]:
        yield "header"


def compare(
    checkouts: Sequence[Path], checkpoint: Path, recipe: str, target: str, work: Path, samples: int | None
) -> Comparison:
    """Build with both, and compare."""
    options = ["--target", target, "--no-aot"]
    if samples is not None and load_recipe(recipe).calibration is not None:
        options += ["--samples", str(samples)]
    outputs = [work / side / checkpoint.name / f"{recipe}-{target}" for side in _SIDES]
    made = [
        build(*given, options)
        for given in ((c, checkpoint, recipe, o) for c, o in zip(checkouts, outputs, strict=True))
    ]
    if not any(code for code, _ in made):
        return compared(checkpoint.name, recipe, outputs)
    if made[0] == made[1]:
        return Comparison(checkpoint.name, recipe, 0, {}, made[0][1])
    words = [f"{side}, exit code {code}: {said}" for side, (code, said) in zip(_SIDES, made, strict=True)]
    return Comparison(checkpoint.name, recipe, 0, {"": words})


def table(rows: Sequence[Comparison]) -> Table:
    """Comparisons as people read them."""
    shown = Table("checkpoint", "recipe", "identical", "differs", box=None)
    for row in rows:
        found = "; ".join(f"{name} ({', '.join(what)})" for name, what in row.different.items())
        shown.add_row(row.checkpoint, row.recipe, str(row.identical), found or row.refused)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--recipes", nargs="+", default=list(shipped_recipes()))
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--samples", type=int, help="of each calibration (default: the recipe's number)")
    parser.add_argument("--work", type=Path, default=Path("build/identity"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    rows = [
        compare(arguments.checkouts, checkpoint.resolve(), recipe, arguments.target, work, arguments.samples)
        for checkpoint in arguments.checkpoints
        for recipe in arguments.recipes
    ]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        Console().print(table(rows))
    return 0 if all(row.same for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
