"""Sizes that are told from height and width are those of what the front graph makes of the pixels."""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvlc.graphs.facts import ImageFacts
from hvlc.imaging.raster_tiles import RasterTiles
from hvlc.imaging.rule import ImageRule
from hvlc.results.calibration_set import VisualSize
from hvlc.workflows.calibrate.sizes import measure_of
from tests.helpers.facts import image_facts, raster_tiles
from tests.imaging.fronts import Front

RULES: dict[str, ImageRule] = {
    "small tiles": raster_tiles(),
    "one cell a tile": raster_tiles(tile_size=16, cell_size=16),
    "few visual tokens": raster_tiles(max_visual_tokens=5),
    "large tiles": raster_tiles(tile_size=96, cell_size=8, max_visual_tokens=4096),
}
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 300))


front_of = cache(Front)
measure_by = cache(measure_of)


def seen(rule: ImageRule, facts: ImageFacts, height: int, width: int) -> VisualSize:
    """Sizes, counted in what the front graph makes of black pixels."""
    made = front_of(rule).run(np.zeros((height, width, 3), np.uint8), 1.0, facts.max_visual_tokens)
    pixels = int(np.prod(made.pixel_values.shape)) // made.pixel_values.shape[1]
    tokens = made.image_ids.count(facts.image_token_id)
    return VisualSize(len(made.pixel_values), tokens, len(made.image_ids), pixels)


@pytest.mark.parametrize("name", RULES)
@given(height=SIDES, width=SIDES)
@example(height=1, width=1)
@example(height=1, width=3000)
@example(height=3000, width=1)
@settings(max_examples=25)
def test_sizes_are_those_of_what_the_front_graph_makes(name: str, height: int, width: int) -> None:
    rule = RULES[name]
    facts = image_facts(rule=rule)
    assert measure_by(facts)(height, width) == seen(rule, facts, height, width)


@given(height=st.integers(1, 20_000), width=st.integers(1, 20_000))
@settings(max_examples=60)
def test_no_size_is_beyond_the_bound_of_visual_tokens(height: int, width: int) -> None:
    rule = raster_tiles()
    found = measure_by(image_facts(rule=rule))(height, width)
    assert 1 <= found.tokens <= rule.most_visual_tokens
    assert found.length > found.tokens  # each row of cells is ended by a token
    assert found.pixels == found.tiles * rule.tile_size**2
    assert found.tokens <= found.tiles * rule.tokens_per_piece


def test_the_bound_is_the_packages_and_not_the_rules() -> None:
    rule: RasterTiles = raster_tiles(max_visual_tokens=200)
    few, many = (measure_of(image_facts(rule=rule, max_visual_tokens=bound))(300, 300) for bound in (6, 200))
    assert few.tokens <= 6 < many.tokens
