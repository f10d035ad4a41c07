"""Pixtral's tower and its connector: graphs equal transformers', packages answer as it does, and a slow oracle."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from hvlc.errors import raise_all
from hvlc.export import vision_language_family
from hvlc.export.settings import read_config
from hvlc.export.vision_language import names_of
from hvlc.graphs.builder import GraphBuilder
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Seen
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.answers import Reference, asked_of_transformers, check_answer, packaged, sizes
from tests.helpers.damages import changed, refused, renamed, with_part, without_processor
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tiny import picture
from tests.helpers.tiny_vision_language import PIXTRAL_TEMPLATE, pixtral_processor, save_pixtral
from tests.helpers.tolerances import GRAPH_FLOAT32

PATCH = 4

#: A template that puts images behind the text, each between texts of its own.
BEHIND = PIXTRAL_TEMPLATE.replace("in message['content'] %}", "in message['content'] | reverse %}").replace(
    "{{ '<|image_pad|>", "{{ 'See ' + '<|image_pad|>"
)

#: Settings of checkpoints, one of each kind somewhere.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "lighton_ocr": {"tied": True, "seed": 5},
    "lighton_ocr-behind": {"merge": 3, "template": BEHIND, "dtype": "bfloat16", "seed": 1},
    "lighton_ocr-gelu": {
        "vision": {"hidden_act": "gelu", "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0}},
        "text": {"attention_bias": True, "rms_norm_eps": 1e-3},
        "pictures": {"size": {"height": 64, "width": 90}, "image_mean": [0.5] * 3, "resample": 2},
        "seed": 4,
    },
    "lighton_ocr-unmerged": {"merge": 1, "pictures": {"size": {"longest_edge": 44}}, "seed": 3},
}

FAMILIES = ("lighton_ocr",)

#: Heights and widths: whole cells, one more, a pixel, too large either way, portrait, landscape.
SIZES = [(32, 32), (33, 44), (90, 40), (40, 90), (1, 1), (300, 20), (50, 200), (120, 130)]

#: One image of every size, two and three images, none.
ASKED = [
    *([picture(*size)] for size in SIZES),
    [picture(50, 90), picture(33, 30)],
    [picture(16, 48), picture(1, 30), picture(60, 16)],
    [],
]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pixtral(tmp_path_factory.mktemp(request.param) / "checkpoint", **CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def package(saved: Path) -> VisionLanguageModel:
    return packaged(saved)


@pytest.fixture(scope="module")
def reference(saved: Path) -> Reference:
    return asked_of_transformers(saved, pixtral_processor(saved))


def padded(seen: list[Seen]) -> np.ndarray:
    """The images at the size of the largest, zeros to the right and below, float32 `[images, 3, H, W]`."""
    pieces = [one.pieces[0] for one in seen]
    height, width = (max(piece.shape[axis] for piece in pieces) for axis in (1, 2))
    return np.stack([np.pad(p, ((0, 0), (0, height - p.shape[1]), (0, width - p.shape[2]))) for p in pieces])


@pytest.mark.parametrize("images", ASKED, ids=sizes)
def test_package_answers_as_transformers(
    package: VisionLanguageModel, reference: Reference, images: list[Image.Image]
) -> None:
    check_answer(package, reference, images, padded)


class Tower:
    """A saved checkpoint's tower and connector as a graph and as transformers has them.

    Args:
        directory: the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        torch.set_num_threads(1)
        self.module: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval().model
        checkpoint = Checkpoint.open(directory)
        family = vision_language_family(checkpoint.model_type)
        assert family is not None
        config: Any = read_config(family.config, checkpoint, family.numbers)
        self.cell = PATCH * config.spatial_merge_size
        (encoder,) = family.encoders(config, names_of(checkpoint, family))
        b = GraphBuilder("vision", checkpoint)
        pixels = b.input("pixel_values", ir.DataType.FLOAT, [1, 3, "height", "width"])
        tokens = family.connector(b, family.tower(b, pixels, encoder), encoder, config)
        b.output(tokens, "tile_features", ir.DataType.FLOAT, [1, "cells", None])
        (first,) = (n for n in b.graph if n.name == f"{encoder.tower}encoder.layers.0.residual2")
        b.output(first.outputs[0], "layer_0", ir.DataType.FLOAT, [1, "patches", None])
        raise_all(checkpoint.problems)
        self.model = b.model()
        self.sessions = {name: session(self.model, name) for name in OPTIMIZATIONS}


@pytest.fixture(scope="module")
def tower(saved: Path) -> Tower:
    return Tower(saved)


def image(rows: int, columns: int, cell: int) -> np.ndarray:
    random = np.random.default_rng(rows * 100 + columns)
    return random.standard_normal((1, 3, rows * cell, columns * cell)).astype(np.float32)


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (4, 5), (1, 9), (10, 2)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_visual_tokens_are_those_of_transformers(tower: Tower, grid: tuple[int, int]) -> None:
    pixels = image(*grid, tower.cell)
    with torch.no_grad():
        asked = tower.module.get_image_features(torch.from_numpy(pixels), [pixels.shape[2:]])
    for name, one in tower.sessions.items():
        found = one.run(["tile_features"], {"pixel_values": pixels})[0][0]
        np.testing.assert_allclose(found, asked.pooler_output[0].numpy(), atol=GRAPH_FLOAT32, rtol=0, err_msg=name)


def turned(x: np.ndarray, row: int, column: int, base: float) -> np.ndarray:
    """A head's query or key at a place, float64 `[width]`: complex numbers turn, of the frequencies by turns."""
    half = len(x) // 2
    frequencies = [base ** (-2 * i / len(x)) for i in range(half)]
    angles = [row * f for f in frequencies[::2]] + [column * f for f in frequencies[1::2]]
    pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * np.array(angles))
    return np.concatenate([pairs.real, pairs.imag])


def normed(norm: Any, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * norm.weight.double().numpy()
    return found


def matrix(linear: Any) -> np.ndarray:
    found: np.ndarray = linear.weight.double().numpy().T
    return found


@torch.no_grad()
def first_layer(tower: Tower, pixels: np.ndarray) -> np.ndarray:
    """What leaves the first layer, float64 `[patches, width]`, one pair of patches after another."""
    module = tower.module.vision_encoder
    layer, config = module.transformer.layers[0], module.config
    rows, columns = (side // PATCH for side in pixels.shape[2:])
    places = [(row, column) for row in range(rows) for column in range(columns)]
    cut = [pixels[0, :, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].ravel() for r, c in places]
    x = np.stack(cut).astype(np.float64) @ module.patch_conv.weight.double().flatten(1).numpy().T
    x = normed(module.ln_pre, x)
    y, attended = normed(layer.attention_norm, x), np.zeros_like(x)
    q, k, v = (y @ matrix(getattr(layer.attention, f"{letter}_proj")) for letter in "qkv")
    wide, base = config.hidden_size // config.num_attention_heads, config.rope_parameters["rope_theta"]
    for head in range(config.num_attention_heads):
        part = slice(head * wide, (head + 1) * wide)
        queries, keys = (
            np.stack([turned(one, *place, base) for one, place in zip(side[:, part], places, strict=True)])
            for side in (q, k)
        )
        for at, query in enumerate(queries):
            weights = np.exp(keys @ query / math.sqrt(wide))
            attended[at, part] = weights @ v[:, part] / weights.sum()
    x = x + attended @ matrix(layer.attention.o_proj)
    return x + layer.feed_forward(torch.from_numpy(normed(layer.ffn_norm, x)).float()).double().numpy()


@pytest.mark.parametrize("grid", [(3, 2), (1, 4), (4, 4)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_first_layer_is_that_of_a_slow_oracle(tower: Tower, grid: tuple[int, int]) -> None:
    pixels = image(*grid, tower.cell)
    found = tower.sessions["as written"].run(["layer_0"], {"pixel_values": pixels})[0][0]
    np.testing.assert_allclose(found, first_layer(tower, pixels), atol=GRAPH_FLOAT32, rtol=0)


def test_a_graph_takes_nothing_but_the_image(tower: Tower) -> None:
    assert [value.name for value in tower.model.graph.inputs] == ["pixel_values"]


#: What contradicts itself, or is not exported: the damage, and what the refusal says.
DAMAGES = [
    (without_processor, "checkpoint.processor"),
    (changed("preprocessor_config.json", patch_size=4), "set patch_size to 8"),
    (changed("preprocessor_config.json", patch_size={"height": 8, "width": 4}), "checkpoint.processor"),
    (changed("preprocessor_config.json", patch_size=None), "checkpoint.processor"),
    (changed("preprocessor_config.json", do_resize=False), "as they are"),
    (changed("preprocessor_config.json", do_center_crop=True), "crops"),
    (changed("preprocessor_config.json", size={"shortest_edge": 64}), "exported is a longest_edge"),
    (changed("preprocessor_config.json", size={"height": 64}), "exported is a longest_edge"),
    (changed("preprocessor_config.json", resample=4), "checkpoint.processor"),
    (changed("preprocessor_config.json", image_std=[0, 1, 1]), "image_std"),
    (changed("config.json", image_token_id=3), "image_token_id is 3"),
    (changed("config.json", spatial_merge_size=3), "set patch_size to 12"),
    (renamed("<|image_pad|>", "<picture>"), "no token <|image_pad|>"),
    (with_part("vision_config", num_attention_heads=5), "5 heads"),
    (with_part("vision_config", num_attention_heads=8), "multiple of 4"),
    (with_part("vision_config", num_channels=1), "num_channels"),
    (with_part("vision_config", patch_size=[4, 8]), "patch_size of the vision tower is [4, 8]"),
    (with_part("vision_config", rope_parameters={"rope_type": "linear", "factor": 2.0}), "rotary settings"),
    (with_part("vision_config", hidden_act="relu"), "export.activation"),
    (with_part("vision_config", num_hidden_layers=0), "num_hidden_layers"),
    (with_part("vision_config", num_hidden_layers=2), "checkpoint.surplus"),
    (with_part("vision_config", num_hidden_layers=4), "checkpoint.weights"),
    (with_part("vision_config", hidden_size=96), "checkpoint.weights"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_what_contradicts_itself_is_refused(tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    directory = save_pixtral(tmp_path / "checkpoint")
    damage(directory)
    assert expected in refused(directory)
