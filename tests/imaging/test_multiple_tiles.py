"""Multiple tiles are those of SmolVLM's and Idefics3's processors, pixel for pixel and token for token."""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm import image_processing_pil_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from hvlc.errors import UserError
from hvlc.imaging import multiple_tiles
from hvlc.imaging.multiple_tiles import MultipleTiles, OverviewTokens
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from tests.helpers.tiny import picture
from tests.imaging.fronts import Front, Seen
from tests.imaging.tokens import byte_tokenizer

TILE, TOKENS, MOST = 16, 3, 7
AROUND, PLACEHOLDER, OVERVIEW = "<fake_token_around_image>", "<image>", "<global-img>"
NAMES = [[f"<row_{row + 1}_col_{column + 1}>" for column in range(MOST)] for row in range(MOST)]
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def tokenizer(merge: bool) -> PreTrainedTokenizerFast:
    return byte_tokenizer([AROUND, PLACEHOLDER, OVERVIEW, *chain.from_iterable(NAMES)], newlines_merge=merge)


def rule(edge: int, *, tile: int = TILE, merge: bool = True, is_split: bool = True) -> MultipleTiles:
    words = tokenizer(merge)

    def encoded(text: str) -> tuple[int, ...]:
        return tuple(words.encode(text, add_special_tokens=False))

    names = tuple(tuple(words.convert_tokens_to_ids(row)) for row in NAMES)
    (image,) = encoded(PLACEHOLDER)
    tokens = OverviewTokens(image, encoded(AROUND), encoded(OVERVIEW), names, encoded("\n"), encoded("\n\n"))
    return MultipleTiles(tile, edge, TOKENS, Resampling("lanczos"), Normalization(MEAN, STD), tokens, is_split)


def settings_of(edge: int, tile: int, is_split: bool) -> dict[str, Any]:
    sizes = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": tile}}
    return {**sizes, "image_mean": MEAN, "image_std": STD, "do_image_splitting": is_split}


def smolvlms(image: Image.Image, edge: int, *, tile: int = TILE, merge: bool = True, is_split: bool = True) -> Seen:
    """What SmolVLM's processor makes of an image; its own class wants packages for videos."""
    found = SmolVLMImageProcessorPil(**settings_of(edge, tile, is_split))(
        [image], return_tensors="np", return_row_col_info=True
    )
    rows, columns = found["rows"][0][0], found["cols"][0][0]
    prompt = get_image_prompt_string(rows, columns, TOKENS, AROUND, PLACEHOLDER, OVERVIEW)
    ids = tokenizer(merge).encode(prompt, add_special_tokens=False)
    return Seen(found["pixel_values"][0], ids, [max(rows, 1), max(columns, 1)], np.float32(1))


def assert_same(seen: Seen, expected: Seen) -> None:
    assert seen.grid == expected.grid
    assert seen.image_ids == expected.image_ids
    np.testing.assert_array_equal(seen.pixel_values, expected.pixel_values)


#: Longest edges: of one tile, not of whole tiles, odd, and of whole tiles.
FRONTS = {edge: Front(rule(edge)) for edge in (TILE, 50, 75, 4 * TILE)}
sides = st.one_of(st.integers(1, 20), st.integers(1, 200))


@given(sides, sides, st.sampled_from(list(FRONTS)))
@example(1, 1, 64)
@example(64, 64, 64)  # exact
@example(65, 64, 64)
@example(32, 64, 64)
@example(33, 64, 64)
@example(3, 1500, 64)
@example(1500, 1, 64)
@example(75, 75, 75)  # the other side of an odd square is rounded up beyond it
@example(3, 4, 64)  # larger
@settings(max_examples=100)
def test_images_are_those_of_smolvlm(h: int, w: int, edge: int) -> None:
    image = picture(h, w)
    assert_same(FRONTS[edge].run(image), smolvlms(image, edge))


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("is_split", [True, False])
def test_images_and_ids_are_those_of_idefics3(merge: bool, is_split: bool) -> None:
    """Idefics3's processor is asked whole, within a prompt."""
    front = Front(rule(50, merge=merge, is_split=is_split), "as written")
    images = Idefics3ImageProcessorPil(**settings_of(50, TILE, is_split))
    processor = Idefics3Processor(images, tokenizer(merge), image_seq_len=TOKENS)
    for h, w in [(1, 1), (20, 90), (90, 20), (100, 100), (16, 16), (7, 300)]:
        image = picture(h, w)
        expected = processor(images=[image], text=f"a{PLACEHOLDER}b", return_tensors="np")
        seen = front.run(image)
        before, after = processor.tokenizer.convert_tokens_to_ids(["a", "b"])
        assert [before, *seen.image_ids, after] == expected["input_ids"][0].tolist()
        np.testing.assert_array_equal(seen.pixel_values, expected["pixel_values"][0])


@pytest.mark.parametrize("edge", [48, 60, 77])
def test_no_side_is_longer_than_the_processors_bound(monkeypatch: pytest.MonkeyPatch, edge: int) -> None:
    monkeypatch.setattr(multiple_tiles, "_MOST_PIXELS", 48)
    monkeypatch.setattr(image_processing_pil_smolvlm, "MAX_IMAGE_SIZE", 48)
    front = Front(rule(edge))
    for h, w in [(40, 30), (30, 40), (3, 50), (41, 41), (50, 3), (1, 1)]:
        image = picture(h, w)
        for scale in (1.0, 0.75, 0.3125):
            assert_same(front.run(image, scale), smolvlms(image, int(edge * scale)))


def test_that_bound_is_the_processors() -> None:
    image = picture(10, 300)
    assert_same(Front(rule(4500, tile=1024)).run(image), smolvlms(image, 4500, tile=1024))


@given(sides, sides, st.sampled_from(list(FRONTS)), st.floats(0.015625, 1, width=32))
@example(100, 100, 64, 0.25)
@settings(max_examples=60)
def test_a_scale_multiplies_the_longest_edge(h: int, w: int, edge: int, scale: float) -> None:
    image = picture(h, w)
    seen = FRONTS[edge].run(image, scale)
    assert seen.used_scale == np.float32(scale)
    assert_same(seen, smolvlms(image, max(1, int(edge * scale))))


@given(sides, sides, st.sampled_from(list(FRONTS)), st.integers(1, 20 * TOKENS), st.sampled_from([1.0, 0.6, 0.3]))
@example(100, 100, 64, 1, 1.0)
@example(100, 100, 64, 5 * TOKENS, 1.0)
@example(100, 100, 64, 5 * TOKENS - 1, 1.0)
@settings(max_examples=100)
def test_the_bound_is_kept_by_the_largest_edge_that_keeps_it(h: int, w: int, edge: int, bound: int, scale: float):
    front, image = FRONTS[edge], picture(h, w)
    seen = front.run(image, scale, bound)
    tokens = seen.image_ids.count(front.rule.tokens.image)
    assert tokens == len(seen.pixel_values) * TOKENS
    assert tokens <= max(bound, TOKENS)  # below a tile nothing can be kept: one tile is the smallest form
    asked = max(1, int(edge * np.float32(scale)))
    used = round(float(seen.used_scale) * edge) if seen.used_scale != np.float32(scale) else asked
    assert_same(seen, smolvlms(image, used))
    for larger in [asked, *range(used // TILE * TILE + TILE, asked, TILE)] if used < asked else []:
        assert len(smolvlms(image, larger).pixel_values) * TOKENS > bound


@pytest.mark.parametrize("tile", [7, 16])
def test_a_tile_is_left_at_the_smallest_bound(tile: int) -> None:
    """Odd tiles too, whose square the processor would make four tiles of."""
    front = Front(rule(3 * tile, tile=tile))
    for h, w in [(100, 100), (30, 100), (100, 30)]:
        seen = front.run(picture(h, w), bound=1)
        assert seen.pixel_values.shape == (1, 3, tile, tile)


def test_an_unsplit_image_ignores_scale_and_bound_and_says_so() -> None:
    whole = rule(50, is_split=False)
    assert {name for name, _ in whole.ignores} == {"scale", "max_visual_tokens"}
    assert rule(50).ignores == ()
    image = picture(60, 80)
    seen = Front(whole).run(image, 0.5, 1)
    assert_same(seen, smolvlms(image, 50, is_split=False))
    assert seen.used_scale == 1


@pytest.mark.parametrize(("edge", "tiles"), [(TILE, 1), (50, 17), (64, 17), (65, 26)])
def test_the_default_bound_restricts_no_image(edge: int, tiles: int) -> None:
    assert rule(edge).most_visual_tokens == tiles * TOKENS
    assert rule(edge, is_split=False).most_visual_tokens == TOKENS
    assert rule(edge).piece_shape == (TILE, TILE)
    assert rule(edge).tokens_per_piece == TOKENS


@pytest.mark.parametrize("table", [(), ((1,) * 9,), ((1,) * 3,) * 9])
def test_names_of_too_few_tiles_are_refused(table: tuple[tuple[int, ...], ...]) -> None:
    good = rule(4 * TILE)
    with pytest.raises(UserError, match="4 rows and columns"):
        replace(good, tokens=replace(good.tokens, row_column=table))
    replace(good, tokens=replace(good.tokens, row_column=table), is_split=False)
