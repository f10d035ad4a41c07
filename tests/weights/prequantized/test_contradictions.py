"""A GPTQ or AWQ checkpoint that contradicts its settings is read right, with a note, or refused: never off by one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.prequantized.reading import read_parameter
from tests.weights.prequantized.tiny_quantized import grouped_layer

SHAPE = (64, 96)
LAYERS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}

#: Options of a layer's making, by its path.
Made = Callable[[str], dict[str, Any]]


def every(**options: Any) -> Made:
    return lambda path: options


def checkpoint(
    directory: Path, settings: dict[str, Any] | None, made: Made, files: dict[str, Any] | None = None
) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    """A checkpoint of a few layers, and the float weights that its tensors stand for by the formats' definitions."""
    random = np.random.default_rng(5)
    stored: dict[str, torch.Tensor] = {}
    weights = {}
    for path in LAYERS:
        options = {"bits": 4, "group": 32} | made(path)
        tensors, weights[path], _ = grouped_layer(random, SHAPE, **options)
        stored |= {f"{path}.{leaf}": torch.tensor(value) for leaf, value in tensors.items()}
    directory.mkdir(exist_ok=True)
    save_file(stored, directory / "model.safetensors")
    config = {"model_type": "llama"} | ({"quantization_config": settings} if settings else {})
    (directory / "config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        (directory / name).write_text(json.dumps(content))
    return Checkpoint.open(directory), weights


def assert_right(opened: Checkpoint, weights: dict[str, np.ndarray]) -> None:
    for path, expected in weights.items():
        found = read_parameter(opened, f"{path}.weight")
        assert found is not None
        assert np.array_equal(found.box((slice(0, SHAPE[0]), slice(0, SHAPE[1]))), expected), path


def of_v2(path: str) -> dict[str, Any]:
    """Symmetric; the second layer has its zero points stored as they are."""
    return {"symmetric": True, "less_one": path != LAYERS[1]}


RIGHT: dict[str, tuple[dict[str, Any], Made]] = {
    "symmetric": (GPTQ | {"sym": True}, every(symmetric=True)),
    "asymmetric": (GPTQ | {"sym": False}, every()),
    "asymmetric v2": (GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"}, every(less_one=False)),
    "a format of capitals": (GPTQ | {"checkpoint_format": "GPTQ_V2"}, every(less_one=False)),
    "no format": (GPTQ | {"checkpoint_format": None}, every()),
    "the newer key of the format": (GPTQ | {"format": "gptq_v2"}, every(less_one=False)),
    "the older key wins": (GPTQ | {"format": "gptq", "checkpoint_format": "gptq_v2"}, every(less_one=False)),
    "a method of capitals": (GPTQ | {"quant_method": "GPTQ"}, every()),
    "by activation order": (GPTQ | {"desc_act": True}, every(shuffled=True)),
    "by activation order, symmetric": (GPTQ | {"desc_act": True, "sym": True}, every(shuffled=True, symmetric=True)),
    "of 8 bits, symmetric": (GPTQ | {"bits": 8, "sym": True}, every(bits=8, symmetric=True)),
    "of 2 bits, symmetric": (GPTQ | {"bits": 2, "sym": True}, every(bits=2, symmetric=True)),
    "of whole rows": (GPTQ | {"group_size": -1}, every(group=-1)),
    "awq": (AWQ | {"zero_point": True, "version": "gemm"}, every(awq=True)),
    "awq, the newer key of the layout": (AWQ | {"format": "gemm"}, every(awq=True)),
    "awq without zero points": (AWQ | {"zero_point": False}, every(awq=True, symmetric=True)),
    "awq, older names": ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32}, every(awq=True)),
    "some layers of other bits": (
        GPTQ | {"dynamic": {r"+:.*down_proj": {"bits": 8}}},
        lambda path: {"bits": 8 if "down" in path else 4},
    ),
    "patterns without a sign": (
        GPTQ | {"dynamic": {r".*\.1\..*": {"bits": 8, "group_size": 16}}},
        lambda path: {"bits": 8, "group": 16} if ".1." in path else {},
    ),
    "the first pattern counts": (
        GPTQ | {"dynamic": {r".*down_proj": {"group_size": 48}, r".*": {"bits": 8}}},
        lambda path: {"group": 48} if "down" in path else {"bits": 8},
    ),
    "a pattern matches beginnings": (GPTQ | {"dynamic": {r"down_proj": {"bits": 8}}}, every()),
    "layers that are left in float and stored so": (GPTQ | {"dynamic": {r"-:.*o_proj": {}}}, every()),
    "one symmetric layer": (
        GPTQ | {"sym": False, "dynamic": {r".*down_proj": {"sym": True}}},
        lambda path: {"symmetric": "down" in path},
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_agrees_is_read_without_a_note(tmp_path: Path, case: str) -> None:
    settings, made = RIGHT[case]
    opened, weights = checkpoint(tmp_path, settings, made)
    assert_right(opened, weights)
    assert opened.notes == []


@pytest.mark.parametrize("symmetric", [{"sym": True}, {}])
@pytest.mark.parametrize(("said", "less_one"), [("gptq", False), ("gptq_v2", True)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_zero_points_show_how_they_are_stored(
    tmp_path: Path, bits: int, said: str, less_one: bool, symmetric: dict[str, Any]
) -> None:
    settings = GPTQ | {"bits": bits, "checkpoint_format": said} | symmetric
    opened, weights = checkpoint(tmp_path, settings, every(bits=bits, symmetric=True, less_one=less_one))
    assert_right(opened, weights)
    other = "gptq" if less_one else "gptq_v2"
    assert len(opened.notes) == 1
    assert f"says {said}" in opened.notes[0]
    assert opened.notes[0].endswith(f"read as {other}")


REFUSED: dict[str, tuple[dict[str, Any], Made, str]] = {
    "symmetric by the settings alone": (GPTQ | {"sym": True}, every(), "says symmetric, and zero points"),
    "one layer is not symmetric": (
        GPTQ | {"sym": True},
        lambda path: {"symmetric": path != LAYERS[1]},
        rf"middle level: {LAYERS[1]}",
    ),
    "zero points stored in two ways": (GPTQ | {"sym": True}, of_v2, f"and as gptq_v2 does in {LAYERS[1]}"),
    "asymmetric by the settings alone": (
        GPTQ | {"sym": False},
        every(symmetric=True, less_one=False),
        "says asymmetric gptq",
    ),
    "awq with zero points against its settings": (AWQ | {"zero_point": False}, every(awq=True), "zero_point there"),
    "other bits than stored": (GPTQ, every(bits=8), "have the shapes of 8 bits"),
    "levels of a layer that is left in float": (
        GPTQ | {"dynamic": {r"-:.*up_proj": {}}},
        every(),
        "dynamic of quantization_config leaves that layer in float",
    ),
    "other bits than dynamic says": (
        GPTQ | {"dynamic": {r"+:.*up_proj": {"bits": 8}}},
        every(),
        r"'\+:\.\*up_proj' of dynamic: qzeros and scales have the shapes of 4 bits",
    ),
    "a setting of dynamic that is not read": (
        GPTQ | {"dynamic": {".*": {"adapter": {"rank": 8}}}},
        every(),
        "of dynamic sets 'adapter', which is not read",
    ),
    "3 bits in dynamic": (GPTQ | {"dynamic": {".*": {"bits": 3}}}, every(), "of dynamic: bits is 3"),
    "a pattern that calls itself": (GPTQ | {"dynamic": {"(a|(?R))*": {}}}, every(), "calls itself"),
    "no pattern": (GPTQ | {"dynamic": {"(": {"bits": 8}}}, every(), "is not a pattern"),
    "no patterns": (GPTQ | {"dynamic": [1]}, every(), r"dynamic is \[1\]"),
    "a pattern without settings": (GPTQ | {"dynamic": {".*": 8}}, every(), "of dynamic is 8, not settings"),
    "a symmetry of text": (GPTQ | {"sym": "yes"}, every(), "sym is 'yes'"),
    "a group of text": (GPTQ | {"group_size": "32"}, every(), "group_size is '32'"),
    "an endless group": (GPTQ | {"group_size": 2**62}, every(), "group_size is 4611686018427387904"),
    "bits of text": (GPTQ | {"bits": "4"}, every(), "bits is '4'"),
    "bits of a list": (GPTQ | {"bits": [4]}, every(), r"bits is \[4\]"),
    "words of another width": (GPTQ | {"pack_dtype": "int16"}, every(), "pack_dtype is 'int16'"),
    "marlin": (GPTQ | {"is_marlin_format": True}, every(), "is_marlin_format"),
    "awq of 8 bits in dynamic": (AWQ | {"dynamic": {".*": {"bits": 8}}}, every(awq=True), "of dynamic: bits is 8"),
    "awq of another layout": (AWQ | {"format": "gemv"}, every(awq=True), "its format is 'gemv', not gemm"),
    "awq of llm-awq": (AWQ | {"version": "llm-awq"}, every(awq=True), "its version is 'llm-awq'"),
    "an order that is missing": (AWQ | {"quant_method": "gptq", "desc_act": True}, every(), "desc_act"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_contradiction_is_refused(tmp_path: Path, case: str) -> None:
    settings, made, word = REFUSED[case]
    opened, weights = checkpoint(tmp_path, settings, made)
    if "order" in case:
        opened = without(opened, "g_idx")
    with pytest.raises(UserError, match=word) as error:
        assert_right(opened, weights)
    assert error.value.code in ("checkpoint.quantized", "checkpoint.weights")


def without(opened: Checkpoint, leaf: str) -> Checkpoint:
    tensors = {name: tensor for name, tensor in opened.tensors.items() if not name.endswith(f".{leaf}")}
    return Checkpoint(opened.directory, opened.config, tensors, opened.files)


def test_a_pattern_of_endless_time_is_refused_soon(tmp_path: Path) -> None:
    dynamic = {r"(.*?.*?)*?[^a-z0-9._]": {"bits": 8}}
    opened, weights = checkpoint(tmp_path, GPTQ | {"dynamic": dynamic}, every())
    with pytest.raises(UserError, match="takes too long"):
        assert_right(opened, weights)


def test_an_order_of_zeros_is_refused(tmp_path: Path) -> None:
    opened, weights = checkpoint(tmp_path, GPTQ, every())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    found = opened.tensors[f"{LAYERS[0]}.g_idx"]
    data[found.offset : found.offset + 4 * found.size] = bytes(4 * found.size)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="no channel into 2 of the 3 groups"):
        assert_right(Checkpoint.open(tmp_path), weights)


def test_a_layer_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    opened, _ = checkpoint(tmp_path, GPTQ, every())
    tensors = dict(opened.tensors)
    tensors[f"{LAYERS[0]}.weight"] = tensors[f"{LAYERS[0]}.scales"]
    twice = Checkpoint(opened.directory, opened.config, tensors, opened.files)
    with pytest.raises(UserError, match="are both stored"):
        read_parameter(twice, f"{LAYERS[0]}.weight")


FILES: dict[str, tuple[str, dict[str, Any], Made]] = {
    "AutoGPTQ's": ("quantize_config.json", {"bits": 4, "group_size": 32, "sym": False, "desc_act": False}, every()),
    "AutoAWQ's": (
        "quant_config.json",
        {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"},
        every(awq=True),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_settings_in_a_file_of_their_own_are_read(tmp_path: Path, case: str) -> None:
    name, settings, made = FILES[case]
    opened, weights = checkpoint(tmp_path, None, made, {name: settings})
    assert_right(opened, weights)
    assert name in opened.file_digests


def test_compressed_tensors_are_refused_by_name_under_their_older_key(tmp_path: Path) -> None:
    checkpoint(tmp_path, None, every())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "compression_config": {"format": "int"}}))
    with pytest.raises(UserError, match="compression_config: its quant_method is 'compressed-tensors'"):
        read_parameter(Checkpoint.open(tmp_path), f"{LAYERS[0]}.weight")
