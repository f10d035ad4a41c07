"""What a quantized checkpoint says of itself is held against what it stores; what nobody reads is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hvlc.errors import UserError
from hvlc.export import export_bundle
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.prequantized.settings import read_quantization
from tests.weights.prequantized.tiny_quantized import save_grouped

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64}
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gptq") / "checkpoint"
    save_grouped(directory, GPTQ)
    return directory


def damaged(saved: Path, target: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], Any]) -> Checkpoint:
    target.mkdir()
    config, tensors = json.loads((saved / "config.json").read_text()), load_file(saved / "model.safetensors")
    change(config, tensors)
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, target / "model.safetensors")
    return Checkpoint.open(target)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ({"quant_method": "fp8"}, "'fp8'"),
        ({"bits": 4}, "None"),
        ({**GPTQ, "bits": 3}, "bits is 3"),
        ({**GPTQ, "bits": True}, "bits is True"),
        ({**GPTQ, "group_size": 0}, "group_size is 0"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin'"),
        ({**GPTQ, "quant_method": "awq", "version": "gemv"}, "'gemv'"),
        ("int8", "'int8'"),
    ],
)
def test_another_quantization_is_refused_with_what_is_read(
    saved: Path, tmp_path: Path, settings: Any, word: str
) -> None:
    checkpoint = damaged(saved, tmp_path / "c", lambda config, _: config.update(quantization_config=settings))
    with pytest.raises(UserError, match=word) as error:
        export_bundle(checkpoint)
    assert error.value.code == "checkpoint.quantized"
    assert "gptq (2, 4 and 8 bits), awq" in error.value.fix


def test_a_quantization_inside_a_part_of_the_configuration_is_found(saved: Path, tmp_path: Path) -> None:
    def move(config: dict[str, Any], _: Any) -> None:
        config["text_config"] = {"quantization_config": config.pop("quantization_config")}

    found = read_quantization(damaged(saved, tmp_path / "c", move))
    assert found is not None
    assert (found.base.method, found.base.bits, found.base.group) == ("GPTQ", 4, 64)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any], dict[str, np.ndarray]], Any], str, str]] = {
    "no scales": (lambda c, t: t.pop(f"{LAYER}.scales"), "checkpoint.weights", f"{LAYER}.scales is missing"),
    "no levels": (lambda c, t: t.pop(f"{LAYER}.qweight"), "checkpoint.weights", f"{LAYER}.qweight is missing"),
    "no configuration": (
        lambda c, t: c.pop("quantization_config"),
        "checkpoint.quantized",
        "config.json has no quantization_config",
    ),
    "another group size": (
        lambda c, t: c["quantization_config"].update(group_size=32),
        "checkpoint.weights",
        "qzeros is",
    ),
    "other bits": (lambda c, t: c["quantization_config"].update(bits=8), "checkpoint.weights", "fits the others"),
    "levels of 64 bits": (
        lambda c, t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].astype(np.int64)}),
        "checkpoint.dtype",
        "levels int32",
    ),
    "scales of integers": (
        lambda c, t: t.update({f"{LAYER}.scales": t[f"{LAYER}.scales"].astype(np.int32)}),
        "checkpoint.dtype",
        "scales float",
    ),
    "levels of one dimension": (
        lambda c, t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].reshape(-1)}),
        "checkpoint.dtype",
        "expected are matrices",
    ),
    "groups that there are not": (
        lambda c, t: t.update({f"{LAYER}.g_idx": t[f"{LAYER}.g_idx"] + 7}),
        "checkpoint.weights",
        "names groups outside 0 to 3",
    ),
    "an order of another length": (
        lambda c, t: t.update({f"{LAYER}.g_idx": t[f"{LAYER}.g_idx"][:-1].copy()}),
        "checkpoint.weights",
        "expected is an integer for each of 256",
    ),
    "another width": (
        lambda c, t: c.update(intermediate_size=768),
        "checkpoint.weights",
        "the config asks for",
    ),
    "integers that belong to nothing": (
        lambda c, t: t.update({"model.norm.weight": np.ones(256, np.int32)}),
        "checkpoint.dtype",
        "model.norm.weight is int32",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_fit_together_is_told_before_the_build(saved: Path, tmp_path: Path, case: str) -> None:
    change, code, word = DAMAGE[case]
    checkpoint = damaged(saved, tmp_path / "c", change)
    try:
        export_bundle(checkpoint)
    except UserError as error:
        checkpoint.problems.append(error)
    assert any(p.code == code and word in p.cause for p in checkpoint.problems), checkpoint.problems


def test_an_undamaged_checkpoint_has_no_problems(saved: Path) -> None:
    checkpoint = Checkpoint.open(saved)
    export_bundle(checkpoint)
    assert checkpoint.problems == []
