"""Equal tiles are encoded once and earlier images not again, and features are the same bits either way."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from hvlc.errors import UserError
from hvlc.inputs.images import to_array
from hvlc.manifest.manifest import Manifest
from hvlc.opening.graphs import load_graph, mixes_batch
from hvlc.runtime.generation import open_model
from hvlc.runtime.settings import VisionSettings
from hvlc.runtime.tiles import FeatureCache, RequestPieces, TileCount, piece_digests
from hvlc.runtime.vision import Vision
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.helpers.commands import Hvlc
from tests.helpers.packages import changed_graph, renewed
from tests.helpers.sharing import once
from tests.helpers.tiny import TILE, picture, save_tiny
from tests.helpers.tiny_naflex import save_naflex
from tests.helpers.tiny_vision_language import save_block, save_grid, save_overview, save_pixtral, save_ratio

#: Every family's tower; `internvl_chat` has InternVL's.
SAVED: dict[str, Callable[[Path], Path]] = {
    "gemma3": save_block,
    "hypervl": save_tiny,
    "idefics3": partial(save_overview, family="idefics3"),
    "internvl": save_ratio,
    "lfm2_vl": save_naflex,
    "lighton_ocr": save_pixtral,
    "qianfan_ocr": partial(save_ratio, family="qianfan_ocr"),
    "qwen2_5_vl": partial(save_grid, family="qwen2_5_vl"),
    "qwen2_vl": partial(save_grid, family="qwen2_vl"),
    "qwen3_vl": partial(save_grid, family="qwen3_vl"),
    "smolvlm": save_overview,
}
QUICK = ("hypervl", "internvl", "lfm2_vl", "smolvlm")
PLAIN = VisionSettings(reuse_tiles=False, feature_cache=0)
NATIVE = (32, 48)  # pixels of a piece of no fixed shape


def towers() -> Iterator[Any]:
    for family in SAVED:
        for recipe in ("float32", "w4a16-rtn"):
            slow = () if family in QUICK else pytest.mark.slow
            yield pytest.param((family, recipe), id=f"{family}-{recipe}", marks=slow)


@pytest.fixture(scope="module", params=towers())
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vision:
    """The vision half of a package of a tiny checkpoint."""
    family, recipe = request.param
    saved = once(tmp_path_factory, f"tiles-{family}", lambda d: SAVED[family](d / "checkpoint"))
    made = once(
        tmp_path_factory,
        f"tiles-{family}-{recipe}",
        lambda d: build(open_request(saved, "cpu", recipe, d / "package", threads=1)).output,
    )
    return Vision(made, Manifest.load(made), threads=1)


def palette(height: int, width: int) -> np.ndarray:
    """Pieces float32 `[6, 3, h, w]`: blank ones, noise, large values, and two that differ in one value."""
    random = np.random.default_rng(0)
    pieces = random.standard_normal((6, 3, height, width)).astype(np.float32)
    pieces[0], pieces[1] = 0, 1
    pieces[2] *= 30
    pieces[4] = pieces[3]
    pieces[4, 0, 0, 0] = np.nextafter(pieces[3, 0, 0, 0], np.float32(9), dtype=np.float32)
    return pieces


@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=14), batch=st.integers(1, 9))
@settings(max_examples=30)
def test_features_are_the_same_bits_for_every_tiling_and_batch(tower: Vision, order: list[int], batch: int) -> None:
    piece = tower.images.piece or NATIVE
    session = tower._encoder_session(tower._manifest.encoder_file(next(iter(tower._manifest.encoders)), *piece))
    pieces = palette(*piece)[order]
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) else batch  # an image of its own size is one piece
    once_each, again = RequestPieces(reuse=True), RequestPieces(reuse=False)
    found = once_each.encode(session, pieces, piece_digests(pieces), batch)
    assert found.tobytes() == again.encode(session, pieces, [], batch).tobytes()
    alone = [session.run(["tile_features"], {"pixel_values": piece[None]})[0] for piece in pieces]
    assert found.tobytes() == np.concatenate(alone).tobytes()
    assert (once_each.encoded, again.encoded) == (len(set(order)), len(order))


def test_no_shipped_encoder_looks_across_its_batch(tower: Vision) -> None:
    files = set(tower._manifest.encoders.values())
    assert not any(mixes_batch(load_graph(tower._directory / file).graph) for file in files)


LONG = ((1, 1), (1, 3000), (3000, 1), (10_000, 50), (50, 10_000))
sides = st.one_of(st.integers(1, 40), st.integers(1, 200))


@given(
    st.one_of(st.sampled_from(LONG), st.tuples(sides, sides)),
    st.booleans(),
    st.one_of(st.sampled_from([1.0]), st.floats(2**-20, 1, width=32)),
    st.one_of(st.none(), st.integers(1, 40), st.integers(1, 600)),
)
@example((10_000, 50), False, 1.0, None)
@example((1, 1), True, 1.0, 1)
@settings(max_examples=12)
def test_every_size_is_answered_or_refused_with_a_reason(
    tower: Vision, size: tuple[int, int], compress: bool, scale: float, bound: int | None
) -> None:
    image = np.broadcast_to(np.arange(size[1], dtype=np.uint8)[None, :, None], (*size, 3))
    try:
        seen = tower.see(image, compress=compress, scale=scale, max_visual_tokens=bound)
    except UserError as error:
        refused = (error.code, f"and {bound} are allowed" in error.cause)
    else:
        refused = None
    if refused:
        assert refused == ("request.max_visual_tokens", True)
        return
    assert 1 <= seen.visual_tokens <= (bound or tower.images.max_visual_tokens)
    (found,) = tower.encode([seen], next(iter(tower._manifest.encoders))).features
    assert len(found) == seen.visual_tokens
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.zeros((0, 5, 3), np.uint8), "request.image"),
        (np.zeros((5, 0, 3), np.uint8), "request.image"),
        (np.zeros((5, 5), np.uint8), "request.image"),
        (np.zeros((5, 5, 4), np.uint8), "request.image"),
        (np.zeros((5, 5, 3), np.float32), "request.image"),
        (np.broadcast_to(np.zeros(3, np.uint8), (2**14, 2**14, 3)), "image.too_large"),
        (np.broadcast_to(np.zeros(3, np.uint8), (1, 2**24 + 1, 3)), "image.too_large"),
    ],
)
def test_what_is_not_an_image_or_too_large_is_refused(vision: Vision, image: np.ndarray, code: str) -> None:
    with pytest.raises(UserError) as refused:
        vision.see(image, compress=False)
    assert refused.value.code == code


class Doubling:
    """An encoder whose feature is twice the piece's first value, and which counts what it ran over."""

    file = "vision.onnx"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, names: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert names == ["tile_features"]
        self.batches.append(len(feeds["pixel_values"]))
        return [2 * feeds["pixel_values"][:, :1, 0, :1]]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=20), st.lists(st.integers(0, 4), max_size=20), st.integers(1, 5)
)
def test_each_distinct_piece_of_a_request_runs_once_in_full_batches(
    one: list[int], other: list[int], batch: int
) -> None:
    encoder, pieces = Doubling(), RequestPieces(reuse=True)
    for order in (one, other):
        given_ = np.broadcast_to(np.array(order, np.float32).reshape(-1, 1, 1, 1), (len(order), 3, 2, 2))
        if order:
            found = pieces.encode(encoder, given_, piece_digests(given_), batch)  # type: ignore[arg-type]
            assert found.ravel().tolist() == [2 * value for value in order]
    first, second = len(set(one)), len(set(other) - set(one))
    assert pieces.encoded == sum(encoder.batches) == first + second
    assert len(encoder.batches) == -(-first // batch) + -(-second // batch)


def test_pieces_of_other_shapes_with_the_same_bytes_are_not_equal() -> None:
    pieces = np.zeros((1, 3, 2, 8), np.float32)
    assert piece_digests(pieces) != piece_digests(pieces.reshape(1, 3, 4, 4))
    assert piece_digests(pieces) == piece_digests(np.asfortranarray(pieces))


@pytest.mark.parametrize("fewer", [np.zeros((1, 1, 1)), np.zeros((3, 1, 1))])
def test_an_encoder_that_gives_other_numbers_of_features_is_refused(fewer: np.ndarray) -> None:
    lying: Any = SimpleNamespace(file="vision.onnx", run=lambda *_: [fewer])
    pieces = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    with pytest.raises(UserError, match=r"package\.graph"):
        RequestPieces(reuse=True).encode(lying, pieces, piece_digests(pieces), 2)


def test_an_encoder_whose_pieces_have_different_numbers_of_features_is_refused() -> None:
    sizes = iter((1, 2))
    lying: Any = SimpleNamespace(file="vision.onnx", run=lambda *_: [np.zeros((1, next(sizes), 1))])
    pieces = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    with pytest.raises(UserError, match="different numbers of features"):
        RequestPieces(reuse=True).encode(lying, pieces, piece_digests(pieces), 1)


def seen_by(vision: Vision, *images: Any) -> list[Any]:
    return [vision.see(to_array(image), compress=False) for image in images]


def page(*tiles: int) -> Any:
    """A page of one row of tiles: 0 is blank paper, others are pictures."""
    blank = np.full((TILE, TILE, 3), 255, np.uint8)
    parts = [np.asarray(picture(TILE, TILE, tile)) if tile else blank for tile in tiles]
    return np.concatenate(parts, axis=1)


@pytest.fixture
def vision(tiny_float32: Path) -> Vision:
    return Vision(tiny_float32, Manifest.load(tiny_float32), threads=1)


def test_equal_tiles_of_all_images_of_a_request_are_encoded_once(vision: Vision, tiny_float32: Path) -> None:
    pages = page(0, 1, 0, 2), page(2, 0, 0, 3), page(1, 1)
    found = vision.encode([vision.see(one, compress=False) for one in pages], "base")
    assert found.tiles == TileCount(total=10, distinct=4, encoded=4)
    plain = Vision(tiny_float32, vision._manifest, PLAIN, threads=1)
    expected = plain.encode([plain.see(one, compress=False) for one in pages], "base")
    assert expected.tiles == TileCount(total=10, distinct=None, encoded=10)
    assert [one.tobytes() for one in found.features] == [one.tobytes() for one in expected.features]
    assert len({one.tobytes() for one in found.features}) == 3


def test_an_image_that_came_before_is_not_encoded_again(vision: Vision) -> None:
    first = vision.encode(seen_by(vision, picture(70, 50)), "base")
    again = vision.encode(seen_by(vision, picture(70, 50)), "base")
    assert again.features[0].tobytes() == first.features[0].tobytes()
    assert (first.tiles.encoded, again.tiles.encoded) == (first.tiles.total, 0)
    assert again.tiles.distinct == first.tiles.distinct
    assert (vision.cache.hits, vision.cache.misses) == (1, 1)
    with pytest.raises(ValueError, match="read-only"):
        again.features[0][:] = 0
    assert vision.encode(seen_by(vision, picture(70, 50)), "large").tiles.encoded > 0, "another encoder"
    assert vision.encode(seen_by(vision, picture(70, 50, 1)), "base").tiles.encoded > 0, "another image"


def test_equal_pieces_in_another_grid_are_another_image(vision: Vision) -> None:
    row, column = np.zeros((TILE, 2 * TILE, 3), np.uint8), np.zeros((2 * TILE, TILE, 3), np.uint8)
    encoded = [vision.encode([vision.see(one, compress=False)], "base") for one in (row, column)]
    assert (vision.cache.hits, vision.cache.misses) == (0, 2)
    assert [one.tiles for one in encoded] == [TileCount(2, 1, 1)] * 2


def test_nothing_is_kept_without_a_cache(tiny_float32: Path) -> None:
    vision = Vision(tiny_float32, Manifest.load(tiny_float32), VisionSettings(feature_cache=0), threads=1)
    encoded = [vision.encode(seen_by(vision, picture(50, 50)), "base").tiles for _ in range(2)]
    assert encoded[0] == encoded[1]
    assert (len(vision.cache), vision.cache.used) == (0, 0)


def bytes_of(size: int) -> np.ndarray:
    return np.zeros((1, size), np.uint8)


@given(st.integers(0, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_the_cache_is_the_most_recently_used_that_fit(bound: int, steps: list[tuple[bool, int]]) -> None:
    """Against a list of keys, the latest last; the image of a key has 4 bytes and some more."""
    cache, expected = FeatureCache(bound), list[int]()
    for is_put, key in steps:
        size = 4 + key * 3
        if is_put:
            cache.put("vision.onnx", bytes([key]), bytes_of(size))
            if size <= bound:
                expected = [*(kept for kept in expected if kept != key), key]
                while sum(4 + kept * 3 for kept in expected) > bound:
                    del expected[0]
        else:
            assert (cache.get("vision.onnx", bytes([key])) is not None) == (key in expected)
            if key in expected:
                expected = [*(kept for kept in expected if kept != key), key]
        assert cache.used == sum(4 + kept * 3 for kept in expected) <= bound
        assert len(cache) == len(expected)
    gets = [key for is_put, key in steps if not is_put]
    assert cache.hits + cache.misses == len(gets)


def quantized_on_the_way(model: onnx.ModelProto) -> None:
    """Features in 8 bits with one scale for all of a batch, as onnxruntime's dynamic quantization has it."""
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["exact" if name == output.name else name for name in node.output]
    names = ["levels", "level_scale", "level_zero"]
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["exact"], names))
    model.graph.node.append(helper.make_node("DequantizeLinear", names, [output.name]))


@pytest.fixture
def mixing(tiny_float32: Path, tmp_path: Path) -> Path:
    """A package whose encoder makes a tile's features depend on the other tiles of its batch."""

    copied = Path(shutil.copytree(tiny_float32, tmp_path / "package"))
    changed_graph(copied / Manifest.load(copied).encoders["base"], quantized_on_the_way)
    return renewed(copied)


@pytest.mark.parametrize("batch", [None, 1, 3, 9])
def test_encoders_that_look_across_a_batch_run_over_one_tile_at_a_time(mixing: Path, batch: int | None) -> None:
    visions = [
        Vision(mixing, Manifest.load(mixing), each, threads=1)
        for each in (VisionSettings(batch), VisionSettings(batch, False, 0), VisionSettings(1))
    ]
    found = [one.encode([one.see(page(0, 1, 0, 2, 2), compress=False)], "base").features[0] for one in visions]
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def test_such_an_encoder_would_give_other_features_in_batches(mixing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = Vision(mixing, Manifest.load(mixing), VisionSettings(4), threads=1)
    right = vision.encode([vision.see(page(0, 1, 3, 2), compress=False)], "base").features[0]
    monkeypatch.setattr("hvlc.runtime.vision.mixes_batch", lambda graph: False)
    other = Vision(mixing, Manifest.load(mixing), VisionSettings(4), threads=1)
    assert other.encode([other.see(page(0, 1, 3, 2), compress=False)], "base").features[0].tobytes() != right.tobytes()


@pytest.mark.parametrize(
    ("node", "mixes"),
    [
        (helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"]), True),
        (helper.make_node("ReduceMax", ["x"], ["y"]), True),
        (helper.make_node("ReduceMax", ["x", ""], ["y"]), True),
        (helper.make_node("ReduceMax", ["x", "axes"], ["y"]), False),
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1]), False),
        (helper.make_node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1), False),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), False),
        (helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph(
            [helper.make_node("ReduceMin", ["x"], ["y"])], "inner", [], [])), True),
    ],
)  # fmt: skip
def test_which_nodes_look_across_a_batch(node: onnx.NodeProto, mixes: bool) -> None:
    assert mixes_batch(helper.make_graph([node], "encoder", [], [])) is mixes


def test_an_answer_counts_tiles_and_is_the_same_without_reuse(hvlc: Hvlc, tiny_float32: Path, tmp_path: Path) -> None:

    Image.fromarray(page(0, 1, 0, 0)).save(tmp_path / "page.png")
    asked = ["run", tiny_float32, "--prompt", "What?", "--image", tmp_path / "page.png", "--no-vrc"]
    asked += ["--encoder", "base", "--max-new-tokens", 3]
    found = hvlc(*asked, "--json").json
    assert (found["tiles"], found["distinct_tiles"], found["encoded_tiles"]) == (4, 2, 2)
    plain = hvlc(*asked, "--no-tile-reuse", "--feature-cache", "0", "--tile-batch", 1, "--json").json
    assert (plain["tiles"], plain["distinct_tiles"], plain["encoded_tiles"]) == (4, None, 4)
    assert plain["tokens"] == found["tokens"]
    assert "4 (2 distinct, 2 encoded: 50 % saved)" in hvlc(*asked, "--verbose").err
    assert "4 (4 encoded: 0 % saved)" in hvlc(*asked, "--no-tile-reuse", "--feature-cache", "0", "-v").err


def test_a_second_chat_about_an_image_encodes_nothing(tiny_float32: Path) -> None:
    model = open_model(tiny_float32)
    asked: dict[str, Any] = {"encoder": "base", "vrc": False, "max_new_tokens": 3}
    first, again = (model.answer("What?", [picture(60, 90)], **asked) for _ in range(2))
    assert again.tokens == first.tokens
    assert (again.encoded_tiles, again.distinct_tiles) == (0, first.distinct_tiles)
    assert model.answer("What?", [], **asked).encoded_tiles == 0
