"""A damaged checkpoint is the user's error, named before any work, and never read outside its directory."""

import json
import os
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
    "header that is not a JSON": container(b"{broken", EIGHT),
    "header that is not a text": container(b"\xff\xfe", EIGHT),
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
    "a model_type that is not a text": b'{"model_type": 3}',
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
    from hvlc.workflows.build.request import open_request

    damage, code, word = DAMAGE[case]
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    damage(checkpoint)
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError) as error:
        build(open_request(checkpoint, "cpu", "w4a16-rtn", tmp_path / "work" / "out"))
    assert error.value.code == code
    assert word in error.value.cause
    assert list((tmp_path / "work").iterdir()) == []
    if case == "unknown model":
        assert error.value.fix == "did you mean 'hypervl'?"


ALIASED = container(
    {
        "__metadata__": {"format": "pt", "b": "a", "c": "nowhere"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    },
    EIGHT,
)


def test_aliases_of_a_files_metadata_are_tensors(tmp_path: Path) -> None:
    """`safetensors.torch.save_model` stores what two modules share once."""
    tensors = Checkpoint.open(write(tmp_path, {"model.safetensors": ALIASED})).tensors
    assert sorted(tensors) == ["a", "b"]
    assert tensors["b"] is tensors["a"]


def test_types_that_no_graph_reads_do_not_keep_a_checkpoint_closed(tmp_path: Path) -> None:
    content = container({"mask": {"dtype": "BOOL", "shape": [8], "data_offsets": [0, 8]}}, EIGHT)
    assert Checkpoint.open(write(tmp_path, {"model.safetensors": content})).tensors["mask"].dtype == np.bool_


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    """A sparse file would be digested for hours; safetensors refuses them too."""
    directory = write(tmp_path, {"model.safetensors": container(entry(), EIGHT)})
    with (directory / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    error = refused(directory)
    assert error.code == "checkpoint.truncated"
    assert "after its last tensor" in error.cause


@pytest.mark.parametrize(
    "name", ["below/model-1.safetensors", "../model-1.safetensors", "", ".", "/m.safetensors", "a\0b"]
)
def test_an_index_names_files_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "below").mkdir()
    content = container(entry(), EIGHT)
    (tmp_path / "below" / "model-1.safetensors").write_bytes(content)
    index = json.dumps({"weight_map": {"w": name}}).encode()
    assert refused(write(tmp_path, {"model.safetensors.index.json": index})).code in (
        "checkpoint.escape",
        "checkpoint.weights",
    )


def test_an_index_may_name_a_tied_head_that_is_not_stored(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"w": "m.safetensors", "lm_head.weight": "m.safetensors"}}).encode()
    files = {"model.safetensors.index.json": index, "m.safetensors": container(entry(), EIGHT)}
    assert sorted(Checkpoint.open(write(tmp_path, files)).tensors) == ["w"]


def linked(tmp_path: Path, files: Files) -> Path:
    """A snapshot of the hub's cache: every file is a link to its content under the digest's name."""
    root = tmp_path / "models--user--model"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, (name, content) in enumerate(files.items()):
        (root / "blobs" / f"{number:064x}").write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


CONFIG = json.dumps({"model_type": "llama"}).encode()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_snapshot_of_the_hubs_cache_is_opened(tmp_path: Path, sharded: bool) -> None:
    weights = container(entry(), EIGHT)
    index = json.dumps({"weight_map": {"w": "m.safetensors"}}).encode()
    files = {"m.safetensors": weights, "model.safetensors.index.json": index} if sharded else {}
    checkpoint = Checkpoint.open(linked(tmp_path, {"config.json": CONFIG, "model.safetensors": weights} | files))
    assert sorted(checkpoint.tensors) == ["w"]
    assert checkpoint.digest


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_a_document_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """It would be read, and perhaps copied into a package."""
    (tmp_path / "secret").write_bytes(CONFIG)
    snapshot = linked(tmp_path, {"model.safetensors": container(entry(), EIGHT)})
    (snapshot / "config.json").write_bytes(CONFIG)
    (snapshot / name).unlink(missing_ok=True)
    (snapshot / name).symlink_to(tmp_path / "secret")
    assert refused(snapshot).code == "checkpoint.escape"


DOCUMENTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
)


@pytest.mark.parametrize(
    "name", [*DOCUMENTS, "chat_template.jinja", "model.safetensors", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "sparse"])
def test_what_is_not_a_regular_file_of_bounded_size_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    directory = write(tmp_path, {"model.safetensors": container(entry(), EIGHT)})
    if name.endswith("index.json"):
        (directory / "model.safetensors").unlink()
    path = directory / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 42)
    assert refused(directory).code.startswith("checkpoint.")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"]
)
def test_code_is_refused_in_every_document(tmp_path: Path, name: str) -> None:
    named = {"model_type": "llama", "inner": {"auto_map": {"AutoModel": "evil.Evil"}}}
    files = {"model.safetensors": container(entry(), EIGHT), name: json.dumps(named).encode()}
    (tmp_path / "checkpoint").mkdir()
    directory = write(tmp_path / "checkpoint", {}, {"model_type": "llama"})
    for file, content in files.items():
        (directory / file).write_bytes(content)
    error = refused(directory)
    assert error.code == "checkpoint.code"
    assert name in error.cause


def test_shapes_of_thousands_of_dimensions_or_digits_end_at_once(tmp_path: Path) -> None:
    for shape in ([1] * 100_000, [10**38] * 1000, [True, 2], [2.0], ["2"]):
        assert refused(write(tmp_path, {"model.safetensors": container(entry(shape=shape), EIGHT)})).code == (
            "checkpoint.truncated"
        )
