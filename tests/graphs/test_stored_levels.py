"""Packages of pre-quantized checkpoints compute what the dequantized float model computes, from the stored levels."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from hvlc.errors import TargetError, UserError
from hvlc.graphs.plan import Action, Assignment
from hvlc.results.build import BuildResult
from hvlc.targets import target_path
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.request import open_request
from tests.export.test_families import logits_difference
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.weights.prequantized.tiny_quantized import (
    LINEARS,
    Weights,
    blocks_with_whole_minima,
    config,
    float_model,
    save_gguf,
    save_grouped,
)

RECIPE = """schema_version: 1
name: mine
description: int4 block 32
rules:
  - {role: decoder, quantize: {bits: 4, block_size: 32}}
"""
GROUPED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, {}, "int4 b128 asym f16"),
    "gptq symmetric": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True},
        {"symmetric": True},
        "int4 b64 sym f16",
    ),
    "gptq v2": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
        {"less_one": False},
        "int4 b32 asym f16",
    ),
    "gptq of 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": 32}, {}, "int8 b32 asym f16"),
    "gptq of 2 bits": ({"quant_method": "gptq", "bits": 2, "group_size": 32}, {}, "int4 b32 asym f16"),
    "gptq of whole rows": ({"quant_method": "gptq", "bits": 4, "group_size": -1}, {}, "int4 b128 asym f16"),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
        {"awq": True},
        "int4 b64 asym f16",
    ),
}
GGUF = {
    "Q4_0": "int4 b32 sym f16",
    "Q4_1": "int4 b32 float zero f16",
    "Q5_0": "int8 b32 sym f16",
    "Q5_1": "int8 b32 float zero f16",
    "Q8_0": "int8 b32 sym f16",
    "Q2_K": "int4 b16 float zero f32",
    "Q3_K": "int4 b16 sym f32",
    "Q4_K": "int4 b32 float zero f32",
    "Q5_K": "int8 b32 float zero f32",
    "Q6_K": "int8 b16 sym f32",
}


def built(checkpoint: Path, work: Path, target: str = "cpu") -> BuildResult:
    recipe = work / "recipe.yaml"
    recipe.write_text(RECIPE, "utf-8")
    return build(open_request(checkpoint, target, str(recipe), work / "package", threads=1))


def difference(result: BuildResult, weights: Weights) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(result.output / "model.onnx", options)
    return logits_difference(float_model(weights, config()), session)


def linears(result: BuildResult) -> list[Assignment]:
    names = {f"{name}.weight" for name in LINEARS}
    return [a for a in result.plan.assignments if a.weight.removeprefix("model.layers.0.") in names]


@pytest.mark.parametrize("case", GROUPED)
@torch.no_grad()
def test_a_gptq_or_awq_checkpoint_loses_nothing(tmp_path: Path, case: str) -> None:
    quantization, options, format = GROUPED[case]
    weights = save_grouped(tmp_path / "checkpoint", quantization, **options)
    result = built(tmp_path / "checkpoint", tmp_path)
    assert {(str(a.format), a.solver) for a in linears(result)} == {(format, "stored")}
    assert all(a.reason.startswith(f"taken as stored: {case[:3].upper()}") for a in linears(result))
    for name in LINEARS:  # the head is quantized anew: it was float
        assert f"model.layers.0.{name}.weight" in weights
    head = next(a for a in result.plan.assignments if a.weight == "lm_head.weight")
    assert head.solver == "rtn"
    weights["lm_head.weight"] = stored_head(result)
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"]
    assert difference(result, weights) < GRAPH_FLOAT32


def stored_head(result: BuildResult) -> np.ndarray:
    """The dequantized head of a package, int4 b32 symmetric."""
    found = initializers(result)
    packed, scales = found["lm_head.weight.int4"], found["lm_head.weight.scales"].astype(np.float32)
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1).astype(np.float32)
    return ((levels - 8) * scales.reshape(*packed.shape[:2], 1)).reshape(len(packed), -1)


def initializers(result: BuildResult) -> dict[str, np.ndarray]:
    model = onnx.load(result.output / "model.onnx")
    return {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}


@pytest.mark.parametrize("kind", GGUF)
@torch.no_grad()
def test_a_gguf_file_loses_nothing(tmp_path: Path, kind: str) -> None:
    weights = save_gguf(tmp_path / "model.gguf", kind)
    result = built(tmp_path / "model.gguf", tmp_path)
    assert {(str(a.format), a.solver, a.reason) for a in linears(result)} == {
        (GGUF[kind], "stored", f"taken as stored: GGUF {kind}")
    }
    assert difference(result, weights) < GRAPH_FLOAT32
    weights["model.layers.0.mlp.up_proj.weight"][0] *= 1.01
    assert difference(result, weights) > GRAPH_FLOAT32  # the check can fail


@pytest.mark.parametrize(("kind", "spelled"), [("Q4_1", "int4 b32 asym f16"), ("Q5_1", "int8 b32 asym f16")])
@torch.no_grad()
def test_whole_minima_become_zero_points_of_the_product(tmp_path: Path, kind: str, spelled: str) -> None:
    weights = save_gguf(tmp_path / "model.gguf", kind, draw=blocks_with_whole_minima)
    result = built(tmp_path / "model.gguf", tmp_path)
    assert {(str(a.format), a.reason) for a in linears(result)} == {(spelled, f"taken as stored: GGUF {kind}")}
    products = [n for n in onnx.load(result.output / "model.onnx").graph.node if n.op_type == "MatMulNBits"]
    assert {len(node.input) for node in products if "mlp" in node.name or "self_attn" in node.name} == {4}
    assert difference(result, weights) < GRAPH_FLOAT32
    weights["model.layers.0.mlp.up_proj.weight"][:16] *= 1.01
    assert difference(result, weights) > GRAPH_FLOAT32  # the check can fail


@torch.no_grad()
def test_a_table_of_8_bits_is_shared_with_the_head(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    result = built(tmp_path / "model.gguf", tmp_path)
    table = next(a for a in result.plan.assignments if a.weight == "model.embed_tokens.weight")
    assert (table.action, str(table.format), table.solver) == (Action.TIE, "int8 b32 sym f16", "stored")
    found = initializers(result)
    rows, head = found["model.embed_tokens.weight.int8_rows"], found["lm_head.weight.int8"]
    assert rows.tobytes() == head.tobytes()


@torch.no_grad()
def test_a_target_that_looks_up_no_8_bits_keeps_the_table_in_float(tmp_path: Path) -> None:
    weights = save_gguf(tmp_path / "model.gguf", "Q4_0")
    target = tmp_path / "mine.toml"
    target.write_text(
        target_path("cpu").read_text("utf-8").replace("gather_bits = [4, 8]", "gather_bits = [4]"), "utf-8"
    )
    result = built(tmp_path / "model.gguf", tmp_path, str(target))
    table = next(a for a in result.plan.assignments if a.weight == "model.embed_tokens.weight")
    assert (table.action, table.dtype) == (Action.KEEP, "float32")
    assert "looks up 4 bits only, not 8" in table.reason
    assert difference(result, weights) < GRAPH_FLOAT32


def q4_1_levels(raw: np.ndarray) -> np.ndarray:
    """Q4_1 by its struct: half d, half m, 16 bytes whose low nibbles are the first 16 levels; `[rows, columns]`."""
    rows = []
    for row in raw:
        levels: list[int] = []
        for start in range(0, len(row), 20):
            quants = row[start + 4 : start + 20]
            levels += [int(q) & 15 for q in quants] + [int(q) >> 4 for q in quants]
        rows.append(levels)
    return np.array(rows)


@pytest.mark.parametrize("name", ["mlp.down_proj", "self_attn.v_proj"])
def test_the_packages_levels_are_those_of_the_gguf_file(tmp_path: Path, name: str) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_1")
    result = built(tmp_path / "model.gguf", tmp_path)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    raw = np.asarray(tensors[f"blk.0.{LINEARS[name][0]}.weight"].data)
    found = initializers(result)
    packed = found[f"model.layers.0.{name}.weight.int4"].reshape(len(raw), -1)
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(len(raw), -1)
    assert np.array_equal(levels, q4_1_levels(raw))
    scales = found[f"model.layers.0.{name}.weight.scales"].reshape(len(raw), -1)
    assert scales.dtype == np.float16
    assert np.array_equal(scales.view(np.uint16), raw.reshape(len(raw), -1, 20)[..., :2].copy().view(np.uint16)[..., 0])


def test_the_packages_levels_are_those_of_the_gptq_checkpoint(tmp_path: Path) -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    save_grouped(tmp_path / "checkpoint", quantization)
    result = built(tmp_path / "checkpoint", tmp_path)
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    path = "model.layers.0.mlp.down_proj"
    words = stored[f"{path}.qweight"].view(np.uint32)
    packed = initializers(result)[f"{path}.weight.int4"].reshape(words.shape[1], -1)
    for row in (0, 7, 255):
        for column in range(0, 512, 5):
            level = int(words[column // 8, row]) >> 4 * (column % 8) & 15
            assert int(packed[row, column // 2]) >> 4 * (column % 2) & 15 == level


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("IQ4_NL", "stored as GGUF IQ4_NL: its levels are not even steps of a block; dequantized and quantized again"),
        (
            "desc_act",
            "stored as GPTQ int4 b32 asym: its channels are grouped by activation order (desc_act), not in blocks; "
            "dequantized and quantized again",
        ),
        ("odd groups", "stored as GPTQ int4 b40 asym: cpu takes blocks of 16, 32, 64, 128, 256, not 40; "),
    ],
)
def test_what_does_not_map_is_quantized_again_and_says_why(tmp_path: Path, case: str, reason: str) -> None:
    if case == "IQ4_NL":
        checkpoint = tmp_path / "model.gguf"
        save_gguf(checkpoint, case)
    else:
        checkpoint = tmp_path / "checkpoint"
        group = 40 if case == "odd groups" else 32
        quantization = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": case == "desc_act"}
        save_grouped(checkpoint, quantization, shuffled=case == "desc_act")
    result = built(checkpoint, tmp_path)
    assert {(str(a.format), a.solver) for a in linears(result)} == {("int4 b32 sym f16", "rtn")}
    assert all(a.reason.startswith(reason) for a in linears(result))


@torch.no_grad()
@pytest.mark.parametrize("case", ["F16", "IQ4_NL", "desc_act", "Q4_K", "awq"])
def test_a_recipe_that_keeps_floats_gets_the_dequantized_weights(tmp_path: Path, case: str) -> None:
    if case in ("desc_act", "awq"):
        checkpoint = tmp_path / "checkpoint"
        quantization = {"quant_method": "awq" if case == "awq" else "gptq", "bits": 4, "group_size": 64}
        weights = save_grouped(checkpoint, quantization, awq=case == "awq", shuffled=case == "desc_act")
    else:
        checkpoint = tmp_path / "model.gguf"
        weights = save_gguf(checkpoint, case)
    result = build(open_request(checkpoint, "cpu", "float32", tmp_path / "package", threads=1))
    assert {a.action for a in result.plan.assignments} == {Action.KEEP}
    assert difference(result, weights) < GRAPH_FLOAT32


def test_a_target_without_float_zero_points_says_so(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_1")
    target = tmp_path / "mine.toml"
    target.write_text(target_path("cpu").read_text("utf-8").replace("float_zero_points = true", ""), "utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, "utf-8")
    request = open_request(tmp_path / "model.gguf", str(target), str(tmp_path / "recipe.yaml"), tmp_path / "package")
    reasons = {a.reason for a in plan_build(request).plan.assignments if a.weight.endswith("v_proj.weight")}
    refusal = "cpu takes no float zero points at 4 bits"
    assert reasons == {f"stored as GGUF Q4_1: {refusal}; dequantized and quantized again"}


def test_a_target_without_4_bits_is_still_refused(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_1")
    text = target_path("cpu").read_text("utf-8")
    target = tmp_path / "mine.toml"
    target.write_text(text.replace("bits = 4\n", "bits = 3\n"), "utf-8")
    with pytest.raises(TargetError, match="not 4"):
        built(tmp_path / "model.gguf", tmp_path, str(target))


def test_not_a_number_in_a_scale_is_named(tmp_path: Path) -> None:
    save_gguf(tmp_path / "model.gguf", "Q4_0")
    data = bytearray((tmp_path / "model.gguf").read_bytes())
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors if t.name == "blk.0.ffn_down.weight")
    data[int(tensor.data_offset) : int(tensor.data_offset) + 2] = np.array(np.nan, np.float16).tobytes()
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds NaN") as error:
        built(tmp_path / "model.gguf", tmp_path)
    assert error.value.code == "checkpoint.not_finite"
