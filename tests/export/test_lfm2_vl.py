"""LFM2-VL: packages answer as transformers does, from the processor's first byte to the last token."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from hvlc.errors import HvlcError, raise_all
from hvlc.export import export_bundle
from hvlc.export.naflex import _shares
from hvlc.graphs.builder import GraphBuilder
from hvlc.models.lfm2_vl import load_processor
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.vision import Seen
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.answers import QUESTION, Reference, asked_of_transformers, check_answer, packaged
from tests.helpers.sessions import session
from tests.helpers.tiny import picture
from tests.helpers.tiny_naflex import FACTOR, PATCH, TEMPLATE, TILE, save_naflex
from tests.helpers.tiny_vision_language import edit_json
from tests.helpers.tolerances import GRAPH_FLOAT32

#: A template that puts images behind the text, each between texts of its own.
BEHIND = TEMPLATE.replace("in message['content'] %}", "in message['content'] | reverse %}").replace(
    "{{ '<image>' }}", "{{ 'See <image>!' }}"
)
#: Settings of checkpoints, one of each kind somewhere.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "no-norm-no-biases": {
        "projector": {"projector_use_layernorm": False, "projector_bias": False, "projector_hidden_act": "gelu_new"},
        "text": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "conv_bias": True},
        "template": BEHIND,
        "tied": False,
        "seed": 1,
    },
    "never-cut": {"pictures": {"do_image_splitting": False}, "vision": {"vision_use_head": True}, "seed": 2},
    "larger-table": {
        "vision": {"num_patches": 400},
        "pictures": {"min_tiles": 3, "max_tiles": 5, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]},
        "template": BEHIND,
        "dtype": "bfloat16",
        "seed": 3,
    },
    "bicubic-one-cell": {
        "projector": {"downsample_factor": 1},
        "pictures": {"downsample_factor": 1, "resample": 3, "max_pixels_tolerance": 1.0},
        "seed": 4,
    },
}
FAMILIES = ("lfm2_vl",)

#: Heights and widths: one piece, as many pixels as that may have, tiles, halves of a cell, portrait, landscape, tiny.
SIZES = [(32, 32), (45, 45), (46, 46), (20, 44), (90, 40), (40, 90), (1, 1), (70, 20), (64, 33)]

#: One image of every size, two and three images, none.
ASKED = [
    *([picture(*size)] for size in SIZES),
    [picture(50, 90), picture(33, 30)],
    [picture(16, 48), picture(60, 50), picture(5, 7)],
    [],
]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_naflex(tmp_path_factory.mktemp(request.param) / "checkpoint", **CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> VisionLanguageModel:
    return packaged(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return asked_of_transformers(checkpoint, load_processor(checkpoint))


@pytest.fixture(scope="module")
def most(checkpoint: Path) -> int:
    """Patches to which the processor pads."""
    pictures = load_processor(checkpoint).image_processor
    tile = (TILE // PATCH) ** 2 if pictures.do_image_splitting else 0
    return int(max(pictures.max_image_tokens * pictures.downsample_factor**2, tile))


@pytest.fixture(scope="module")
def patches(most: int) -> Callable[[list[Seen]], np.ndarray]:
    def cut(seen: list[Seen]) -> np.ndarray:
        """The patches of all pieces, padded."""
        pieces = [piece for one in seen for part in one.parts for piece in part]
        rows = [_patches(piece) for piece in pieces]
        return np.stack([np.pad(row, ((0, most - len(row)), (0, 0))) for row in rows])

    return cut


def _patches(piece: np.ndarray) -> np.ndarray:
    _, height, width = piece.shape
    squares = piece.reshape(3, height // PATCH, PATCH, width // PATCH, PATCH)
    return squares.transpose(1, 3, 2, 4, 0).reshape(-1, 3 * PATCH**2)


@pytest.mark.parametrize("images", ASKED, ids=lambda images: "-".join(f"{i.height}x{i.width}" for i in images))
def test_package_answers_as_transformers(
    package: VisionLanguageModel,
    reference: Reference,
    patches: Callable[[list[Seen]], np.ndarray],
    images: list[Image.Image],
) -> None:
    check_answer(package, reference, images, patches)


def test_the_cases_above_have_tiles_and_none(package: VisionLanguageModel, checkpoint: Path) -> None:
    counts = {len(package._vision.see(np.asarray(image), compress=False).pieces) for (image, *_) in ASKED[:-1]}
    assert (len(counts) > 1) is load_processor(checkpoint).image_processor.do_image_splitting
    assert 0 in counts


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    return packaged(save_naflex(tmp_path_factory.mktemp("usual") / "checkpoint"))


@pytest.mark.parametrize(("limit", "tiles"), [(3, 0), (8, 0), (16, 0), (46, 0), (48, 2), (111, 6), (500, 6)])
def test_bound_of_visual_tokens_is_kept(usual: VisionLanguageModel, limit: int, tiles: int) -> None:
    asked: dict[str, Any] = {"encoder": "auto", "vrc": True, "max_visual_tokens": limit, "max_new_tokens": 2}
    (seen,) = usual.start(QUESTION, [picture(100, 60)], **asked).images
    assert 0 < seen.visual_tokens <= limit
    assert len(seen.pieces) == tiles


def test_hosts_are_told_of_the_overview_and_of_rewinding(usual: VisionLanguageModel) -> None:
    images = usual.manifest.images
    assert images is not None
    assert (images.rule, images.overview, images.piece, images.tokens_per_piece) == (
        "naflex_tiles",
        True,
        (TILE, TILE),
        (TILE // PATCH // FACTOR) ** 2,
    )
    assert not usual.manifest.rewinds
    generation = usual.start("What?", [picture(20, 20)], max_new_tokens=2)
    list(generation)
    with pytest.raises(RuntimeError, match="RewindTo"):
        generation.generator.rewind_to(3)


def shares(count: int, side: int) -> np.ndarray:
    b = GraphBuilder("shares")
    given = b.input("count", ir.DataType.INT64, [1])
    b.output(_shares(b, given, side), "shares", ir.DataType.FLOAT, ["count", side])
    return session(b.model()).run(None, {"count": np.array([count])})[0]


@given(st.integers(1, 70), st.integers(1, 30))
@example(16, 16)
@example(5, 16)
@example(1, 16)
@settings(max_examples=40, deadline=None)
def test_shares_are_a_textbook_triangle(count: int, side: int) -> None:
    """Place by place and entry by entry, in doubles."""
    step = side / count
    expected = np.zeros((count, side))
    for place in range(count):
        for entry in range(side):
            away = abs((entry + 0.5) - (place + 0.5) * step) / max(step, 1)
            expected[place, entry] = max(0, 1 - away)
        expected[place] /= expected[place].sum()
    np.testing.assert_allclose(shares(count, side), expected, atol=2e-6)


@pytest.mark.parametrize("grid", [(4, 4), (5, 5), (5, 9), (2, 3), (1, 12), (12, 8)])
def test_positions_are_resized_as_transformers_does(grid: tuple[int, int]) -> None:
    table = torch.randn(5, 5, 7, generator=torch.Generator().manual_seed(0))
    spatial = torch.tensor([grid])
    resize = Siglip2VisionEmbeddings.resize_positional_embeddings
    expected = resize(table, spatial, grid[0] * grid[1])[0].reshape(*grid, 7).numpy()
    rows, columns = (shares(count, 5) for count in grid)
    found = np.einsum("ra,cb,abw->rcw", rows, columns, table.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_the_encoder_equals_transformers_for_any_shape(tmp_path: Path) -> None:
    directory = save_naflex(tmp_path / "checkpoint")
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    encoder = session(export_bundle(Checkpoint.open(directory)).components["vision_main"].model)
    for rows, columns, count in [(2, 2, 1), (8, 8, 3), (2, 10, 1), (12, 4, 2), (6, 6, 1)]:
        pixels = torch.randn(count, 3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(rows))
        flat = torch.from_numpy(np.stack([_patches(piece) for piece in pixels.numpy()]))
        mask, shape = torch.ones(count, rows * columns, dtype=torch.int32), torch.tensor([[rows, columns]] * count)
        expected = model.get_image_features(flat, shape, mask).pooler_output
        found = encoder.run(None, {"pixel_values": pixels.numpy()})[0]
        assert found.shape == (count, rows * columns // FACTOR**2, 64)
        for mine, theirs in zip(found, expected, strict=True):
            assert np.abs(mine - theirs.numpy()).max() < GRAPH_FLOAT32


def exported(directory: Path) -> None:
    """Export a checkpoint, and raise what that found wrong with its tensors."""
    checkpoint = Checkpoint.open(directory)
    export_bundle(checkpoint)
    raise_all(checkpoint.problems)


def test_names_of_earlier_versions_are_known(tmp_path: Path) -> None:
    """The tower's parameters inside `vision_model`, as transformers 4 saved them."""
    directory = save_naflex(tmp_path / "checkpoint", vision={"vision_use_head": True})
    path = directory / "model.safetensors"
    tensors = load_file(path)
    renamed = {re.sub(r"vision_tower\.", "vision_tower.vision_model.", name): t for name, t in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path, {"format": "pt"})
    exported(directory)


def changed(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / file, **changes)


def vision(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        edit_json(directory / "config.json", vision_config=config["vision_config"] | changes)

    return change


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def rename(directory: Path) -> None:
        path = directory / "tokenizer.json"
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")

    return rename


PICTURES = "preprocessor_config.json"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no processor": (lambda directory: (directory / PICTURES).unlink(), r"checkpoint\.processor|processor"),
    "another patch": (changed(PICTURES, encoder_patch_size=8), r"checkpoint\.processor.*encoder_patch_size is 8.* 4"),
    "another factor": (changed(PICTURES, downsample_factor=4), r"downsample_factor is 4, the model's 2"),
    "tiles of broken cells": (changed(PICTURES, tile_size=36), r"tile_size 36 is not a multiple of 8"),
    "one tile": (changed(PICTURES, min_tiles=1), r"min_tiles is 1"),
    "fewest above most": (changed(PICTURES, min_tiles=7), r"min_tiles is 7, its max_tiles 6"),
    "fewest tokens above most": (changed(PICTURES, min_image_tokens=17), r"min_image_tokens is 17"),
    "no thumbnail": (changed(PICTURES, use_thumbnail=False), r"use_thumbnail is false"),
    "a filter of nobody": (changed(PICTURES, resample=0), r"checkpoint\.processor.*nearest"),
    "more tiles than names": (changed(PICTURES, max_tiles=9), r"has no token <\|img_row_"),
    "no special tokens": (changed("processor_config.json", use_image_special_tokens=False), r"use_image_special"),
    "no thumbnail token": (renamed("<|img_thumbnail|>", "<|img_thumb|>"), r"no token <\|img_thumbnail\|>"),
    "another image token": (changed("config.json", image_token_id=7), r"image_token_id is 7"),
    "another activation": (changed("config.json", projector_hidden_act="relu"), r"projector_hidden_act"),
    "a table that is not square": (vision(num_patches=24), r"24 num_patches are not a square"),
    "another tower": (vision(model_type="siglip_vision_model", image_size=20), r"siglip_vision_model"),
    "more layers": (vision(num_hidden_layers=4), r"layers\.3"),
    "a number of nobody": (changed(PICTURES, max_tiles=1000), r"max_tiles is 1000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    change, expected = REFUSED[case]
    directory = save_naflex(tmp_path / "checkpoint")
    change(directory)
    with pytest.raises(HvlcError) as error:
        exported(directory)
    assert re.search(expected, str(error.value), re.DOTALL), error.value
