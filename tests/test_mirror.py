"""A file of tests mirrors a module of hvlc, or is named for a promise and begins with it (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Folders of tests that are no room of hvlc: what they attack, measure or ship.
OTHERS = frozenset({"benchmarks", "fuzz", "nano"})

#: Files that are named for a promise, by folder: a new one is entered here.
PROMISES: dict[str, str] = {
    ".": "apps ci_example cli clients conftest door english errors family_table import_cost layers mirror references",
    "benchmarks": "benchmarks gptq identity vision",
    "cli": "help",
    "evaluation": "agreement_with_scipy",
    "export": "grid_families overview_tiles parity",
    "imaging": "sizes",
    "fuzz": "checkpoints effects gates gguf images jsonl killed memory onnx packages prequantized processes templates",
    "inputs": "bounds encodings",
    "lint": "corpus foreign hazards notation public_models",
    "nano": "accuracy browser cpp faults fixed harness parity",
    "passes": "front preparations structural",
    "qnn": "group_query_attention",
    "recipes": "extends prepare",
    "report": "gate_files records schema tables",
    "runtime": "language",
    "targets": "visits",
    "training": "qwen3vl smolvlm",
    "weights/gguf": "checkpoint families",
    "weights/prequantized": "contradictions fused_rows onnxruntime smollm2 zero_biases",
    "workflows": "calibration_cost determinism family_support fixed fixed_cache fixed_families lying_checkpoints plan "
    "public_references rules_only snapdragon snapdragon_vision staged staged_compiled static",
    "zoo": "checkpoint public_checkpoints",
}


def wrong(root: Path, promises: dict[str, str]) -> list[str]:
    """Every file of `root/tests` that keeps neither rule, and every promise without a file."""
    known = {(folder, name) for folder, names in promises.items() for name in names.split()}
    places = [path.relative_to(root / "hvlc").with_suffix("").as_posix() for path in (root / "hvlc").rglob("*")]
    found, seen = [], set()
    for path in sorted((root / "tests").rglob("test_*.py")):
        place = path.relative_to(root / "tests")
        folder, name = place.parent.as_posix(), place.stem.removeprefix("test_")
        if place.parts[0] not in (*OTHERS, place.name) and not (root / "hvlc" / place.parts[0]).is_dir():
            found.append(f"{place}: hvlc has no room {place.parts[0]}")
        seen.add((folder, name))
        mirrors = any(_ends(one, name) and (one == name or one.startswith(f"{folder}/")) for one in places)
        if (folder, name) not in known and not (mirrors and folder != "."):
            found.append(f"{place}: mirrors no module below hvlc/{folder}, and is not among PROMISES")
        if (folder, name) in known and not ast.get_docstring(ast.parse(path.read_text("utf-8"))):
            found.append(f"{place}: does not begin with its promise")
    return found + [
        f"{folder}/test_{name}.py: is among PROMISES and not there" for folder, name in sorted(known - seen)
    ]


def _ends(place: str, name: str) -> bool:
    return place.rpartition("/")[2] == name


def test_every_file_mirrors_a_module_or_is_named_for_a_promise() -> None:
    assert wrong(ROOT, PROMISES) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("graphs/test_plan.py", "", ""),
        ("graphs/test_deep.py", "", ""),  # of a module further down in the room
        ("graphs/test_promise.py", '"""It holds."""', ""),
        ("graphs/test_promise.py", "", "does not begin with its promise"),
        ("weights/test_plan.py", "", "mirrors no module below hvlc/weights"),
        ("graphs/test_other.py", '"""It holds."""', "mirrors no module below hvlc/graphs"),
        ("cellar/test_plan.py", "", "hvlc has no room cellar"),
        ("test_plan.py", '"""It holds."""', "mirrors no module below hvlc/."),
    ],
)
def test_a_planted_file_is_judged(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    planted = {f"hvlc/{name}.py": "" for name in ("graphs/plan", "graphs/below/deep", "weights/a")}
    promises = {"graphs": "promise"} if "promise" in path else {}
    for name, text in (planted | {f"tests/{path}": source}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    found = wrong(tmp_path, promises)
    assert [complaint in one for one in found][:1] == ([True] if complaint else [])
    assert complaint or found == []


def test_a_promise_without_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "hvlc").mkdir()
    assert wrong(tmp_path, {"graphs": "gone"}) == ["graphs/test_gone.py: is among PROMISES and not there"]
