"""Exported graphs compute what transformers computes, in float32, with onnxruntime's own rewrites off and on."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import DynamicCache

from hvlc.export import export_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.models.hypervl import HyperVLForConditionalGeneration
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tiny import HIDDEN, TILE, save_tiny
from tests.helpers.tolerances import GRAPH_FLOAT32

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    "one kv head": {"num_key_value_heads": 1, "attention_bias": True},
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory) -> tuple[HyperVLForConditionalGeneration, Bundle]:
    directory = save_tiny(tmp_path_factory.mktemp("parity") / "checkpoint", seed=1, **VARIANTS[request.param])
    model = HyperVLForConditionalGeneration.from_pretrained(directory).eval()
    return model, export_bundle(Checkpoint.open(directory))


@pytest.fixture(params=OPTIMIZATIONS)
def optimization(request) -> str:
    return request.param


@pytest.mark.parametrize("branch", ["base", "large"])
@pytest.mark.parametrize("tiles", [1, 3])
@torch.no_grad()
def test_a_vision_encoder_with_its_projector(pair, optimization: str, branch: str, tiles: int) -> None:
    model, bundle = pair
    pixels = torch.randn(tiles, 3, TILE, TILE, generator=torch.Generator().manual_seed(tiles))
    expected = model.model.branches[branch](pixels)
    encoder = session(bundle.components[f"vision_{branch}"].model, optimization)
    (features,) = encoder.run(None, {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(features, expected, atol=GRAPH_FLOAT32, rtol=0)


@torch.no_grad()
def test_the_resolution_compressor(pair, optimization: str) -> None:
    model, bundle = pair
    compressor = model.model.resolution_compressor
    proxy = torch.randn(1, 3, compressor.config.proxy_size, compressor.config.proxy_size)
    network = bundle.components["resolution"].model
    (log_size,) = session(network, optimization).run(None, {network.graph.inputs[0].name: proxy.numpy()})
    np.testing.assert_allclose(log_size.ravel(), compressor(proxy), atol=GRAPH_FLOAT32, rtol=0)


@pytest.mark.parametrize("images", [0, 1, 3])
@torch.no_grad()
def test_visual_tokens_take_the_places_of_placeholders_in_order(pair, optimization: str, images: int) -> None:
    model, bundle = pair
    image, row = model.config.image_token_id, model.config.row_token_id
    ids = torch.tensor([[72, *([image, image, row] * images), 73]])
    features = torch.randn(2 * images, HIDDEN)
    (merged,) = session(bundle.components["embedding"].model, optimization).run(
        None, {"input_ids": ids.numpy(), "image_features": features.numpy()}
    )
    np.testing.assert_array_equal(merged, model.model.merge(ids, features))


class Decoder:
    """The decoder graph, its cache carried from call to call."""

    def __init__(self, bundle: Bundle, optimization: str) -> None:
        self.session: ort.InferenceSession = session(bundle.components["model"].model, optimization)
        heads, size = bundle.facts.speaks.num_kv_heads, bundle.facts.speaks.head_size
        names = [i.name for i in self.session.get_inputs() if i.name.startswith("past")]
        self.cache = {name: np.zeros((1, heads, 0, size), np.float32) for name in names}
        self.total = 0

    def __call__(self, embeds: torch.Tensor) -> np.ndarray:
        self.total += embeds.shape[1]
        feeds = {"inputs_embeds": embeds.numpy(), "attention_mask": np.ones((1, self.total), np.int64), **self.cache}
        outputs = dict(zip([o.name for o in self.session.get_outputs()], self.session.run(None, feeds), strict=True))
        logits = outputs.pop("logits")
        self.cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
        return logits


@torch.no_grad()
def test_prefill_and_every_decoding_step_with_the_cache(pair, optimization: str) -> None:
    model, bundle = pair
    decode, cache = Decoder(bundle, optimization), DynamicCache()
    random = torch.Generator().manual_seed(0)
    for step in [7, 1, 1, 1, 3, 1]:  # a prompt, tokens, a few tokens at once
        embeds = torch.randn(1, step, HIDDEN, generator=random)
        expected = model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).logits[:, -1:]
        np.testing.assert_allclose(decode(embeds), expected, atol=GRAPH_FLOAT32, rtol=0)
    for index, layer in enumerate(cache.layers):
        for part, value in (("key", layer.keys), ("value", layer.values)):
            past = decode.cache[f"past_key_values.{index}.{part}"]
            np.testing.assert_allclose(past, value, atol=GRAPH_FLOAT32, rtol=0)


@torch.no_grad()
def test_the_parity_check_fails_for_a_model_of_other_weights(pair, tmp_path: Path) -> None:
    model, _ = pair
    other = export_bundle(Checkpoint.open(save_tiny(tmp_path / "other", seed=2)))
    embeds = torch.randn(1, 3, HIDDEN)
    difference = Decoder(other, "as written")(embeds) - model(inputs_embeds=embeds).logits[:, -1:].numpy()
    assert np.abs(difference).max() > 100 * GRAPH_FLOAT32


def test_query_and_key_norms_are_in_the_graph(pair) -> None:
    """So the parity above holds them too."""
    _, bundle = pair
    weights = bundle.components["model"].graph.initializers
    norms = [name for name in weights if "q_norm" in name or "k_norm" in name]
    assert len(norms) == 2 * bundle.facts.speaks.num_layers
    assert not np.allclose(weights[norms[0]].const_value.numpy(), 1)
