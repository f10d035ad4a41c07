"""`hvlc sensitivity`, `hvlc pareto` and `hvlc build --budget`."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvlc import cli
from hvlc.recipes.loading import load_recipe
from hvlc.workflows.build.rebuild import rebuild
from tests.export.tiny_families import save_text

Run = Callable[..., tuple[int, str, str]]
RECIPE = """
schema_version: 1
name: mine
description: a test
rules:
- {role: decoder, quantize: {bits: 4, block_size: 32}}
budget: {bits_per_weight: 9, samples: 2, tokens: 16}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "checkpoint", "llama")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path / "mine.yaml"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], checkpoint: Path, cache: Path) -> Iterator[Run]:
    """Exit code, stdout and stderr of `hvlc COMMAND CHECKPOINT ARGUMENTS`."""
    before = signal.getsignal(signal.SIGTERM)

    def call(command: str, *arguments: object, measuring: bool = True) -> tuple[int, str, str]:
        capsys.readouterr()
        short = ("--samples", 2, "--tokens", 16, "--threads", 1) if measuring else ()
        try:
            cli.main([command, *map(str, (checkpoint, *short, "--cache", cache, *arguments))])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, before)


def test_sensitivities_are_listed_written_and_drawn(run: Run, recipe: Path, tmp_path: Path) -> None:
    code, out, err = run("sensitivity", "--recipe", recipe, "-o", tmp_path / "out", "--top", 3)
    assert code == 0
    assert "trials on 2 samples" in err
    for text in ("int4 b32", "int8 b32", "all parts", "6 parts are not shown", "per MB"):
        assert text in out
    found = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert len(found["parts"]) == 9
    assert (tmp_path / "out" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "sensitivity.svg").read_text()
    code, out, err = run("sensitivity", "--recipe", recipe, "--json")
    assert (code, json.loads(out), err) == (0, found, "")  # known by now
    assert run("sensitivity", "--recipe", recipe, "-o", tmp_path / "out")[0] == 2
    before = (tmp_path / "out" / "sensitivity.svg").read_bytes()
    assert run("sensitivity", "--recipe", recipe, "-o", tmp_path / "out", "--force")[0] == 0
    assert (tmp_path / "out" / "sensitivity.svg").read_bytes() == before


def test_output_errors_alone(run: Run, recipe: Path) -> None:
    code, out, _ = run("sensitivity", "--recipe", recipe, "--no-loss", "--format", "int4b16", "--json")
    found = json.loads(out)
    assert code == 0
    assert {c["loss"] for part in found["parts"] for c in part["candidates"]} == {None}
    assert "loss" not in run("sensitivity", "--recipe", recipe, "--no-loss")[1].splitlines()[2]


def test_a_front_has_recipes_that_build_what_it_says(run: Run, recipe: Path, tmp_path: Path) -> None:
    code, out, _ = run("pareto", "--recipe", recipe, "-o", tmp_path / "front", "--points", 4, "--json")
    assert code == 0
    front = json.loads(out)
    assert json.loads((tmp_path / "front" / "front.json").read_text()) == front
    assert (tmp_path / "front" / "front.png").is_file()
    mixed = [p for p in front["points"] if not p["uniform"]]
    assert [p["damage"] for p in mixed] == sorted((p["damage"] for p in mixed), reverse=True)
    assert [p["bits_per_weight"] for p in mixed] == sorted(p["bits_per_weight"] for p in mixed)
    for point in front["points"]:
        path = tmp_path / "front" / point["recipe"]
        assert load_recipe(str(path)).name == point["name"]
        planned = json.loads(run("plan", "--recipe", path, "--json", measuring=False)[1])
        assert planned["stored_bytes"] == point["package_bytes"]
        chosen = [a for a in planned["assignments"] if a["action"] == "quantize"]
        bits = 8 * sum(a["bytes"] for a in chosen) / sum(a["shape"][0] * a["shape"][1] for a in chosen)
        assert bits == pytest.approx(point["bits_per_weight"])
        assert point["measured"] is None


def test_a_front_is_measured(run: Run, recipe: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A text of its own, that nobody calibrates on. " * 40)
    arguments = ("--recipe", recipe, "--points", 2, "--measure", "-o", tmp_path / "front")
    assert run("pareto", *arguments)[0] == 2  # without a text
    code, out, _ = run("pareto", *arguments, "--text", text, "--score-tokens", 192)
    assert code == 0
    assert "perplexity" in out
    front = json.loads((tmp_path / "front" / "front.json").read_text())
    assert front["reference"] > 1
    by_name = {p["name"]: p["measured"] for p in front["points"]}
    assert by_name["mine-4.500bpw"] == by_name["mine-int4-b32"]
    assert abs(by_name["mine-int8-b32"] - front["reference"]) < abs(by_name["mine-int4-b32"] - front["reference"])
    assert not list((tmp_path / "front").glob(".package*"))


@pytest.mark.parametrize(("budget", "limit"), [("5bpw", None), ("0.15MB", 150_000)])
def test_a_plan_and_a_build_keep_to_a_budget(
    run: Run, recipe: Path, checkpoint: Path, tmp_path: Path, budget: str, limit: int | None
) -> None:
    arguments = ("--recipe", recipe, "--budget", budget)
    code, out, _ = run("plan", *arguments, "--json", measuring=False)
    assert code == 0
    plan = json.loads(out)
    formats = {a["format"] for a in plan["assignments"] if a["action"] == "quantize"}
    assert formats == {"int4 b32 sym f16", "int8 b32 sym f16"}
    if limit:
        assert plan["stored_bytes"] <= limit
    code, out, _ = run("build", *arguments, "-o", tmp_path / "package", "--json", measuring=False)
    assert code == 0
    if not limit:
        assert json.loads(out)["bits_per_decoder_weight"] <= 5
    lock = json.loads((tmp_path / "package" / "hvlc.lock.json").read_text())
    assert "budget" not in lock["recipe"]
    assert rebuild(tmp_path / "package", checkpoint).files > 3


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("sensitivity", ("--format", "int3b32"), "usage"),
        ("sensitivity", ("--format", "int4b8"), "usage"),
        ("sensitivity", ("--format", "int4b48"), "plan.target"),
        ("sensitivity", ("--solver", "rnt"), "recipe.solver"),
        ("sensitivity", ("--recipe", "float32"), "sensitivity.parts"),
        ("sensitivity", ("--calibration", "documents"), "calibration.modality"),
        ("pareto", ("--points", "1", "-o", "x"), "usage"),
        ("build", ("--budget", "5 bits", "-o", "x"), "budget.syntax"),
        ("build", ("--budget", "4bpw", "-o", "x"), "budget.too_small"),
        ("plan", ("--budget", "0.001MB"), "budget.too_small"),
    ],
)
def test_errors_have_a_code(
    run: Run, recipe: Path, tmp_path: Path, command: str, arguments: tuple[str, ...], code: str
) -> None:
    given = [str(tmp_path / a) if a == "x" else a for a in arguments]
    chosen = () if "--recipe" in given else ("--recipe", recipe)
    exit_code, out, _ = run(command, *given, *chosen, "--json", measuring=command not in ("build", "plan"))
    assert exit_code in (2, 3)
    assert json.loads(out)["error"]["code"] == code
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
