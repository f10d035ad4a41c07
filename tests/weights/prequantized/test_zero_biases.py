"""Biases of zeros, as AutoGPTQ stores them for every layer, are left out; all others have a place or are refused."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from hvlc.errors import UserError
from hvlc.export import export_bundle
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.build.build import plan_build
from hvlc.workflows.build.request import open_request
from tests.weights.prequantized.tiny_quantized import LINEARS, save_grouped

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64}


def with_biases(directory: Path, values: dict[str, float]) -> Path:
    save_grouped(directory, GPTQ)
    tensors = load_file(directory / "model.safetensors")
    for name, (_, (out, _)) in LINEARS.items():
        tensors[f"model.layers.0.{name}.bias"] = torch.full((out,), values.get(name, 0.0), dtype=torch.float16)
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_biases_of_zeros_are_left_out_with_a_note(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(with_biases(tmp_path / "zeros", {}))
    biased = export_bundle(checkpoint).components["model"].graph
    save_grouped(tmp_path / "none", GPTQ)
    plain = export_bundle(Checkpoint.open(tmp_path / "none")).components["model"].graph
    assert operators(biased) == operators(plain)
    assert checkpoint.problems == []
    assert len(checkpoint.notes) == 1
    plan = plan_build(open_request(tmp_path / "zeros", "cpu", "float32", tmp_path / "package", threads=1)).plan
    assert plan.notes == tuple(checkpoint.notes)


def operators(graph: ir.Graph) -> list[str]:
    return [str(node.op_type) for node in graph]


@pytest.mark.parametrize("value", [0.5, float("nan"), 6e-8])
def test_any_other_bias_is_refused(tmp_path: Path, value: float) -> None:
    checkpoint = Checkpoint.open(with_biases(tmp_path / "checkpoint", {"mlp.down_proj": value}))
    with pytest.raises(UserError, match=r"down_proj\.bias") as error:
        export_bundle(checkpoint)
    assert error.value.code == "checkpoint.surplus"
