"""What is told before a build: the size it will have, the memory it may take, and every weight's fate."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.graphs.plan import Action
from hvlc.results.build import BuildResult, MemoryUse
from hvlc.workflows.build import memory
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.estimate import weight_totals
from hvlc.workflows.build.request import BuildRequest, open_request


def request(checkpoint: Path, output: Path, recipe: str = "w4a16-rtn", **changes: Any) -> BuildRequest:
    return open_request(checkpoint, "cpu", recipe, output, **changes)


@pytest.mark.parametrize("built", ["float32_build", "w4a16_build"])
def test_the_planned_size_is_that_of_the_package(built: str, fixtures: pytest.FixtureRequest) -> None:
    result: BuildResult = fixtures.getfixturevalue(built)
    size = sum(path.stat().st_size for path in result.output.iterdir())
    graphs = sum(path.stat().st_size for path in result.output.glob("*.onnx"))
    # Weights to the byte, graphs and configuration roughly.
    assert abs(result.estimate.disk_bytes - size) < 0.3 * graphs + 20_000


@pytest.fixture
def fixtures(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    return request


@pytest.mark.parametrize("built", ["float32_build", "w4a16_build"])
def test_the_planned_weights_fill_their_files_to_the_byte(built: str, fixtures: pytest.FixtureRequest) -> None:
    result: BuildResult = fixtures.getfixturevalue(built)
    checkpoint = fixtures.getfixturevalue("tiny_checkpoint")
    prepared = plan_build(request(checkpoint, Path("x"), result.plan.recipe), anywhere=True)
    data = sum(path.stat().st_size for path in result.output.glob("*.onnx.data"))
    assert weight_totals(prepared.bundle).data_bytes == data


def test_a_plan_is_that_of_the_build(tiny_checkpoint: Path, w4a16_build: BuildResult, tmp_path: Path) -> None:
    prepared = plan_build(request(tiny_checkpoint, tmp_path / "out"))
    assert prepared.plan == w4a16_build.plan
    assert prepared.estimate.disk_bytes == w4a16_build.estimate.disk_bytes
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_output_looks_at_no_output(tiny_checkpoint: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "out"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"output\.exists"):
        plan_build(request(tiny_checkpoint, occupied))
    assert plan_build(request(tiny_checkpoint, occupied), anywhere=True).plan.assignments


def test_a_build_reports_memory_and_seconds(w4a16_build: BuildResult) -> None:
    assert 0 < w4a16_build.memory.unshared <= w4a16_build.memory.total
    assert all(seconds >= 0 for seconds in w4a16_build.seconds.values())
    assert w4a16_build.estimate.memory_bytes > 0
    assert w4a16_build.estimate.seconds > 0


def test_fewer_threads_take_less_and_are_chosen_when_that_helps(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = request(tiny_checkpoint, tmp_path / "out")
    expected = {n: plan_build(request(tiny_checkpoint, base.output, threads=n)).estimate for n in (1, 8)}
    assert expected[1].memory_bytes < expected[8].memory_bytes
    between = (expected[1].memory_bytes + expected[8].memory_bytes) // 2
    chosen = plan_build(request(tiny_checkpoint, base.output, threads=8, max_memory=between)).estimate
    assert 1 <= chosen.threads < 8
    assert chosen.memory_bytes <= between


def test_too_little_memory_is_refused_with_what_it_takes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        build(request(tiny_checkpoint, tmp_path / "out", max_memory=10_000_000))
    assert error.value.code == "memory.limit"
    allowed = int(error.value.fix.split()[1]) * 1_000_000
    assert build(request(tiny_checkpoint, tmp_path / "out", max_memory=allowed)).memory.unshared <= allowed


def test_a_build_that_exceeds_its_limit_is_stopped_and_removed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "current_memory", lambda: MemoryUse(5 * 10**12, 5 * 10**12))
    with pytest.raises(UserError) as error:
        build(request(tiny_checkpoint, tmp_path / "out", max_memory=4 * 10**12))
    assert error.value.code == "memory.exceeded"
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_that_stays_says_why(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prepared = plan_build(request(tiny_checkpoint, tmp_path / "out", "genai-default"))
    kept = [a for a in prepared.plan.assignments if a.action is Action.KEEP]
    assert kept
    assert all(a.reason for a in kept)


def test_without_the_extra_a_build_says_what_to_install_and_what_else_is_wrong(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        build(request(tiny_checkpoint, tmp_path / "out"))
    assert (error.value.code, error.value.fix) == ("install.compile", "pip install 'hvlc[compile]'")
    with pytest.raises(UserError) as error:
        build(request(tiny_checkpoint, tmp_path / "out", "no-such-recipe"))
    assert [p.code for p in error.value.problems] == ["install.compile", "recipe.unknown"]
