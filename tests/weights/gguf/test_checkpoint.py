"""A GGUF file as a checkpoint: named itself, or alone in a directory, with or without a configuration beside it."""

import json
import shutil
from pathlib import Path

import gguf
import pytest

from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.weights.prequantized.tiny_quantized import config, save_gguf


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(path, "Q4_0")
    return path


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    shutil.copyfile(saved, tmp_path / saved.name)
    return tmp_path


def test_a_file_alone_does_not_look_at_its_neighbours(directory: Path) -> None:
    (directory / "config.json").write_text("damaged")
    checkpoint = Checkpoint.open(directory / "model.gguf")
    assert checkpoint.model_type == "llama"
    assert checkpoint.gguf == directory / "model.gguf"
    assert list(checkpoint.file_digests) == ["model.gguf"]
    assert checkpoint.file_digests["model.gguf"][1] == digest_file(directory / "model.gguf")


def test_a_configuration_beside_the_file_wins(directory: Path) -> None:
    config(rms_norm_eps=0.5).save_pretrained(directory)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.config["rms_norm_eps"] == 0.5
    assert set(checkpoint.file_digests) == {"config.json", "model.gguf"}
    assert checkpoint.digest != Checkpoint.open(directory / "model.gguf").digest


def test_a_directory_with_the_file_alone_is_enough(directory: Path) -> None:
    assert Checkpoint.open(directory).config == Checkpoint.open(directory / "model.gguf").config


def test_safetensors_win_over_a_gguf_file_beside_them(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (directory / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert Checkpoint.open(directory).gguf is None


def test_several_files_are_refused(directory: Path) -> None:
    shutil.copyfile(directory / "model.gguf", directory / "other.gguf")
    with pytest.raises(UserError, match=r"several GGUF files: model\.gguf, other\.gguf"):
        Checkpoint.open(directory)


def test_a_part_of_a_model_is_refused(tmp_path: Path) -> None:
    save_gguf(tmp_path / "m.gguf", "Q4_0", edit=lambda writer: writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, 3))
    with pytest.raises(UserError, match="one of 3 parts"):
        Checkpoint.open(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["MODEL.GGUF", "model.Gguf", "9f86d081884c7d659a2feaa0c55ad015", "model.bin"])
def test_a_file_is_known_by_its_suffix_or_its_first_bytes(saved: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copyfile(saved, path)
    checkpoint = Checkpoint.open(path)
    assert checkpoint.gguf == path
    assert checkpoint.tensors.keys() == Checkpoint.open(saved).tensors.keys()


def test_a_link_of_the_hubs_cache_is_followed(saved: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shutil.copyfile(saved, blobs / "9f86d081")
    (snapshot / "model.gguf").symlink_to(Path("..") / ".." / "blobs" / "9f86d081")
    for given in (snapshot, snapshot / "model.gguf", blobs / "9f86d081"):
        assert Checkpoint.open(given).model_type == "llama"


def test_a_directory_with_a_file_of_capitals_is_enough(saved: Path, tmp_path: Path) -> None:
    shutil.copyfile(saved, tmp_path / "MODEL.GGUF")
    assert Checkpoint.open(tmp_path).gguf == tmp_path / "MODEL.GGUF"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\3\4" + bytes(60))
    with pytest.raises(UserError, match="is not a GGUF file"):
        Checkpoint.open(tmp_path / "model.gguf")
    (tmp_path / "notes").write_bytes(b"")
    with pytest.raises(UserError) as error:
        Checkpoint.open(tmp_path / "notes")
    assert error.value.code == "checkpoint.missing"


def test_a_model_without_a_name_is_built_as_one_with_a_name(saved: Path, tmp_path: Path) -> None:
    shutil.copyfile(saved, tmp_path / "9f86d081")
    build(open_request(tmp_path / "9f86d081", "cpu", "float32", tmp_path / "package", threads=1))
    content = json.loads((tmp_path / "package" / "genai_config.json").read_text())
    assert content["model"]["eos_token_id"] == [257, 256]
    assert (tmp_path / "package" / "tokenizer.json").is_file()
