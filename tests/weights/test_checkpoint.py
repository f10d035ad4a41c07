"""A damaged checkpoint is the user's error, named before any work, and never read outside its directory."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint

Files = dict[str, bytes]


def container(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


EIGHT = b"\0" * 8

LIES: dict[str, bytes] = {
    "beyond the file": container(entry(offsets=(0, 16), shape=(4,)), EIGHT),
    "shape and bytes disagree": container(entry(shape=(3,)), EIGHT),
    "negative start": container(entry(offsets=(-8, 0)), EIGHT),
    "negative shape": container(entry(shape=(-2, -1)), EIGHT),
    "backwards": container(entry(offsets=(8, 0)), EIGHT),
    "product that overflows": container(entry(shape=(2**32, 2**32), offsets=(0, 0)), EIGHT),
    "endless shape": container(entry(shape=(float("inf"),)), EIGHT),
    "no offsets": container({"w": {"dtype": "F32", "shape": [2]}}, EIGHT),
    "entry of another type": container({"w": 1}, EIGHT),
    "offsets of another type": container(entry(offsets="ab"), EIGHT),
    "dtype of another type": container(entry(dtype=["F32"]), EIGHT),
    "header of another type": container([1], EIGHT),
    "header that is no JSON": container(b"{broken", EIGHT),
    "header that is no text": container(b"\xff\xfe", EIGHT),
    "header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "empty file": b"",
    "seven bytes": b"\0" * 7,
}


def write(directory: Path, files: Files, config: Any = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or {"model_type": "hypervl"}))
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def refused(directory: Path) -> UserError:
    with pytest.raises(UserError) as error:
        Checkpoint.open(directory)
    assert error.value.exit_code == 2
    assert error.value.fix
    return error.value


def test_values_are_those_of_safetensors(tmp_path: Path) -> None:
    directory = write(tmp_path, {})
    values = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5, -2], np.float16),
        "c": np.array([1.5, -2], ml_dtypes.bfloat16),
        "d": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(values, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    for name, value in values.items():
        stored = checkpoint.tensors[name]
        assert (stored.shape, stored.dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(stored.read(), value)


@pytest.mark.parametrize("case", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    error = refused(write(tmp_path, {"model.safetensors": LIES[case]}))
    assert error.code in ("checkpoint.truncated", "checkpoint.dtype")
    assert "model.safetensors" in error.cause


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    error = refused(write(tmp_path, {"model.safetensors": container(entry("F8_E4M3", offsets=(0, 2)), EIGHT)}))
    assert error.code == "checkpoint.dtype"
    assert "F8_E4M3" in error.cause


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.01, 0.5, 0.99, 0.999999])
def test_a_file_cut_anywhere_is_refused(tiny_checkpoint: Path, tmp_path: Path, share: float) -> None:
    content = (tiny_checkpoint / "model.safetensors").read_bytes()
    error = refused(write(tmp_path, {"model.safetensors": content[: int(len(content) * share)]}))
    assert error.code == "checkpoint.truncated"


CONFIGS: dict[str, bytes] = {
    "no JSON": b"{",
    "a list": b"[]",
    "no model_type": b"{}",
    "a model_type that is no text": b'{"model_type": 3}',
    "no text": b"\xff",
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_names_no_model_is_refused(tmp_path: Path, case: str) -> None:
    write(tmp_path, {"config.json": CONFIGS[case]})
    assert refused(tmp_path).code == "checkpoint.config"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").code == "checkpoint.missing"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").code == "checkpoint.config"
    assert refused(write(tmp_path / "no weights", {})).code == "checkpoint.weights"


def sharded(directory: Path, weight_map: Any) -> Path:
    held = {"model-1.safetensors": "w", "model-2.safetensors": "v"}
    files = {file: container({name: entry()["w"]}, EIGHT) for file, name in held.items()}
    index = json.dumps({"weight_map": weight_map}).encode()
    return write(directory, {**files, "model.safetensors.index.json": index})


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(sharded(tmp_path, {"w": "model-1.safetensors", "v": "model-2.safetensors"}))
    assert [p.name for p in checkpoint.files] == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    ("weight_map", "code"),
    [
        ({"w": "model-3.safetensors"}, "checkpoint.weights"),
        ({"w": "../outside/model-1.safetensors"}, "checkpoint.escape"),
        ({"w": "/etc/passwd"}, "checkpoint.escape"),
        ({"w": ["model-1.safetensors"]}, "checkpoint.config"),
        ({"w": None, "v": "model-1.safetensors"}, "checkpoint.config"),
        ([], "checkpoint.config"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: Any, code: str) -> None:
    sharded(tmp_path / "outside", {})
    assert refused(sharded(tmp_path / "inside", weight_map)).code == code


def test_an_index_of_another_type_is_refused(tmp_path: Path) -> None:
    assert refused(write(tmp_path, {"model.safetensors.index.json": b"[]"})).code == "checkpoint.config"


Change = Callable[[Path], None]


def _rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = {n: t.read().copy() for n, t in Checkpoint.open(directory).tensors.items()}
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def _edit(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NORM = "model.language_model.norm.weight"
VRC = "model.resolution_compressor.linear_2.weight"
DAMAGE: dict[str, tuple[Change, str, str]] = {
    "parameter lost": (lambda d: _rewrite(d, lambda t: t.pop(NORM)), "checkpoint.weights", NORM),
    "compressor lost": (lambda d: _rewrite(d, lambda t: t.pop(VRC)), "checkpoint.weights", VRC),
    "other shape": (
        lambda d: _rewrite(d, lambda t: t.update({NORM: np.ones(3, np.float32)})),
        "checkpoint.weights",
        "[3]",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "checkpoint.tokenizer", "tokenizer.json"),
    "damaged tokenizer": (
        lambda d: (d / "tokenizer.json").write_text("{}") and None,
        "checkpoint.tokenizer",
        "tokenizer",
    ),
    "unknown model": (lambda d: _edit(d, model_type="hypervlm"), "checkpoint.model_type", "hypervlm"),
    "wrong type in config": (lambda d: _edit(d, shuffle_factor="two"), "checkpoint.config", "shuffle_factor"),
    "no whole cells": (lambda d: _edit(d, shuffle_factor=3), "checkpoint.config", "shuffle"),
    "unknown image token": (lambda d: _edit(d, image_token_id=65), "checkpoint.tokenizer", "65"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_build_of_a_damaged_checkpoint_names_the_cause_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, case: str
) -> None:
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import BuildRequest

    damage, code, word = DAMAGE[case]
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    damage(checkpoint)
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError) as error:
        build(BuildRequest(checkpoint, "cpu", "w4a16-rtn", tmp_path / "work" / "out"))
    assert error.value.code == code
    assert word in error.value.cause
    assert list((tmp_path / "work").iterdir()) == []
    if case == "unknown model":
        assert error.value.fix == "did you mean 'hypervl'?"
