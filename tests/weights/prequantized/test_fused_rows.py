"""Rows of a pre-quantized matrix are pre-quantized too, so that a fused projection is taken apart with its levels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import Phi3Config, Phi3ForCausalLM

from hvlc.export import export_bundle
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.lazy import Constant, Narrow
from hvlc.weights.prequantized.gguf import gguf_matrix
from hvlc.weights.prequantized.matrix import Prequantized, PrequantizedRows
from hvlc.workflows.build.build import plan_build
from hvlc.workflows.build.request import open_request
from tests.export.test_families import logits_difference
from tests.helpers.sessions import session
from tests.helpers.tolerances import GRAPH_FLOAT32
from tests.weights.prequantized.test_grouped import CASES, SHAPE, made
from tests.weights.prequantized.tiny_quantized import LAYERS, config, random_blocks, save_grouped

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
QUANTIZED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 64}, {}),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64}, {"awq": True}),
}


def check_rows(matrix: Prequantized, data: st.DataObject) -> None:
    rows = matrix.shape[0]
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    part, whole = matrix.narrow(0, start, stop), matrix.read()
    box = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in part.shape)
    assert np.array_equal(part.box(box), whole[start:stop][box])
    if (start, stop) == (0, rows):
        assert part is matrix
        return
    assert isinstance(part, PrequantizedRows)
    assert (part.origin, part.format, part.obstacle) == (matrix.origin, matrix.format, matrix.obstacle)
    for format in part.formats():
        expected = matrix.form(format).dequantize()[start:stop]
        assert np.array_equal(part.form(format).dequantize(), expected)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25)
@given(data=st.data())
def test_rows_of_gptq_and_awq(case: str, data: st.DataObject) -> None:
    check_rows(made(case)[0], data)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q3_K"])
@settings(max_examples=25)
@given(data=st.data())
def test_rows_of_gguf(kind: str, data: st.DataObject) -> None:
    raw = random_blocks(np.random.default_rng(0), kind, (12, 512))
    check_rows(gguf_matrix("x", Constant(raw), kind, 512), data)


def test_columns_are_not_prequantized() -> None:
    assert isinstance(made("gptq")[0].narrow(1, 0, SHAPE[1] // 2), Narrow)


def save_fused(directory: Path, kind: str) -> Phi3ForCausalLM:
    """A Phi-3 of fused GPTQ or AWQ layers; returns the float model."""
    quantization, options = QUANTIZED[kind]
    weights = save_grouped(directory, quantization, **options)
    tensors = load_file(directory / "model.safetensors")
    for layer in range(LAYERS):
        for fused, parts in FUSED.items():
            paths = [f"model.layers.{layer}.{part}" for part in parts]
            into = f"model.layers.{layer}.{fused}"
            weights[f"{into}.weight"] = np.concatenate([weights.pop(f"{path}.weight") for path in paths])
            stored = {
                leaf: [tensors.pop(f"{path}.{leaf}") for path in paths] for leaf in ("qweight", "qzeros", "scales")
            }
            tensors |= {f"{into}.{leaf}": np.concatenate(values, 1) for leaf, values in stored.items()}
            orders = [tensors.pop(f"{path}.g_idx", None) for path in paths]
            tensors |= {f"{into}.g_idx": orders[0]} if orders[0] is not None else {}
    save_file(tensors, directory / "model.safetensors")
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
    names += ["max_position_embeddings", "eos_token_id", "pad_token_id", "bos_token_id", "tie_word_embeddings"]
    configuration = Phi3Config(**{name: getattr(config(), name) for name in names})
    model = Phi3ForCausalLM(configuration).eval()
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()}, strict=False)
    model.tie_weights()
    configuration.quantization_config = quantization
    configuration.save_pretrained(directory)
    return model


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_fused_projection_keeps_its_levels(tmp_path: Path, kind: str) -> None:
    model = save_fused(tmp_path / "checkpoint", kind)
    bundle = export_bundle(Checkpoint.open(tmp_path / "checkpoint"))
    assert logits_difference(model, session(bundle.components["model"].model)) < GRAPH_FLOAT32
    plan = plan_build(open_request(tmp_path / "checkpoint", "cpu", "w4a16-rtn", tmp_path / "package")).plan
    reasons = {a.weight.split(".")[-2]: a.reason for a in plan.assignments if ".layers." in a.weight}
    assert len(reasons) == 7
    assert all(reason.startswith(f"taken as stored: {kind.upper()}") for reason in reasons.values())
