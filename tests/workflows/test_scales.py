"""Scales that float16 does not hold: the matrix is kept, by every recipe, and others stay as they were."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hvlc.graphs.plan import Action
from hvlc.weights.checkpoint import StoredTensor
from hvlc.weights.extremes import extremes_of
from hvlc.weights.formats import ScaleType
from hvlc.weights.lazy import Constant
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text
from tests.helpers.commands import Hvlc

IDS = np.arange(40, dtype=np.int64)[None]
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
Weights = dict[str, torch.Tensor]


def scaled(directory: Path, change: Callable[[Weights], None]) -> Path:
    """A Llama whose layers compute the same with weights of other sizes; in bfloat16, as checkpoints store them."""
    save_text(directory, "llama", "bfloat16", hidden_size=128, intermediate_size=256)
    path = directory / "model.safetensors"
    weights = dict(load_file(path))
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return directory


def matrix(factor: float) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights[UP] = weights[UP] / factor
        weights[DOWN] = weights[DOWN] * factor

    return change


def channels(factor: float, first: int, last: int) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights[UP][first:last] = weights[UP][first:last] / factor
        weights[DOWN][:, first:last] = weights[DOWN][:, first:last] * factor

    return change


CHANGES = {
    "large": matrix(2.0**30),
    "small": matrix(2.0**-30),
    "a block of channels": channels(2.0**-30, 32, 64),
    "far beyond": matrix(2.0**80),
}

#: Everything that stores float16 scales in a graph for the CPU, without and with zero points.
FORMATS = {
    "4 bits": "{bits: 4, block_size: 32, solver: rtn}",
    "8 bits": "{bits: 8, block_size: 32, solver: rtn}",
    "zero points": "{bits: 4, block_size: 32, symmetric: false, solver: rtn}",
    "channels": "{bits: 8, per_channel: true, solver: rtn}",
    "minmax": "{bits: 4, block_size: 32, solver: minmax}",
    "hqq": "{bits: 4, block_size: 32, solver: hqq}",
    "k_quant": "{bits: 4, block_size: 32, symmetric: false, solver: k_quant}",
}


def recipe(directory: Path, name: str) -> Path:
    path = directory / "recipe.yaml"
    rule = f"  - role: decoder\n    weights: '*proj.weight'\n    quantize: {FORMATS[name]}\n"
    path.write_text(f"schema_version: 1\nname: test\ndescription: test\nactivations: float\nrules:\n{rule}")
    return path


def last_logits(package: Path) -> np.ndarray:
    session = ort.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    found: np.ndarray = session.run(["logits"], feeds)[0].reshape(-1)
    return found


def damage(checkpoint: Path, package: Path) -> float:
    """Error of the last logits against transformers', relative to the logits."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS)).logits[0, -1].numpy()
    return float(np.linalg.norm(last_logits(package) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("change", "name"), [*((c, "4 bits") for c in CHANGES), *(("large", f) for f in FORMATS)])
def test_a_matrix_of_any_size_is_kept(tmp_path: Path, change: str, name: str) -> None:
    """As well as it is kept where its weights have usual sizes: the layers compute the same."""
    usual, other = scaled(tmp_path / "usual", lambda w: None), scaled(tmp_path / "other", CHANGES[change])
    asked = str(recipe(tmp_path, name))
    build(open_request(usual, "cpu", asked, tmp_path / "a"))
    result = build(open_request(other, "cpu", asked, tmp_path / "b"))
    assert damage(other, tmp_path / "b") < 1.2 * damage(usual, tmp_path / "a") + 0.01
    wide = {a.weight: a for a in result.plan.assignments if a.format and a.format.scale_type is ScaleType.FLOAT32}
    assert set(wide) <= {UP, DOWN}
    assert wide
    assert all("float32 scales" in a.reason for a in wide.values())


def test_one_small_channel_is_reason_enough(tmp_path: Path) -> None:
    """Whatever reads it may make up for it."""

    def shrink(weights: Weights) -> None:
        weights[UP][7] *= 2.0**-30

    plan = build(open_request(scaled(tmp_path / "c", shrink), "cpu", "w4a16-rtn", tmp_path / "p")).plan
    assert [a.weight for a in plan.assignments if a.format and a.format.scale_type is ScaleType.FLOAT32] == [UP]


def test_tokens_that_no_text_holds_are_not(tmp_path: Path) -> None:
    def shrink(weights: Weights) -> None:
        weights["lm_head.weight"][-2:] *= 2.0**-30

    plan = build(open_request(scaled(tmp_path / "c", shrink), "cpu", "w4a16-rtn", tmp_path / "p")).plan
    assert all(a.format is None or a.format.scale_type is ScaleType.FLOAT16 for a in plan.assignments)


@pytest.mark.parametrize("shipped", ["w4a16-rtn", "w4a16", "genai-default"])
def test_shipped_recipes_keep_it(tmp_path: Path, shipped: str) -> None:
    usual, other = scaled(tmp_path / "usual", lambda w: None), scaled(tmp_path / "other", CHANGES["large"])
    for name, checkpoint in (("a", usual), ("b", other)):
        build(open_request(checkpoint, "cpu", shipped, tmp_path / name, samples=4 if shipped == "w4a16" else None))
    assert damage(other, tmp_path / "b") < 1.2 * damage(usual, tmp_path / "a") + 0.01


def test_usual_weights_keep_float16_scales(tmp_path: Path) -> None:
    checkpoint = scaled(tmp_path / "usual", lambda w: None)
    plan = build(open_request(checkpoint, "cpu", "w4a16-rtn", tmp_path / "p")).plan
    quantized = [a.format for a in plan.assignments if a.action is Action.QUANTIZE]
    assert all(format and format.scale_type is ScaleType.FLOAT16 for format in quantized)


def test_rows_of_zeros_keep_float16_scales(tmp_path: Path) -> None:
    def clear(weights: Weights) -> None:
        weights[UP][:64] = 0

    plan = build(open_request(scaled(tmp_path / "c", clear), "cpu", "w4a16-rtn", tmp_path / "p")).plan
    assert all(a.format is None or a.format.scale_type is ScaleType.FLOAT16 for a in plan.assignments)


def test_a_tied_table_follows_its_head(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    save_text(checkpoint, "llama", tie_word_embeddings=True)
    path = checkpoint / "model.safetensors"
    weights = dict(load_file(path))
    weights["model.embed_tokens.weight"] *= 2.0**-30
    save_file(weights, path, metadata={"format": "pt"})
    plan = build(open_request(checkpoint, "cpu", "w4a16-rtn", tmp_path / "p")).plan
    tables = [a for a in plan.assignments if "embed_tokens" in a.weight or "lm_head" in a.weight]
    assert [a.action for a in tables].count(Action.TIE) == 1
    assert {a.format and a.format.scale_type for a in tables} == {ScaleType.FLOAT32}


def test_a_plan_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(tensor: StoredTensor) -> np.ndarray:
        raise AssertionError(f"{tensor.name} was read")

    checkpoint = scaled(tmp_path / "c", CHANGES["large"])
    monkeypatch.setattr(StoredTensor, "read", read)
    assert plan_build(open_request(checkpoint, "cpu", "w4a16-rtn", tmp_path / "p")).plan.assignments


def test_extremes_are_those_of_the_whole_matrix() -> None:
    values = np.random.default_rng(0).normal(size=(5000, 300)).astype(np.float32)
    found = extremes_of(Constant(values))
    np.testing.assert_array_equal(found.rows, np.abs(values).max(1))
    np.testing.assert_array_equal(found.columns, np.abs(values).max(0))
    np.testing.assert_array_equal(found.blocks(128)[-1], np.abs(values[:, 256:]).max())


@pytest.mark.parametrize("context", [64, 128])
def test_calibration_windows_fit_a_short_context(tmp_path: Path, hvlc: Hvlc, context: int) -> None:
    checkpoint = save_text(tmp_path / "c", "llama", max_position_embeddings=context)
    result = hvlc("plan", checkpoint, "--recipe", "w4a16", "--json")
    assert result.code == 0
    assert any(f"{context} tokens instead of 512" in note for note in result.json["notes"])
    result = hvlc("build", checkpoint, "--recipe", "w4a16", "--samples", 4, "-o", tmp_path / "p")
    assert result.code == 0
