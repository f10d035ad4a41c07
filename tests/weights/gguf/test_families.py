"""Every architecture that is read from GGUF files computes what transformers computes from the same weights."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import AutoModelForCausalLM

from hvlc.weights.gguf.names import ARCHITECTURES, parameter_name
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.test_families import logits_difference
from tests.export.tiny_families import save_text
from tests.helpers.tolerances import GRAPH_FLOAT32

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "layer_types": None, "query_pre_attn_scalar": 32, "hidden_size": 96},
    ),
    "gemma3, period of its own": (
        "gemma3_text",
        {"num_hidden_layers": 4, "layer_types": None, "sliding_window_pattern": 3, "query_pre_attn_scalar": 32},
    ),
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


def rotated(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of Llama's queries and keys (`LlamaModel.permute` in its converter)."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def convert(model: Any, path: Path) -> None:
    """A model of transformers as a float GGUF file, matrices in float16."""
    settings, kind = model.config, model.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    rope = settings.rope_parameters["full_attention"] if kind == "gemma3" else settings.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "gemma3":
        writer.add_sliding_window(settings.sliding_window)
        writer.add_rope_freq_base_swa(settings.rope_parameters["sliding_attention"]["rope_theta"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
        windows = [kind == "sliding_attention" for kind in settings.layer_types]
        if windows[2:3] == [False]:  # a file need not say the period of 6
            writer.add_sliding_window_pattern(windows)
    if kind in ("gemma3", "qwen3"):
        writer.add_key_length(settings.head_dim)
        writer.add_value_length(settings.head_dim)
    writer.add_bos_token_id(settings.bos_token_id)
    writer.add_eos_token_id(settings.eos_token_id)
    table = gguf.get_tensor_name_map({n: k for k, n in gguf.MODEL_ARCH_NAMES.items()}[kind], settings.num_hidden_layers)
    heads = {"q_proj": settings.num_attention_heads, "k_proj": settings.num_key_value_heads}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and settings.tie_word_embeddings:
            continue
        stem, _, leaf = name.rpartition(".")
        stored = f"{table.get_name(stem)}.{leaf}"
        assert parameter_name(stored, kind) == name
        rows = value.float().numpy()
        if kind == "gemma3" and name.endswith("norm.weight"):
            rows = rows + np.float32(1)
        part = stem.rpartition(".")[2]
        if kind == "llama" and part in heads:
            rows = rotated(rows, heads[part])
        writer.add_tensor(stored, rows.astype(np.float16) if rows.ndim == 2 else rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_float_gguf_file_is_the_model_it_was_made_from(tmp_path: Path, case: str) -> None:
    family, changes = CASES[case]
    directory = save_text(tmp_path / "saved", family, "float16", **changes)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for name, value in model.state_dict().items():  # what float16 rounds, both have rounded
        assert torch.equal(value, value.half().float()), name
    convert(model, tmp_path / "saved" / "model.gguf")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (directory / name).unlink()
    result = build(open_request(directory, "cpu", "float32", tmp_path / "package", threads=1))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(result.output / "model.onnx", options)
    assert logits_difference(model, session) < GRAPH_FLOAT32


def test_every_architecture_is_here() -> None:
    assert {family.removesuffix("_text") for family, _ in CASES.values()} == set(ARCHITECTURES)
