"""Pieces of two shapes are those of LFM2-VL's image processor, and ids those of its prompts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hvlc.imaging.naflex_tiles import NaflexTiles, TileTokens
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from hvlc.models.lfm2_vl import Lfm2VlImageProcessorPil, Lfm2VlImageTextProcessor
from tests.helpers.sessions import session
from tests.helpers.tiny import picture
from tests.imaging.tokens import byte_tokenizer

PATCH, CELL, TILE = 4, 8, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
WORDS = byte_tokenizer(["<image>", "<|image_start|>", "<|img_thumbnail|>", "<|image_end|>", *NAMES])
#: Most tiles and tokens, fewest of both, and tolerance: as released, no tiles, one grid, a tight range.
SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {"min_tiles": 2, "max_tiles": 10, "min_image_tokens": 4, "max_image_tokens": 16},
    "whole": {
        "min_tiles": 2, "max_tiles": 10, "min_image_tokens": 4, "max_image_tokens": 16, "do_image_splitting": False
    },
    "two tiles": {"min_tiles": 2, "max_tiles": 2, "min_image_tokens": 1, "max_image_tokens": 9},
    "tight": {
        "min_tiles": 4, "max_tiles": 7, "min_image_tokens": 12, "max_image_tokens": 13, "max_pixels_tolerance": 1.5
    },
}  # fmt: skip


def processor(**changes: Any) -> Lfm2VlImageProcessorPil:
    return Lfm2VlImageProcessorPil(tile_size=TILE, encoder_patch_size=PATCH, image_mean=MEAN, image_std=STD, **changes)


def rule(min_tiles: int, max_tiles: int, min_image_tokens: int, max_image_tokens: int, **more: Any) -> NaflexTiles:
    image, start, thumbnail, end = WORDS.convert_tokens_to_ids(
        ["<image>", "<|image_start|>", "<|img_thumbnail|>", "<|image_end|>"]
    )
    ids = WORDS.convert_tokens_to_ids(NAMES)
    table = tuple(tuple(ids[row * 10 : row * 10 + 10]) for row in range(10))
    return NaflexTiles(
        tile_size=TILE,
        min_tiles=min_tiles,
        max_tiles=max_tiles if more.get("do_image_splitting", True) else 1,
        cell_size=CELL,
        patch_size=PATCH,
        min_tokens=min_image_tokens,
        max_tokens=max_image_tokens,
        tolerance=more.get("max_pixels_tolerance", 2.0),
        resampling=Resampling("bilinear", width_first=True, short_weights=True),
        normalization=Normalization(MEAN, STD, fused=True),
        tokens=TileTokens(image, (start,), table, (thumbnail,), (end,)),
    )


class Front:
    """The front graph of a rule, and everything that it gives."""

    def __init__(self, given: NaflexTiles, optimization: str = "optimized") -> None:
        self.rule, self.session = given, session(given.front(), optimization)

    def run(self, image: Image.Image, scale: float = 1.0, bound: int | None = None) -> dict[str, np.ndarray]:
        limit = np.array([bound or self.rule.most_visual_tokens], np.int64)
        feeds = {"image": np.asarray(image), "scale": np.array([scale], np.float32), "max_visual_tokens": limit}
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, feeds), strict=True))


FRONTS = {name: Front(rule(**given)) for name, given in SETTINGS.items()}


def pieces(image: Image.Image, **changes: Any) -> list[np.ndarray]:
    """float32 `[3, h, w]`: the processor's patches, put together again."""
    found = processor(**changes)([image], return_tensors="np")
    made = []
    for patches, (rows, columns) in zip(found["pixel_values"], found["spatial_shapes"].tolist(), strict=True):
        squares = patches[: rows * columns].reshape(rows, columns, PATCH, PATCH, 3)
        made.append(squares.transpose(4, 0, 2, 1, 3).reshape(3, rows * PATCH, columns * PATCH))
    return made


def assert_pieces(seen: dict[str, np.ndarray], expected: list[np.ndarray]) -> None:
    found = [*seen["pixel_values"], *seen["overview"]]
    assert [piece.shape for piece in found] == [piece.shape for piece in expected]
    for piece, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(piece, other)


sides = st.one_of(st.integers(1, 40), st.integers(1, 200))
names = st.sampled_from(list(SETTINGS))


@given(sides, sides, names)
@example(1, 1, "usual")
@example(45, 45, "usual")  # as large as an image may be that is not cut
@example(46, 46, "usual")
@example(64, 64, "usual")
@example(36, 100, "usual")  # halves are rounded to even
@example(28, 12, "usual")
@example(20, 200, "usual")
@example(200, 20, "usual")
@example(50, 40, "two tiles")  # equally far from both grids: 1.25 between 0.5 and 2
@example(40, 50, "two tiles")
@example(150, 120, "two tiles")
@example(120, 150, "two tiles")
@settings(max_examples=100, deadline=None)
def test_pixels_are_those_of_the_processor(h: int, w: int, name: str) -> None:
    image = picture(h, w)
    assert_pieces(FRONTS[name].run(image), pieces(image, **SETTINGS[name]))


@pytest.mark.parametrize("size", [(10, 10), (45, 45), (60, 60), (20, 190), (190, 33), (64, 128)])
@pytest.mark.parametrize("name", SETTINGS)
def test_ids_are_those_of_the_prompts(size: tuple[int, int], name: str) -> None:
    image = picture(*size)
    whole = Lfm2VlImageTextProcessor(processor(**SETTINGS[name]), WORDS)
    expected = whole(images=[image], text=["a<image>b"], return_tensors="np")
    seen = Front(rule(**SETTINGS[name]), "as written").run(image)
    before, after = WORDS.convert_tokens_to_ids(["a", "b"])
    assert [before, *seen["image_ids"].tolist(), after] == expected["input_ids"][0].tolist()


@given(sides, sides, names, st.integers(1, 200), st.floats(0.0625, 1, width=32))
@example(100, 100, "usual", 200, 1.0)
@example(100, 100, "usual", 48, 1.0)
@example(100, 100, "usual", 47, 1.0)
@example(100, 100, "usual", 15, 1.0)
@example(100, 100, "usual", 3, 1.0)
@example(100, 100, "usual", 200, 0.5)
@example(100, 100, "usual", 200, 0.25)
@example(10, 180, "usual", 5, 1.0)
@settings(max_examples=150, deadline=None)
def test_bound_and_scale_lower_tiles_then_tokens(h: int, w: int, name: str, bound: int, scale: float) -> None:
    front, given, image = FRONTS[name], SETTINGS[name], picture(h, w)
    seen, full = front.run(image, scale, bound), front.run(image)
    image_token, tile_tokens = front.rule.tokens.image, (TILE // CELL) ** 2
    made, whole = (int((found["image_ids"] == image_token).sum()) for found in (seen, full))
    assert made == len(seen["pixel_values"]) * tile_tokens + seen["overview"][0, 0].size // CELL**2
    assert made <= bound
    asked = max(int(whole * float(np.float32(scale)) ** 2), min(whole, given["min_image_tokens"]))
    budget, beside = min(asked, bound), full["overview"][0, 0].size // CELL**2
    room = (budget - beside) // tile_tokens
    if len(full["pixel_values"]) and room >= given["min_tiles"]:
        expected = pieces(image, **given | {"max_tiles": min(room, given["max_tiles"])})
        assert_pieces(seen, expected)
    else:
        most = given["max_image_tokens"] if budget >= beside else budget
        fewest = min(given["min_image_tokens"], most)
        alone = {"do_image_splitting": False, "max_image_tokens": most, "min_image_tokens": fewest}
        expected = pieces(image, **given | alone)
        if sum(piece[0].size // CELL**2 for piece in expected) <= bound:  # else a side is one cell already, and cut
            assert_pieces(seen, expected)
    assert seen["used_scale"][0] <= np.float32(scale)
    assert seen["used_scale"][0] == np.float32(scale) or bound < asked or made > bound


def test_the_default_bound_restricts_no_usual_image() -> None:
    for name, front in FRONTS.items():
        most = 0
        for h, w in [(200, 1), (1, 200), (199, 199), (30, 300), (46, 46), (100, 100), (160, 64)]:
            seen = front.run(picture(h, w))
            most = max(most, int((seen["image_ids"] == front.rule.tokens.image).sum()))
        assert most <= front.rule.most_visual_tokens, name
    assert FRONTS["usual"].rule.has_overview
    assert FRONTS["usual"].rule.piece_shape == (TILE, TILE)
    assert FRONTS["usual"].rule.tokens_per_piece == 16
    assert (FRONTS["usual"].rule.pieces(2, 3), FRONTS["usual"].rule.pieces(1, 1)) == (6, 0)
