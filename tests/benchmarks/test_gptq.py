"""The GPTQ benchmark's own parts: equal tokens and work for both sides, and what a stopped peer still says."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from hvlc.graphs.bundle import Role
from hvlc.recipes.loading import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    from make_checkpoint import make_checkpoint
    from shapes import SHAPES

    return make_checkpoint(SHAPES["tiny"], tmp_path / "tiny")


def test_tokens_are_windows_of_the_text(tiny: Path, tmp_path: Path) -> None:
    from gptq import calibration_ids

    text = "".join(chr(97 + i % 26) + " " * (i % 7 == 0) for i in range(2000))
    (tmp_path / "text.txt").write_text(text)
    ids = calibration_ids(tiny, str(tmp_path / "text.txt"), samples=4, tokens=16)
    assert ids.shape == (4, 16)
    assert len({row.tobytes() for row in ids}) > 1
    assert all(bytes(row.tolist()).decode() in text for row in ids)  # this tokenizer's ids are bytes


def test_recipe_does_what_the_peer_does(tmp_path: Path) -> None:
    from gptq import our_recipe

    recipe = load_recipe(str(our_recipe(tmp_path, 64, samples=8, tokens=32)))
    assert (recipe.calibration.samples, recipe.calibration.tokens) == (8, 32)
    chosen = {
        name: next(rule.quantize for rule in recipe.rules if rule.matches(Role.DECODER, name))
        for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight")
    }
    spec = chosen.pop("model.layers.0.mlp.up_proj.weight")
    assert spec is not None
    assert (spec.solver, spec.bits, spec.block_size, spec.symmetric) == ("gptq", 4, 64, True)
    assert list(chosen.values()) == [None, None]


def test_a_command_is_stopped_when_its_budget_is_used_up(tmp_path: Path) -> None:
    from measuring import measure

    slow = "import time; print('begun', flush=True); time.sleep(60)"
    found = measure([sys.executable, "-c", slow], log=tmp_path / "log", budget=1)
    assert found.stopped
    assert 1 < found.wall < 20
    assert (tmp_path / "log").read_text() == "begun\n"
    assert not measure([sys.executable, "-c", ""], log=tmp_path / "log", budget=60).stopped


@pytest.mark.parametrize(
    ("log", "ended", "finished"),
    [
        ("loading", False, (0, None)),
        ("x Quantizing layer 1 / 30..\n", False, (0, 30)),
        ("x Quantizing layer 1 / 30..\nQuantizing layer mlp.up_proj\ny Quantizing layer 2 / 30..\n", False, (1, 30)),
        ("x Quantizing layer 30 / 30..\n", True, (30, 30)),
    ],
)
def test_layers_that_a_peer_has_finished(log: str, ended: bool, finished: tuple[int, int | None]) -> None:
    from gptq import finished_layers

    assert finished_layers(log, ended=ended) == finished


@pytest.mark.parametrize("stopped", [True, False])
def test_ratio_of_a_stopped_peer_is_a_lower_bound(stopped: bool) -> None:
    from gptq import show, summarize
    from measuring import Measurement
    from rich.console import Console

    ours, theirs = Measurement(10, 12, 1, 1, 0), Measurement(45, 60, 1, 1, 0, stopped)
    summary = summarize(ours, theirs, "Quantizing layer 3 / 30..")
    assert (summary["ratio"], summary["lower_bound"]) == ({"wall": 4.5, "cpu": 5}, stopped)
    console = Console(record=True, width=200)
    show(console, "title", summary)
    said = console.export_text()
    assert ("at least 4.50 times" in said) == stopped
    assert ("2 of 30 layers" in said) == stopped


def test_both_sides_take_the_threads_that_are_asked_for(tmp_path: Path) -> None:
    from gptq import on_threads
    from measuring import measure

    command = [sys.executable, "-c", "import os; print(os.environ.get('OMP_NUM_THREADS'))"]
    measure(on_threads(3, command), log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "3\n"
    assert on_threads(None, command) == command


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("neural_compressor") is None, reason="neural-compressor is not installed")
def test_peer_runs_a_local_checkpoint_and_tells_its_layers(tiny: Path, tmp_path: Path) -> None:
    from gptq import finished_layers, peer_command
    from measuring import measure

    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 256, (2, 8)))
    log = tmp_path / "log"
    measure(peer_command(tiny, tmp_path / "ids.npy", block_size=32, columns=128), log=log)
    assert finished_layers(log.read_text(), ended=True) == (2, 2)
