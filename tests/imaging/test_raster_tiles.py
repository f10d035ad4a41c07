"""Raster tiles are those of HyperVL's processor, on every size."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.arithmetic import scaled_size
from hvlc.imaging.raster_tiles import RasterTiles, capped_scale
from hvlc.imaging.rule import Normalization
from hvlc.models.hypervl import HyperVLImageProcessor, HyperVLProcessor
from hvlc.models.hypervl.processing import cap_scale
from hvlc.models.hypervl.processing import scaled_size as processors_size
from hvlc.training.tokenizer import build_nano_tokenizer
from tests.helpers.sessions import session
from tests.helpers.tiny import CELL, PROXY, TILE, picture
from tests.helpers.tolerances import PIXELS, PIXELS_EXTREME
from tests.imaging.fronts import Front

sides = st.one_of(st.integers(1, 40), st.integers(1, 400))
scales = st.one_of(st.sampled_from([n / 20 for n in range(2, 21)]), st.floats(0.125, 1, width=32))


@pytest.fixture(scope="module")
def processor() -> HyperVLProcessor:
    return HyperVLProcessor(HyperVLImageProcessor(TILE, CELL, PROXY), build_nano_tokenizer())


@pytest.fixture(scope="module")
def front(processor: HyperVLProcessor) -> Front:
    image, row = processor.tokenizer.convert_tokens_to_ids([processor.image_token, processor.row_token])
    return Front(RasterTiles(TILE, CELL, Normalization((0.5,) * 3, (0.5,) * 3), image, row))


@given(sides, sides, scales, st.one_of(st.integers(1, 20), st.integers(1, 2000)))
@example(1, 1, 1.0, 1)
@example(10_000, 50, 1.0, 200)
@example(50, 10_000, 0.35, 7)
@example(150, 100, 0.29, 4096)
@settings(max_examples=60)
def test_tiles_grid_and_ids_are_those_of_the_processor(front, processor, h: int, w: int, scale: float, bound: int):
    image = picture(h, w)
    seen = front.run(image, scale, bound)
    tiles, grid = processor.image_processor.tiles(image, scale, bound)
    assert seen.grid == list(grid)
    assert grid[0] * grid[1] <= bound
    assert seen.image_ids == processor.tokenizer(processor.placeholder(*grid))["input_ids"]
    assert seen.image_ids.count(front.rule.image_token) == grid[0] * grid[1]
    assert seen.pixel_values.shape == tuple(tiles.shape)
    assert np.abs(seen.pixel_values - tiles.numpy()).max() <= (PIXELS if max(h, w) <= 400 else PIXELS_EXTREME)


@given(st.integers(1, 20_000), st.integers(1, 20_000), scales, st.integers(1, 4096))
@settings(max_examples=150)
def test_the_scale_is_capped_to_the_same_bit_for_every_size(sizes, h: int, w: int, scale: float, bound: int) -> None:
    feeds = {
        "side": np.array([h, w], np.float32),
        "scale": np.array([scale], np.float32),
        "max_visual_tokens": np.array([bound], np.int64),
    }
    used, size = sizes.run(None, feeds)
    expected = cap_scale(h, w, scale, CELL, bound)
    assert used[0] == expected
    assert size.tolist() == list(processors_size(h, w, expected))


@pytest.fixture(scope="module")
def sizes() -> ort.InferenceSession:
    """Only the arithmetic of sizes, without pixels: any size is cheap."""
    b = GraphBuilder("sizes")
    side = b.input("side", ir.DataType.FLOAT, [2])
    scale = b.input("scale", ir.DataType.FLOAT, [1])
    limit = b.input("max_visual_tokens", ir.DataType.INT64, [1])
    used = capped_scale(b, side, scale, limit, CELL)
    size = scaled_size(b, side, used)
    b.output(used, "used", ir.DataType.FLOAT, [1])
    b.output(size, "size", ir.DataType.INT64, [2])
    return session(b.model())


def test_a_rule_says_what_a_piece_is(front: Front) -> None:
    assert front.rule.piece_shape == (TILE, TILE)
    assert front.rule.tokens_per_piece == (TILE // CELL) ** 2
    assert front.rule.ignores == ()
