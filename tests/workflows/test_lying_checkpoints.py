"""Whole builds of checkpoints that lie: coded errors that name everything at once, and nothing left behind."""

import json
import mmap
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hvlc import cli
from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint, StoredTensor
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.request import open_request

Weights = dict[str, np.ndarray]

MATRIX = "model.language_model.layers.0.mlp.down_proj.weight"
TABLE = "model.language_model.embed_tokens.weight"
NORM = "model.language_model.norm.weight"
HEAD_NORM = "model.language_model.layers.1.self_attn.k_norm.weight"
PATCHES = "model.branches.base.tower.embeddings.patch_embedding.weight"
COMPRESSOR = "model.resolution_compressor.linear_2.weight"
KERNEL = "model.resolution_compressor.backbone.conv_1x1.convolution.weight"
HIDDEN = "model.resolution_compressor.linear_1.weight"
STATISTICS = "model.resolution_compressor.backbone.conv_1x1.normalization.running_var"
SHARDS = 3


def weights_of(checkpoint: Path) -> Weights:
    return {name: tensor.read().copy() for name, tensor in Checkpoint.open(checkpoint).tensors.items()}


def shard(directory: Path, weights: Weights) -> dict[str, str]:
    """Replace the weights by shards with an index; returns the index."""
    for file in directory.glob("model*"):
        file.unlink()
    index = {}
    for position in range(SHARDS):
        name = f"model-{position + 1:05}-of-{SHARDS:05}.safetensors"
        names = sorted(weights)[position::SHARDS]
        save_file({n: weights[n] for n in names}, directory / name)
        index |= dict.fromkeys(names, name)
    write_index(directory, index)
    return index


def write_index(directory: Path, index: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def rewrite(change: Callable[[Weights], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        weights = weights_of(directory)
        change(weights)
        save_file(weights, directory / "model.safetensors")

    return damage


def poke(name: str, value: float) -> Callable[[Path], None]:
    """One value of a weight."""

    def change(weights: Weights) -> None:
        weights[name].reshape(-1)[weights[name].size // 2] = value

    return rewrite(change)


def truncated_shard(directory: Path) -> None:
    file = directory / shard(directory, weights_of(directory))[MATRIX]
    file.write_bytes(file.read_bytes()[:-4])


def missing_shards(directory: Path) -> None:
    index = shard(directory, weights_of(directory))
    for file in sorted(set(index.values()))[:2]:
        (directory / file).unlink()


def moved_in_the_index(directory: Path) -> None:
    index = shard(directory, weights_of(directory))
    others = sorted(set(index.values()) - {index[MATRIX]})
    write_index(directory, index | {MATRIX: others[0]})


def unknown_in_the_index(directory: Path) -> None:
    index = shard(directory, weights_of(directory))
    write_index(directory, index | {"model.lost": index[MATRIX]})


@dataclass(frozen=True)
class Lie:
    """A damage, the code of its error, and every word that the error must name."""

    damage: Callable[[Path], None]
    code: str
    words: tuple[str, ...]
    problems: int = 1


def without(*names: str) -> Callable[[Path], None]:
    return rewrite(lambda weights: [weights.pop(name) for name in names])


def shaped(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    return rewrite(lambda weights: weights.update({name: np.ones(shape, np.float32)}))


def typed(name: str, dtype: type) -> Callable[[Path], None]:
    return rewrite(lambda weights: weights.update({name: weights[name].astype(dtype)}))


SEVERAL = (MATRIX, TABLE, NORM, HEAD_NORM, PATCHES, COMPRESSOR)
HEADERS = {
    "a matrix of another shape": Lie(shaped(MATRIX, (64, 95)), "checkpoint.weights", (MATRIX, "[64, 95]", "[64, 96]")),
    "a matrix turned": Lie(shaped(MATRIX, (96, 64)), "checkpoint.weights", (MATRIX, "[96, 64]")),
    "a matrix of another rank": Lie(shaped(MATRIX, (64 * 96,)), "checkpoint.weights", (MATRIX, "[6144]")),
    "a scalar for a norm": Lie(shaped(NORM, ()), "checkpoint.weights", (NORM, "[]", "[64]")),
    "an empty matrix": Lie(shaped(MATRIX, (0, 96)), "checkpoint.weights", (MATRIX, "[0, 96]")),
    "one parameter missing": Lie(without(MATRIX), "checkpoint.weights", (MATRIX, "missing")),
    "many parameters missing": Lie(without(*SEVERAL), "checkpoint.weights", SEVERAL, len(SEVERAL)),
    "one missing, one of another shape": Lie(
        rewrite(lambda w: (w.pop(NORM), w.update({MATRIX: np.ones((2, 2), np.float32)}))),
        "checkpoint.weights",
        (NORM, MATRIX),
        2,
    ),
    "integers for a matrix": Lie(typed(MATRIX, np.int8), "checkpoint.dtype", (MATRIX, "int8")),
    "integers for a norm": Lie(typed(NORM, np.int64), "checkpoint.dtype", (NORM, "int64")),
    "integers for statistics": Lie(typed(STATISTICS, np.int32), "checkpoint.dtype", (STATISTICS, "int32")),
    "another number of statistics": Lie(
        shaped(STATISTICS, (447,)), "checkpoint.weights", (STATISTICS, "[447]", "[448]")
    ),
    "statistics that would be repeated": Lie(shaped(STATISTICS, (1,)), "checkpoint.weights", (STATISTICS, "[1]")),
    "a kernel of another rank": Lie(shaped(KERNEL, (448, 112)), "checkpoint.weights", (KERNEL, "[448, 112]")),
    "a kernel for other channels": Lie(
        shaped(KERNEL, (448, 111, 1, 1)), "checkpoint.weights", (KERNEL, "[448, 111, 1, 1]", "[448, 112, 1, 1]")
    ),
    "a kernel of another size": Lie(
        shaped(KERNEL, (448, 112, 3, 3)), "checkpoint.weights", (KERNEL, "[448, 112, 3, 3]")
    ),
    "a scalar in the compressor's head": Lie(shaped(HIDDEN, ()), "checkpoint.weights", (HIDDEN, "[]"), 3),
    "parts of the compressor missing": Lie(
        without(STATISTICS, COMPRESSOR, NORM), "checkpoint.weights", (STATISTICS, COMPRESSOR, NORM), 3
    ),
    "a shard cut short": Lie(truncated_shard, "checkpoint.truncated", ("safetensors",)),
    "an index of missing shards": Lie(
        missing_shards, "checkpoint.weights", ("model-00001-of-00003", "model-00002-of-00003"), 2
    ),
    "an index that names the wrong shard": Lie(moved_in_the_index, "checkpoint.weights", (MATRIX, "index")),
    "an index that names what is nowhere": Lie(unknown_in_the_index, "checkpoint.weights", ("model.lost", "index")),
}
VALUES = {
    "NaN in a quantized matrix": Lie(poke(MATRIX, np.nan), "checkpoint.not_finite", (MATRIX,)),
    "NaN in a tied table": Lie(poke(TABLE, np.nan), "checkpoint.not_finite", (TABLE,)),
    "infinity in a quantized matrix": Lie(poke(MATRIX, np.inf), "checkpoint.not_finite", (MATRIX,)),
    "NaN in a float matrix": Lie(poke(PATCHES, np.nan), "checkpoint.not_finite", (PATCHES,)),
    "NaN in a tiny norm": Lie(poke(HEAD_NORM, np.nan), "checkpoint.not_finite", (HEAD_NORM,)),
    "negative infinity in a tiny norm": Lie(poke(NORM, -np.inf), "checkpoint.not_finite", (NORM,)),
    "NaN in folded statistics": Lie(poke(STATISTICS, np.nan), "checkpoint.not_finite", (STATISTICS,)),
    "infinity in bfloat16": Lie(
        rewrite(lambda w: w.update({MATRIX: np.full((64, 96), np.inf, ml_dtypes.bfloat16)})),
        "checkpoint.not_finite",
        (MATRIX,),
    ),
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def damaged(tiny_checkpoint: Path, tmp_path: Path, lie: Lie) -> Path:
    copied = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    lie.damage(copied)
    return copied


def assert_tells(error: UserError, lie: Lie) -> None:
    assert (error.code, error.exit_code) == (lie.code, 2)
    assert error.fix
    assert len(error.problems or (error,)) == lie.problems
    assert [word for word in lie.words if word not in error.cause] == []


@pytest.mark.parametrize("case", [*HEADERS, *VALUES])
def test_a_build_names_the_lie_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, work: Path, case: str) -> None:
    lie = (HEADERS | VALUES)[case]
    checkpoint = damaged(tiny_checkpoint, tmp_path, lie)
    with pytest.raises(UserError) as error:
        build(open_request(checkpoint, "cpu", "w4a16-rtn", work / "out", threads=2))
    assert_tells(error.value, lie)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("truth", [0, SHARDS - 1])
def test_the_index_decides_between_shards_that_hold_the_same_name(
    tiny_checkpoint: Path, tmp_path: Path, truth: int
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    index = shard(checkpoint, weights_of(checkpoint))
    for position, file in enumerate(sorted(set(index.values()))):
        held = dict(load_file(checkpoint / file))
        save_file(held | {NORM: np.full(64, position, np.float32)}, checkpoint / file)
    write_index(checkpoint, index | {NORM: sorted(set(index.values()))[truth]})
    assert (Checkpoint.open(checkpoint).tensors[NORM].read() == truth).all()


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(tensor: StoredTensor) -> np.ndarray:
        raise AssertionError(f"{tensor.name} was read")

    monkeypatch.setattr(StoredTensor, "read", read)


@pytest.mark.parametrize("case", HEADERS)
def test_a_plan_finds_what_headers_tell_without_reading_weights(
    tiny_checkpoint: Path, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    checkpoint = damaged(tiny_checkpoint, tmp_path, HEADERS[case])
    refuse_reading(monkeypatch)
    with pytest.raises(UserError) as error:
        plan_build(open_request(checkpoint, "cpu", "w4a16-rtn", work / "out"))
    assert_tells(error.value, HEADERS[case])
    assert list(work.iterdir()) == []


def test_a_plan_cannot_see_values_and_reads_none(
    tiny_checkpoint: Path, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = damaged(tiny_checkpoint, tmp_path, VALUES["NaN in a quantized matrix"])
    refuse_reading(monkeypatch)
    assert plan_build(open_request(checkpoint, "cpu", "w4a16-rtn", work / "out")).plan.assignments


def test_a_failed_build_keeps_the_package_that_it_was_to_replace(
    tiny_checkpoint: Path, tiny_w4a16: Path, tmp_path: Path, work: Path
) -> None:
    package = Path(shutil.copytree(tiny_w4a16, work / "out"))
    before = {p.name: p.read_bytes() for p in package.iterdir()}
    checkpoint = damaged(tiny_checkpoint, tmp_path, VALUES["NaN in a quantized matrix"])
    with pytest.raises(UserError, match=r"checkpoint\.not_finite"):
        build(open_request(checkpoint, "cpu", "w4a16-rtn", package, force=True))
    assert {p.name: p.read_bytes() for p in package.iterdir()} == before
    assert [p.name for p in work.iterdir()] == ["out"]


def hvlc(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0), *capsys.readouterr()


def test_problems_that_have_nothing_to_do_with_each_other_come_in_one_error(
    tiny_checkpoint: Path, tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = damaged(tiny_checkpoint, tmp_path, HEADERS["many parameters missing"])
    (work / "out").mkdir()
    arguments = ("build", checkpoint, "-o", work / "out", "--max-memory", "1MB")
    code, out, _ = hvlc(capsys, *arguments, "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["code"] == "several"
    assert set(error) == {"code", "cause", "fix", "problems"}
    assert all(set(problem) == {"code", "cause", "fix"} for problem in error["problems"])
    codes = [problem["code"] for problem in error["problems"]]
    assert codes == ["output.exists", *["checkpoint.weights"] * len(SEVERAL), "memory.limit"]
    assert all(any(name in problem["cause"] for problem in error["problems"]) for name in SEVERAL)
    code, out, text = hvlc(capsys, *arguments)
    assert (code, out) == (2, "")
    assert f"{len(codes)} problems:" in text
    assert all(f"[{code}]" in text for code in codes)
    assert list((work / "out").iterdir()) == []


def test_every_input_that_is_wrong_is_told_before_any_is_used(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "out").mkdir()
    arguments = ("build", tmp_path / "nowhere", "-o", work / "out", "--recipe", "w4", "--target", "cup", "--json")
    code, out, _ = hvlc(capsys, *arguments)
    error = json.loads(out)["error"]
    codes = [problem["code"] for problem in error["problems"]]
    assert (code, codes) == (2, ["output.exists", "recipe.unknown", "target.unknown", "checkpoint.missing"])
    assert [p.name for p in work.iterdir()] == ["out"]


def test_more_problems_than_a_screen_holds_are_all_in_the_json(
    tiny_checkpoint: Path, tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = [name for name in weights_of(tiny_checkpoint) if "language_model.layers" in name]
    checkpoint = damaged(tiny_checkpoint, tmp_path, Lie(without(*lost), "checkpoint.weights", ()))
    _, out, _ = hvlc(capsys, "plan", checkpoint, "-o", work / "out", "--json")
    problems = json.loads(out)["error"]["problems"]
    assert len(lost) > 12
    assert [name for name in lost if not any(f"{name} is missing" in p["cause"] for p in problems)] == []
    assert len(problems) == len(lost)
    _, _, text = hvlc(capsys, "plan", checkpoint, "-o", work / "out")
    assert f"and {len(lost) - 12} more (--json lists all)" in text


def test_a_single_problem_has_no_list(tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = hvlc(capsys, "build", tmp_path / "nowhere", "-o", work / "out", "--json")
    assert set(json.loads(out)["error"]) == {"code", "cause", "fix"}


def test_a_build_that_needs_more_memory_than_it_may_is_refused_before_the_work(
    tiny_checkpoint: Path, work: Path
) -> None:
    with pytest.raises(UserError) as error:
        build(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", work / "out", max_memory=mmap.PAGESIZE))
    assert error.value.code == "memory.limit"
    assert list(work.iterdir()) == []
