"""Gemma 3's decoder against a slow one in numpy, which knows nothing of transformers: norms, bases, windows, scale."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from tests.export.test_families import Decoder, exported
from tests.export.tiny_families import save_text
from tests.helpers.sessions import session
from tests.helpers.tolerances import GRAPH_FLOAT32

#: More layers than the period of 6, a window that a prompt of 13 tokens leaves, widths without a whole root.
CHANGES: dict[str, Any] = {"num_hidden_layers": 7, "layer_types": None, "sliding_window": 5, "hidden_size": 96}


class Slow:
    """A Gemma 3 decoder in float64, position by position and head by head.

    Args:
        directory: a checkpoint in float32.
        changes: what is computed otherwise, to see that it matters.
    """

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.config = json.loads((directory / "config.json").read_text("utf-8")) | changes
        stored = load_file(directory / "model.safetensors")
        self.weights = {name: value.astype(np.float64) for name, value in stored.items()}

    def logits(self, ids: list[int]) -> np.ndarray:
        """float64 `[tokens, vocabulary]`."""
        table = self.weights["model.embed_tokens.weight"]
        x = table[ids] * self.config.get("scale", self.config["hidden_size"] ** 0.5)
        for index in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{index}."
            attended = self._attention(self._norm(x, f"{layer}input_layernorm"), index)
            x = x + self._norm(attended, f"{layer}post_attention_layernorm")
            gated = self._mlp(self._norm(x, f"{layer}pre_feedforward_layernorm"), f"{layer}mlp.")
            x = x + self._norm(gated, f"{layer}post_feedforward_layernorm")
        return self._norm(x, "model.norm") @ table.T

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        gain = self.weights[f"{name}.weight"] + self.config.get("offset", 1)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * gain

    def _mlp(self, x: np.ndarray, path: str) -> np.ndarray:
        gate, up, down = (self.weights[f"{path}{name}_proj.weight"] for name in ("gate", "up", "down"))
        z = x @ gate.T
        gelu = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        return (gelu * (x @ up.T)) @ down.T

    def _attention(self, x: np.ndarray, index: int) -> np.ndarray:
        path, width = f"model.layers.{index}.self_attn.", self.config["head_dim"]
        kind = self.config["layer_types"][index]
        q, k, v = (x @ self.weights[f"{path}{name}_proj.weight"].T for name in "qkv")
        q, k, v = (y.reshape(len(x), -1, width) for y in (q, k, v))
        q, k = (self._norm(y, f"{path}{name}_norm") for y, name in ((q, "q"), (k, "k")))
        shared = q.shape[1] // k.shape[1]
        joined = np.zeros(q.shape)
        for at in range(len(x)):
            first = max(0, at - self.config["sliding_window"] + 1) if kind == "sliding_attention" else 0
            for head in range(q.shape[1]):
                turned = self._rotated(q[at, head], at, kind)
                keys = [self._rotated(k[other, head // shared], other, kind) for other in range(first, at + 1)]
                scores = np.array([turned @ key for key in keys]) * self.config["query_pre_attn_scalar"] ** -0.5
                weights = np.exp(scores - scores.max())
                joined[at, head] = weights @ v[first : at + 1, head // shared] / weights.sum()
        return joined.reshape(len(x), -1) @ self.weights[f"{path}o_proj.weight"].T

    def _rotated(self, head: np.ndarray, position: int, kind: str) -> np.ndarray:
        settings = self.config["rope_parameters"][kind]
        half = len(head) // 2
        angles = position / settings.get("factor", 1) * settings["rope_theta"] ** (-np.arange(half) / half)
        a, b = head[:half], head[half:]
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("gemma3_text") / "checkpoint", "gemma3_text", **CHANGES)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    found: list[int] = np.random.default_rng(3).integers(0, 256, 14).tolist()
    return found


def test_a_prompt_in_chunks_and_a_token_are_what_the_slow_decoder_says(checkpoint: Path, ids: list[int]) -> None:
    kinds = json.loads((checkpoint / "config.json").read_text("utf-8"))["layer_types"]
    assert kinds == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    expected = Slow(checkpoint).logits(ids)
    decode, start = Decoder(session(exported(checkpoint).components["model"].model)), 0
    for length in (8, 5, 1):
        found = decode(torch.tensor([ids[start : start + length]]))
        start += length
        assert np.abs(found[0, 0] - expected[start - 1]).max() < GRAPH_FLOAT32


def test_the_slow_decoder_is_transformers(checkpoint: Path, ids: list[int]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(found - Slow(checkpoint).logits(ids)).max() < GRAPH_FLOAT32


ONE_BASE = {kind: {"rope_type": "default", "rope_theta": 100.0} for kind in ("sliding_attention", "full_attention")}


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 0},
        {"scale": 1.0},
        {"sliding_window": 6},
        {"rope_parameters": ONE_BASE},
        {"query_pre_attn_scalar": 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_sets_gemma_apart_shows_in_the_logits(
    checkpoint: Path, ids: list[int], change: dict[str, Any]
) -> None:
    """So the comparisons above hold it."""
    changed, expected = (Slow(checkpoint, **settings).logits(ids)[-1] for settings in (change, {}))
    assert np.abs(changed - expected).max() > 100 * GRAPH_FLOAT32
