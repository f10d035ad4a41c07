"""Checkpoints damaged in place, and the refusal that the export of one ends in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hvlc.errors import HvlcError, raise_all
from hvlc.export import export_bundle
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.tiny_vision_language import edit_json

Damage = Callable[[Path], None]


def exported(directory: Path) -> None:
    """Export a checkpoint, and raise what that found wrong with its tensors."""
    checkpoint = Checkpoint.open(directory)
    export_bundle(checkpoint)
    raise_all(checkpoint.problems)


def refused(directory: Path) -> str:
    """Codes and causes of the refusal."""
    with pytest.raises(HvlcError) as error:
        exported(directory)
    return str(error.value)


def without_processor(directory: Path) -> None:
    """Remove the settings of image processor and processor."""
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").unlink(missing_ok=True)


def renamed(old: str, new: str) -> Damage:
    """Another text in the place of one of the tokenizer's."""

    def rename(directory: Path) -> None:
        path = directory / "tokenizer.json"
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")

    return rename


def changed(file: str, **changes: Any) -> Damage:
    """Other values at the top level of a JSON file; None removes a key."""
    return lambda directory: edit_json(directory / file, **changes)


def with_part(part: str, **changes: Any) -> Damage:
    """Other values in a part of config.json."""

    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        edit_json(directory / "config.json", **{part: config[part] | changes})

    return change


def with_tensor(name: str, *shape: int) -> Damage:
    """A tensor of ones, in the place of one of that name if there is any."""

    def add(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors") | {name: torch.ones(shape)}
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    return add
