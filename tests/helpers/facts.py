"""Facts of a bundle for tests: what a test does not name has the size of the tiny checkpoint (`tests.helpers.tiny`)."""

from dataclasses import replace
from typing import Any

from hvlc.graphs.facts import CompressorFacts, Facts, ImageFacts, Kind, TextFacts, TowerFacts
from hvlc.imaging.raster_tiles import RasterTiles
from hvlc.imaging.rule import Normalization
from hvlc.training.tokenizer import VOCABULARY_SIZE, special_token_id
from tests.helpers.tiny import CELL, CONTEXT, HIDDEN, PATCH, PROXY, TILE

IMAGE, ROW = special_token_id("<|image_pad|>"), special_token_id("<|vision_pad|>")
START, END = special_token_id("<|vision_start|>"), special_token_id("<|vision_end|>")
MIDDLE = (0.5, 0.5, 0.5)


def text_facts(**changes: Any) -> TextFacts:
    """Facts of a language model."""
    usual = TextFacts(
        hidden_size=HIDDEN,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=16,
        vocab_size=VOCABULARY_SIZE,
        context_length=CONTEXT,
        trained_context_length=CONTEXT,
        eos_token_id=special_token_id("<|im_end|>"),
        bos_token_id=None,
        pad_token_id=None,
    )
    return replace(usual, **changes)


def raster_tiles(**changes: Any) -> RasterTiles:
    """A rule of tiles."""
    return replace(RasterTiles(TILE, CELL, Normalization(MIDDLE, MIDDLE), IMAGE, ROW, max_visual_tokens=200), **changes)


def image_facts(**changes: Any) -> ImageFacts:
    """Facts of a vision half with two encoders and a compressor."""
    rule = changes.get("rule", raster_tiles())
    usual = ImageFacts(
        rule=rule,
        image_token_id=IMAGE,
        placeholder_id=IMAGE,
        start_token_id=START,
        special_ids=frozenset({IMAGE, ROW, START, END}),
        max_visual_tokens=rule.most_visual_tokens,
        encoders=("base", "large"),
        default_encoder="base",
        compressor=CompressorFacts(proxy_size=PROXY, min_scale=0.1, scale_step=0.1, mean=MIDDLE, std=MIDDLE),
    )
    return replace(usual, **changes)


def tower_facts(**changes: Any) -> TowerFacts:
    """Facts of a vision tower alone, whose processor was not saved."""
    usual = TowerFacts(
        HIDDEN, image_size=TILE, patch_size=PATCH, mean=None, std=None, rescale_factor=None, resample=None
    )
    return replace(usual, **changes)


def facts_of(kind: Kind) -> Facts:
    """Facts of a model of a kind."""
    if kind is Kind.VISION:
        return Facts(tower=tower_facts())
    return Facts(text=text_facts(), image=image_facts() if kind is Kind.VISION_LANGUAGE else None)
