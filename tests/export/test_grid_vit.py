"""Towers over an image's own grid: graphs equal transformers' vision modules, and a slow oracle in numpy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_window_index

from hvlc.errors import raise_all
from hvlc.export import vision_language_family
from hvlc.export.settings import read_config
from hvlc.export.vision_language import names_of
from hvlc.graphs.builder import GraphBuilder
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tiny_vision_language import save_grid
from tests.helpers.tolerances import GRAPH_FLOAT32

PATCH = 4

#: Settings of towers, one of each kind somewhere.
TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"family": "qwen2_vl"},
    "qwen2_vl-silu-merge-3": {"family": "qwen2_vl", "merge": 3, "vision": {"hidden_act": "silu"}, "seed": 1},
    "qwen2_5_vl": {"family": "qwen2_5_vl", "seed": 2},
    "qwen2_5_vl-windows-only": {
        "family": "qwen2_5_vl",
        "vision": {"fullatt_block_indexes": [], "window_size": 8, "hidden_act": "gelu"},
        "seed": 3,
    },
    "qwen2_5_vl-bfloat16": {"family": "qwen2_5_vl", "vision": {"window_size": 32}, "dtype": "bfloat16", "seed": 4},
    "qwen3_vl": {"seed": 5},
    "qwen3_vl-every-layer": {
        "vision": {"deepstack_visual_indexes": [3, 0, 1, 2], "num_position_embeddings": 4},
        "seed": 6,
    },
    "qwen3_vl-no-taps": {
        "vision": {"deepstack_visual_indexes": [], "num_position_embeddings": 1, "temporal_patch_size": 1},
        "seed": 7,
    },
    "qwen3_vl-large-table": {"vision": {"num_position_embeddings": 48 * 48, "hidden_act": "gelu"}, "seed": 8},
}

#: Rows and columns of visual tokens: one, windows of 1, 3 and 4 that fit and do not, the table's own size, portrait,
#: landscape, one side alone.
GRIDS = [(1, 1), (3, 3), (6, 3), (3, 6), (4, 5), (5, 4), (8, 4), (1, 9), (10, 2), (2, 7)]


class Tower:
    """A saved checkpoint's tower as a graph and as transformers has it.

    Args:
        directory: the checkpoint.
        merge: side of the squares of patches that merge.
    """

    def __init__(self, directory: Path, merge: int) -> None:
        torch.set_num_threads(1)
        self.cell = PATCH * merge
        self.merge = merge
        model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        self.module = model.model.visual
        checkpoint = Checkpoint.open(directory)
        family = vision_language_family(checkpoint.model_type)
        assert family is not None
        config: Any = read_config(family.config, checkpoint, family.numbers)
        (encoder,) = family.encoders(config, names_of(checkpoint, family))
        b = GraphBuilder("vision", checkpoint)
        pixels = b.input("pixel_values", ir.DataType.FLOAT, [1, 3, "height", "width"])
        tokens = family.connector(b, family.tower(b, pixels, encoder), encoder, config)
        b.output(tokens, "tile_features", ir.DataType.FLOAT, [1, "cells", None])
        for index in range(len(self.module.blocks)):  # what leaves a layer, under the name that cuts look for
            (node,) = (n for n in b.graph if n.name == f"{encoder.tower}encoder.layers.{index}.residual2")
            b.output(node.outputs[0], f"layer_{index}", ir.DataType.FLOAT, [1, "patches", None])
        raise_all(checkpoint.problems)
        model = b.model()
        self.sessions = {name: session(model, name) for name in OPTIMIZATIONS}
        self.model = model

    def patches(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """What transformers' tower takes of an image float `[1, 3, H, W]`."""
        frames = self.module.config.temporal_patch_size
        flat, rows, columns = Qwen2VLImageProcessorPil().patchify(pixels[0], PATCH, self.merge, frames)
        return torch.from_numpy(flat), torch.tensor([[1, rows, columns]])

    def raster(self, grid: torch.Tensor) -> np.ndarray:
        """Where the patches of transformers' order stand, row by row, int64 `[patches]`."""
        _, rows, columns = grid[0].tolist()
        m = self.merge
        order = (
            np.arange(rows * columns).reshape(rows // m, m, columns // m, m).transpose(0, 2, 1, 3).reshape(-1, m * m)
        )
        if hasattr(self.module.config, "window_size"):
            windows, _ = get_vision_window_index(grid, m, self.module.config.window_size, PATCH)
            order = order[windows.numpy()]
        return np.argsort(order.reshape(-1))


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tower:
    settings = TOWERS[request.param]
    directory = save_grid(tmp_path_factory.mktemp(request.param) / "checkpoint", **settings)
    return Tower(directory, settings.get("merge", 2))


def image(rows: int, columns: int, cell: int) -> np.ndarray:
    random = np.random.default_rng(rows * 100 + columns)
    return random.standard_normal((1, 3, rows * cell, columns * cell)).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_tower_is_that_of_transformers(tower: Tower, grid: tuple[int, int]) -> None:
    pixels = image(*grid, tower.cell)
    patches, thw = tower.patches(pixels)
    with torch.no_grad():
        asked = tower.module(patches, thw, output_hidden_states=True)
    expected = [asked.pooler_output, *getattr(asked, "deepstack_features", [])]
    expected_tokens = torch.cat(expected, -1).numpy()
    order = tower.raster(thw)
    for name, one in tower.sessions.items():
        tokens, *layers = one.run(None, {"pixel_values": pixels})
        np.testing.assert_allclose(tokens[0], expected_tokens, atol=GRAPH_FLOAT32, rtol=0, err_msg=name)
        for index, layer in enumerate(layers):
            theirs = asked.hidden_states[index + 1].numpy()[order]
            np.testing.assert_allclose(layer[0], theirs, atol=GRAPH_FLOAT32, rtol=0, err_msg=f"{name}, layer {index}")


def turned(x: np.ndarray, row: int, column: int) -> np.ndarray:
    """A head's query or key at a place, float64 `[width]`: complex numbers turn, half by row, half by column."""
    half, quarter = len(x) // 2, len(x) // 4
    pairs = x[:half] + 1j * x[half:]
    angles = [place / 10000 ** (i / quarter) for place in (row, column) for i in range(quarter)]
    pairs = pairs * np.exp(1j * np.array(angles))
    return np.concatenate([pairs.real, pairs.imag])


def attended(layer: Any, y: np.ndarray, places: list[tuple[int, int]], window: int | None, heads: int) -> np.ndarray:
    """Attention in float64 over normalized patches `[patches, width]`, one pair of patches after another."""
    width = y.shape[1]
    qkv = y @ layer.attn.qkv.weight.double().numpy().T + layer.attn.qkv.bias.double().numpy()
    made = np.zeros_like(y)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        q, k, v = (qkv[:, i * width : (i + 1) * width][:, part] for i in range(3))
        q = np.stack([turned(one, *place) for one, place in zip(q, places, strict=True)])
        k = np.stack([turned(one, *place) for one, place in zip(k, places, strict=True)])
        for at, (row, column) in enumerate(places):
            seen = [
                other
                for other, (r, c) in enumerate(places)
                if window is None or (r // window, c // window) == (row // window, column // window)
            ]
            scores = np.array([q[at] @ k[other] for other in seen]) / math.sqrt(width // heads)
            weights = np.exp(scores - scores.max())
            made[at, part] = (weights[:, None] * v[seen]).sum(0) / weights.sum()
    return made @ layer.attn.proj.weight.double().numpy().T + layer.attn.proj.bias.double().numpy()


def resized_table(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A table float64 `[side * side, width]` at the places of a grid, row by row, corners on corners."""
    side = math.isqrt(len(table))
    table = table.reshape(side, side, -1)
    made = []
    for row in range(rows):
        for column in range(columns):
            y, x = row * (side - 1) / max(rows - 1, 1), column * (side - 1) / max(columns - 1, 1)
            top, left = min(int(y), side - 1), min(int(x), side - 1)
            below, right = min(top + 1, side - 1), min(left + 1, side - 1)
            upper = table[top, left] * (1 - (x - left)) + table[top, right] * (x - left)
            lower = table[below, left] * (1 - (x - left)) + table[below, right] * (x - left)
            made.append(upper * (1 - (y - top)) + lower * (y - top))
    return np.stack(made)


def normed(norm: Any, x: np.ndarray) -> np.ndarray:
    weight = norm.weight.double().numpy()
    if not hasattr(norm, "bias"):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight + norm.bias.double().numpy()


@torch.no_grad()
def first_layer(tower: Tower, pixels: np.ndarray) -> np.ndarray:
    """What leaves the first layer, float64 `[patches, width]`, row by row, patch by patch."""
    module, config = tower.module, tower.module.config
    kernel = module.patch_embed.proj.weight.double().sum(2).flatten(1).numpy()
    rows, columns = (side // PATCH for side in pixels.shape[2:])
    places = [(row, column) for row in range(rows) for column in range(columns)]
    cut = [pixels[0, :, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].ravel() for r, c in places]
    x = np.stack(cut).astype(np.float64) @ kernel.T
    if module.patch_embed.proj.bias is not None:
        x += module.patch_embed.proj.bias.double().numpy()
    if hasattr(module, "pos_embed"):
        x += resized_table(module.pos_embed.weight.double().numpy(), rows, columns)
    layer = module.blocks[0]
    is_windowed = 0 not in getattr(config, "fullatt_block_indexes", [0])
    window = config.window_size // PATCH // tower.merge * tower.merge if is_windowed else None
    x = x + attended(layer, normed(layer.norm1, x), places, window, config.num_heads)
    return x + layer.mlp(torch.from_numpy(normed(layer.norm2, x)).float()).double().numpy()


@pytest.mark.parametrize("grid", [(3, 2), (1, 4), (4, 4)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_first_layer_is_that_of_a_slow_oracle(tower: Tower, grid: tuple[int, int]) -> None:
    pixels = image(*grid, tower.cell)
    expected = first_layer(tower, pixels)
    found = tower.sessions["as written"].run(["layer_0"], {"pixel_values": pixels})[0][0]
    np.testing.assert_allclose(found, expected, atol=GRAPH_FLOAT32, rtol=0)


def test_a_graph_takes_nothing_but_the_image(tower: Tower) -> None:
    assert [value.name for value in tower.model.graph.inputs] == ["pixel_values"]
