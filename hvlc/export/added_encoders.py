"""Vision encoders that were added to a checkpoint: another tower of the same rule, with a connector of its own.

`hvlc assemble` writes them beside the model: `vision_encoders` of config.json has the configuration of each tower by
name, and their parameters begin with `vision_encoders.NAME.`. transformers loads such a checkpoint as before and leaves
them out.
"""

import json
import shutil
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from hvlc.errors import Collector, UserError
from hvlc.export.settings import read_config
from hvlc.export.vision_language import ADDED, Names, VisionLanguageFamily, names_of
from hvlc.files.reading import shown
from hvlc.weights.checkpoint import Checkpoint, StoredTensor, open_tensors

_SHARD = "encoder-{}.safetensors"
_MAIN_SHARD = "model-00001-of-00001.safetensors"  # a file called model.safetensors would be taken for all of it
_FLOATS = ("bfloat16", "float16", "float32")


def add_encoder(
    checkpoint: Checkpoint, other: Checkpoint, family: VisionLanguageFamily, name: str, output: Path, *, seed: int
) -> None:
    """Write a checkpoint with another one's vision tower as a second encoder, behind a fresh connector.

    Args:
        checkpoint: of the model that speaks.
        other: of the same model_type; its tower is taken.
        family: of both.
        name: as requests will name the encoder.
        output: an empty directory, which gets everything but what the caller copies of settings.
        seed: of the connector's random weights.

    Raises:
        UserError: the towers do not share tile and patch size, the name is taken, or a checkpoint is damaged.
    """
    config: Any = read_config(family.config, checkpoint, family.numbers)
    theirs: Any = read_config(family.config, other, family.numbers)
    _check(config, theirs, family, checkpoint, name)
    tensors = {**_tower(other, names_of(other, family), name), **_connector(config, theirs, family, name, seed)}
    shard = _SHARD.format(name)
    save_file(tensors, output / shard, metadata={"format": "pt"})
    weight_map = _copied(checkpoint, output) | dict.fromkeys(tensors, shard)
    _write(output / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    added = {**dict(checkpoint.config.get(ADDED) or {}), name: other.config["vision_config"]}
    _write(output / "config.json", {**checkpoint.config, ADDED: added})


def _check(config: Any, theirs: Any, family: VisionLanguageFamily, checkpoint: Checkpoint, name: str) -> None:
    """Refuse an encoder that cannot take the turn of the model's own."""
    found = Collector()
    family.check(config, found)
    family.check(theirs, found)
    found.raise_all()
    taken = ["auto", "main", *(checkpoint.config.get(ADDED) or {})]
    if name in taken:
        cause = f"the checkpoint has an encoder {name!r} already, or the word means another thing"
        raise UserError("assemble.name", cause, f"choose another name than {', '.join(taken)}")
    ours = {key: getattr(config.vision_config, key) for key in ("image_size", "patch_size")}
    other = {key: getattr(theirs.vision_config, key) for key in ours}
    if ours != other:
        told = ", ".join(f"{key} {ours[key]} and {other[key]}" for key in ours if ours[key] != other[key])
        raise UserError("checkpoint.towers", f"the towers differ: {told}", "choose towers of one tile and patch size")


def _tower(other: Checkpoint, names: Names, name: str) -> dict[str, torch.Tensor]:
    """The other checkpoint's tower under its new names."""
    found = {k: v for k, v in other.tensors.items() if k.startswith(names.tower)}
    return {f"{ADDED}.{name}.tower.{k.removeprefix(names.tower)}": _tensor(v) for k, v in found.items()}


def _tensor(tensor: StoredTensor) -> torch.Tensor:
    """A copy in torch, of the same dtype.

    Raises:
        UserError: it is not a float.
    """
    if tensor.dtype.name not in _FLOATS:
        cause = f"{tensor.name} is {tensor.dtype.name}, a float is expected"
        raise UserError("checkpoint.dtype", cause, "name the checkpoint that it was quantized from")
    flat = torch.frombuffer(bytearray(tensor.read().tobytes()), dtype=getattr(torch, tensor.dtype.name))
    return flat.reshape(tensor.shape)


def _connector(config: Any, theirs: Any, family: VisionLanguageFamily, name: str, seed: int) -> dict[str, torch.Tensor]:
    """A connector from the other tower to this model, with the weights that torch begins with."""
    joined = copy(config)
    joined.vision_config = theirs.vision_config
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(joined)
    module = model.get_submodule(family.names[0].connector.rstrip("."))
    module.to_empty(device="cpu")
    torch.manual_seed(seed)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    state = module.state_dict()
    return {f"{ADDED}.{name}.connector.{key}": value.float() for key, value in state.items()}


def _copied(checkpoint: Checkpoint, output: Path) -> dict[str, str]:
    """Copy the checkpoint's own weight files; returns the file of every tensor.

    Raises:
        UserError: they are not safetensors.
    """
    if checkpoint.gguf is not None:
        cause = f"{shown(checkpoint.directory)} is a GGUF file"
        raise UserError("assemble.checkpoint", cause, "name a checkpoint of safetensors")
    index: dict[str, str] = {}
    for path in checkpoint.files:
        file = path.name if len(checkpoint.files) > 1 else _MAIN_SHARD
        shutil.copyfile(path, output / file)
        index |= dict.fromkeys(open_tensors(path), file)
    return index


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
