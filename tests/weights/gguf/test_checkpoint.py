"""A GGUF file as a checkpoint: named itself, or alone in a directory, with or without a configuration beside it."""

import json
import shutil
from pathlib import Path

import gguf
import pytest

from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.weights.checkpoint import Checkpoint
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
