"""Decoders that are given positions in three axes, and features of an image behind their first layers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLTextRotaryEmbedding

from hvlc.errors import UserError
from hvlc.export.decoder.embedding import embedding
from hvlc.export.decoder.graph import decoder
from hvlc.export.decoder.rotation import picked
from hvlc.export.decoder.shape import DecoderShape, GridPositions
from hvlc.export.grid_positions import interleaved, sectioned
from hvlc.export.language import Family, configured_biases, decoder_shape, rotary_tables
from hvlc.graphs.builder import GraphBuilder
from hvlc.runtime.positions import grid_positions
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.sessions import session
from tests.helpers.tolerances import GRAPH_FLOAT32

IMAGE, START, END = 5, 6, 7
HEADS, KV_HEADS, HEAD, HIDDEN, VOCABULARY = 4, 2, 32, 64, 48


def text(layers: int, sections: list[int], **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **more},
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


TOKENS = {"image_token_id": IMAGE, "video_token_id": 8, "vision_start_token_id": START, "vision_end_token_id": END}


def qwen3(layers: int, taps: list[int], sections: list[int]) -> Any:
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": taps,
    }
    torch.manual_seed(layers)
    config = Qwen3VLConfig(text_config=text(layers, sections), vision_config=vision, **TOKENS)
    return Qwen3VLForConditionalGeneration(config).eval()


def qwen2_5(layers: int, sections: list[int]) -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "out_hidden_size": HIDDEN,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    torch.manual_seed(layers)
    settings = text(layers, sections)
    del settings["head_dim"]
    settings["hidden_size"] = vision["out_hidden_size"] = HEADS * HEAD
    config = Qwen2_5_VLConfig(text_config=settings, vision_config=vision, **TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


QWEN3 = Family(
    type(Qwen3VLConfig().text_config),
    Qwen3VLTextRotaryEmbedding,
    configured_biases,
    head_norms=True,
    grid_positions=interleaved((24, 20, 20)),
)
QWEN2_5 = Family(
    type(Qwen2_5_VLConfig().text_config),
    Qwen2_5_VLRotaryEmbedding,
    lambda config: frozenset({"q_proj", "k_proj", "v_proj"}),
    grid_positions=sectioned((16, 24, 24)),
)


class Graphs:
    """Embedding and decoder of a model that is built by transformers, with a cache."""

    def __init__(self, model: Any, family: Family, taps: int, directory: Path) -> None:
        model.save_pretrained(directory)
        checkpoint = Checkpoint.open(directory)
        config = model.config.text_config
        self.shape: DecoderShape = decoder_shape(config, family, {}, checkpoint.problems)
        self.shape = DecoderShape(**{**vars(self.shape), "taps": taps})
        tables = rotary_tables(config, family, self.shape, checkpoint.problems)
        text = "model.language_model" if "model.language_model.norm.weight" in checkpoint.tensors else "model"
        table = f"{text}.embed_tokens.weight"
        made = embedding(GraphBuilder("embedding", checkpoint), table, self.shape, IMAGE)
        whole = decoder(GraphBuilder("decoder", checkpoint), text, "lm_head.weight", self.shape, tables)
        assert not checkpoint.problems
        self.embedding, self.decoder = session(made), session(whole)
        cache = [v for v in self.decoder.get_inputs() if v.name.startswith("past")]
        self.past = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in cache}

    def __call__(self, ids: np.ndarray, positions: np.ndarray, features: np.ndarray) -> np.ndarray:
        """float32 `[vocabulary]`: logits after the last of these tokens."""
        embeds = self.embedding.run(None, {"input_ids": ids[None], "image_features": features})[0]
        total = next(iter(self.past.values())).shape[2] + len(ids)
        feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, total), np.int64)}
        logits, *present = self.decoder.run(None, {**feeds, "position_ids": positions[:, None], **self.past})
        self.past = dict(zip(self.past, present, strict=True))
        return logits[0, 0]


def reference(model: Any, ids: np.ndarray, positions: np.ndarray, features: np.ndarray) -> np.ndarray:
    """float32 `[n, vocabulary]` of transformers' text model with these embeddings, positions and taps."""
    decoder, wanted = model.model.language_model, torch.from_numpy(ids)[None]
    embeds, mask = decoder.embed_tokens(wanted), wanted == IMAGE
    hidden = embeds.shape[-1]
    rows = torch.from_numpy(features)
    embeds[mask] = rows[:, :hidden]
    taps = [rows[:, at : at + hidden] for at in range(hidden, rows.shape[1], hidden)]
    more = {"visual_pos_masks": mask, "deepstack_visual_embeds": taps} if taps else {}
    given = {"inputs_embeds": embeds, "position_ids": torch.from_numpy(positions)[:, None], "use_cache": False}
    with torch.no_grad():
        states = decoder(**given, **more).last_hidden_state
        return model.lm_head(states)[0].numpy()


def sequence(grids: list[tuple[int, int]], tail: int = 4) -> np.ndarray:
    ids = [10, 11]
    for at, (rows, columns) in enumerate(grids):
        ids += [START, *[IMAGE] * (rows * columns), END, 12 + at]
    return np.array([*ids, *range(20, 20 + tail)], np.int64)


@pytest.mark.parametrize(
    ("model", "family", "taps"),
    [
        (lambda: qwen3(3, [0, 2], [8, 4, 4]), QWEN3, 2),
        (lambda: qwen3(3, [0, 1, 2], [6, 5, 5]), QWEN3, 3),  # exactly as many layers as taps
        (lambda: qwen3(2, [0, 1, 2], [6, 5, 5]), QWEN3, 3),  # transformers adds the third nowhere
        (lambda: qwen3(2, [], [16, 0, 0]), QWEN3, 0),
        (lambda: qwen2_5(2, [4, 6, 6]), QWEN2_5, 0),
    ],
    ids=["taps", "as-many-taps", "more-taps", "no-taps", "sectioned"],
)
def test_a_decoder_answers_as_transformers(model: Any, family: Family, taps: int, tmp_path: Path) -> None:
    made = model()
    graphs = Graphs(made, family, taps, tmp_path)
    grids = [(2, 3), (4, 1)]
    ids = sequence(grids)
    positions = grid_positions(ids, IMAGE, [np.array(grid) for grid in grids])
    width = graphs.shape.hidden + graphs.shape.side_channels
    features = np.random.default_rng(0).standard_normal((10, width)).astype(np.float32)
    wanted = reference(made, ids, positions, features)
    nothing = np.empty((0, width), np.float32)
    cut = len(ids) - 2
    np.testing.assert_allclose(graphs(ids[:cut], positions[:, :cut], features), wanted[cut - 1], atol=GRAPH_FLOAT32)
    for at in range(cut, len(ids)):
        found = graphs(ids[at : at + 1], positions[:, at : at + 1], nothing)
        np.testing.assert_allclose(found, wanted[at], atol=GRAPH_FLOAT32)


def test_taps_and_positions_matter(tmp_path: Path) -> None:
    made = qwen3(3, [0, 2], [8, 4, 4])
    grids = [np.array([2, 3])]
    ids = sequence([(2, 3)])
    positions = grid_positions(ids, IMAGE, grids)
    features = np.random.default_rng(0).standard_normal((6, 3 * HIDDEN)).astype(np.float32)
    without = features.copy()
    without[:, HIDDEN:] = 0
    answers = [
        Graphs(made, QWEN3, 2, tmp_path)(ids, at, rows)
        for at, rows in ((positions, features), (positions, without), (np.stack([np.arange(len(ids))] * 3), features))
    ]
    assert all(np.abs(answers[0] - other).max() > 1e-3 for other in answers[1:])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=3), st.integers(0, 4), st.booleans())
def test_positions_are_those_of_transformers(grids: list[tuple[int, int]], tail: int, first: bool) -> None:
    ids = sequence(grids, tail)[2 if first and grids else 0 :]
    inner = object.__new__(type("Model", (), {}))
    inner.config = Qwen3VLConfig(**TOKENS)  # type: ignore[attr-defined]
    inner.get_vision_position_ids = Qwen3VLModel.get_vision_position_ids.__get__(inner)  # type: ignore[attr-defined]
    merge = inner.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
    shown = torch.tensor([[1, rows * merge, columns * merge] for rows, columns in grids], dtype=torch.long)
    kinds = torch.from_numpy((ids == IMAGE).astype(np.int64))[None]
    wanted, _ = Qwen3VLModel.get_rope_index(
        inner, torch.from_numpy(ids)[None], kinds, shown if grids else None, attention_mask=None
    )
    found = grid_positions(ids, IMAGE, [np.array(grid) for grid in grids])
    np.testing.assert_array_equal(found, wanted[:, 0].numpy())


def test_tokens_and_grids_that_do_not_fit_are_refused() -> None:
    ids = sequence([(2, 3)])
    with pytest.raises(ValueError, match="do not say which"):
        grid_positions(ids, IMAGE, [np.array([2, 4])])
    with pytest.raises(ValueError, match="do not say which"):
        grid_positions(ids, IMAGE, [])
    with pytest.raises(ValueError, match="1 of 2 images have no tokens"):
        grid_positions(ids, IMAGE, [np.array([2, 3]), np.array([1, 1])])


def slow_rotation(x: np.ndarray, positions: np.ndarray, axes: tuple[int, ...], theta: float) -> np.ndarray:
    """Turn each pair of channels of each token, one after another, in float64."""
    turned, half = x.astype(np.float64), len(axes)
    for token in range(x.shape[0]):
        for pair, axis in enumerate(axes):
            angle = positions[axis, token] / theta ** (2 * pair / (2 * half))
            a, b = x[token, pair], x[token, pair + half]
            turned[token, pair] = a * np.cos(angle) - b * np.sin(angle)
            turned[token, pair + half] = b * np.cos(angle) + a * np.sin(angle)
    return turned


@pytest.mark.parametrize("axes", [GridPositions.sectioned((2, 3, 3)), GridPositions.interleaved((4, 2, 2), 8)])
def test_rotation_by_hand(axes: GridPositions) -> None:
    rng, theta, tokens = np.random.default_rng(0), 100.0, 5
    angles = np.outer(np.arange(32), theta ** -(np.arange(8) / 8)).astype(np.float32)
    b = GraphBuilder("rotation")
    x = b.input("x", ir.DataType.FLOAT, [1, tokens, 16])
    tables = tuple(b.constant(rows, name) for rows, name in ((np.cos(angles), "cos"), (np.sin(angles), "sin")))
    given = b.input("position_ids", ir.DataType.INT64, [3, 1, tokens])
    turns = picked(b, tables, given, axes)
    b.output(turns.turned(b, x, 1, "q"), "y", ir.DataType.FLOAT, [1, tokens, 16])
    values = rng.standard_normal((1, tokens, 16)).astype(np.float32)
    positions = rng.integers(0, 32, (3, tokens))
    found = session(b.model()).run(None, {"x": values, "position_ids": positions[:, None]})[0]
    np.testing.assert_allclose(found[0], slow_rotation(values[0], positions, axes.axes, theta), atol=1e-5)


@pytest.mark.parametrize(
    ("read", "settings"),
    [
        (sectioned((16, 24, 24)), {"mrope_section": [4, 6, 5]}),
        (sectioned((16, 24, 24)), {}),
        (interleaved((24, 20, 20)), {"mrope_section": [4, 6]}),
        (interleaved((24, 20, 20)), {"mrope_section": "8,4,4"}),
        (interleaved((24, 20, 20)), {"mrope_section": [-1, 8, 9]}),
        (interleaved((24, 20, 20)), {"mrope_section": [8, 4, 4], "mrope_interleaved": False}),
    ],
)
def test_sections_that_contradict_the_heads_are_refused(read: Any, settings: dict[str, Any]) -> None:
    config = type("Config", (), {"rope_parameters": settings, "head_dim": HEAD})()
    with pytest.raises(UserError) as refused:
        read(config)
    assert refused.value.code == "checkpoint.config"


def test_a_placeholder_in_an_answer_is_a_token(tmp_path: Path) -> None:
    """Nothing is merged where there are no features; other numbers of features are an error all the same."""
    made = qwen3(2, [0], [8, 4, 4])
    graphs = Graphs(made, QWEN3, 1, tmp_path)
    ids = np.array([[10, IMAGE, 11]], np.int64)
    table = made.model.language_model.embed_tokens.weight.detach().numpy()
    none = np.empty((0, 2 * HIDDEN), np.float32)
    found = graphs.embedding.run(None, {"input_ids": ids, "image_features": none})[0]
    np.testing.assert_array_equal(found[0, :, :HIDDEN], table[ids[0]])
    with pytest.raises(Exception, match="ScatterND"):
        graphs.embedding.run(None, {"input_ids": ids, "image_features": np.ones((2, 2 * HIDDEN), np.float32)})
