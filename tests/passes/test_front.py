"""The front graph cuts images as the processor does, and asks the compressor as the model does."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvlc.export import export_bundle
from hvlc.graphs.bundle import Bundle
from hvlc.models.hypervl import HyperVLForConditionalGeneration, HyperVLImageProcessor
from hvlc.models.hypervl.modeling import stitch
from hvlc.passes.lists import structural_passes
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from tests.helpers.facts import IMAGE, ROW
from tests.helpers.sessions import OPTIMIZATIONS, session
from tests.helpers.tiny import CELL, HIDDEN, PROXY, TILE, picture
from tests.helpers.tolerances import PIXELS, PIXELS_EXTREME


class Front(NamedTuple):
    sessions: dict[str, ort.InferenceSession]
    stitch: ort.InferenceSession
    model: HyperVLForConditionalGeneration
    processor: HyperVLImageProcessor

    def run(self, image, scale: float, bound: int, optimization: str = "as written") -> tuple[np.ndarray, list, float]:
        feeds = {
            "image": np.asarray(image),
            "scale": np.array([scale], np.float32),
            "max_visual_tokens": np.array([bound], np.int64),
        }
        outputs = ["pixel_values", "image_ids", "grid", "used_scale"]
        tiles, ids, grid, used = self.sessions[optimization].run(outputs, feeds)
        assert ids.tolist() == ([IMAGE] * int(grid[1]) + [ROW]) * int(grid[0])
        return tiles, grid.tolist(), used[0]

    def predicted(self, image) -> float:
        return float(self.model.predict_scale(**self.processor.proxies([image]))[0])


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path) -> Bundle:
    bundle = export_bundle(Checkpoint.open(tiny_checkpoint))
    for step in structural_passes(bundle.facts, load_target("cpu")):
        step.run(bundle)
    return bundle


@pytest.fixture(scope="module")
def front(bundle: Bundle, tiny_checkpoint: Path) -> Front:
    model = bundle.components["front"].model
    sessions = {name: session(model, name) for name in OPTIMIZATIONS}
    torch_model = HyperVLForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    processor = HyperVLImageProcessor(TILE, CELL, PROXY)
    return Front(sessions, session(bundle.components["stitch"].model), torch_model, processor)


sides = st.one_of(st.integers(1, 40), st.integers(1, 400))
scales = st.one_of(st.sampled_from([n / 20 for n in range(2, 21)]), st.floats(0.125, 1, width=32))


@given(sides, sides, scales, st.one_of(st.integers(1, 20), st.integers(1, 2000)), st.sampled_from(list(OPTIMIZATIONS)))
@example(1, 1, 1.0, 1, "optimized")
@example(10_000, 50, 1.0, 200, "as written")
@example(50, 10_000, 0.35, 7, "optimized")
@example(150, 100, 0.29, 4096, "as written")
@settings(max_examples=150)
def test_tiles_and_grids_are_those_of_the_processor(front, h: int, w: int, scale: float, bound: int, optimization: str):
    image = picture(h, w)
    tiles, grid, _ = front.run(image, scale, bound, optimization)
    expected, expected_grid = front.processor.tiles(image, scale, bound)
    assert grid == list(expected_grid)
    assert grid[0] * grid[1] <= bound
    assert tiles.shape == tuple(expected.shape)
    assert np.abs(tiles - expected.numpy()).max() <= (PIXELS if max(h, w) <= 400 else PIXELS_EXTREME)


@pytest.mark.parametrize("size", [(100, 20), (40, 1)])
def test_images_that_become_one_pixel_wide(front, size: tuple[int, int]) -> None:
    """torch's own antialiased resize is wrong there."""
    tiles, _, _ = front.run(picture(*size), 0.05, 100)
    assert np.abs(tiles - front.processor.tiles(picture(*size), 0.05, 100)[0].numpy()).max() <= PIXELS


@given(sides, sides)
@example(1, 1)
@example(10_000, 50)
@settings(max_examples=40)
def test_a_scale_of_zero_asks_the_compressor(front, h: int, w: int) -> None:
    image = picture(h, w)
    _, grid, used = front.run(image, 0.0, 100_000)
    assert used == pytest.approx(front.predicted(image), abs=1e-6)
    assert grid == list(front.processor.tiles(image, front.predicted(image), 100_000)[1])


def test_the_compressor_answers_with_more_than_one_scale(front) -> None:
    """Otherwise the equality above would show little."""
    assert len({front.predicted(picture(side, side, side)) for side in (20, 60, 120, 200, 400)}) > 2


@pytest.mark.parametrize("scale", [0.1, 0.35, 1.0])
def test_a_given_scale_bypasses_the_compressor(front, scale: float) -> None:
    image = picture(150, 120)
    assert front.predicted(image) != pytest.approx(scale)
    assert front.run(image, scale, 4096)[2] == np.float32(scale)


def test_the_bound_holds_for_predicted_scales_too(front) -> None:
    _, grid, _ = front.run(picture(300, 300), 0.0, 3)
    assert grid[0] * grid[1] <= 3


@given(st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40)
def test_the_stitch_graph_is_the_models_stitch(front, rows: int, columns: int) -> None:
    side = TILE // CELL
    tiles = -(-rows // side) * -(-columns // side)
    features = torch.randn(tiles, side * side, HIDDEN)
    (stitched,) = front.stitch.run(
        None, {"tile_features": features.numpy(), "grid": np.array([rows, columns], np.int64)}
    )
    np.testing.assert_array_equal(stitched, stitch(features, torch.tensor([[rows, columns]])))
