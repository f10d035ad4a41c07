"""Teaches a vision tower to read: the character under every patch.

A small model that is only asked questions stays at chance for a very long time. A dense target
on the encoder's output, which the renderer knows, teaches reading within minutes; transcription
and answers build on it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvlc.models.hypervl.processing import HyperVLImageProcessor, scaled_size
from hvlc.zoo.documents import Document, Glyph
from hvlc.zoo.editions import NARROW, Edition

#: Points along a patch, in patch widths, whose character is the target.
POINTS = (0.25, 0.75)

#: Blank, then the printable ASCII characters after the space.
CLASSES = 1 + 94

#: Weight of blank points in the loss: most of a page is blank.
BLANK_WEIGHT = 0.1

#: Drawing costs as much as a third of an update; each drawn page is used this often.
WINDOWS_PER_PAGE = 3

#: Text is never shrunk below this many pixels per em.
SMALLEST_TEXT = 9.0


@dataclass(frozen=True)
class Page:
    """An image at the size the tower sees, with its targets.

    Attributes:
        tiles: float32 `[n, 3, T, T]`, normalized.
        targets: int64 `[n, patches, len(POINTS)]`, 0 for blank, else the character's code - 32.
        grid: Rows and columns of cells.
        scale: Per side, at which it is seen.
    """

    tiles: torch.Tensor
    targets: torch.Tensor
    grid: tuple[int, int]
    scale: float = 1.0


class ReadingHead(nn.Module):
    """From patch features to the characters at `POINTS`; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(POINTS) * CLASSES)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """float `[..., width]` to float `[..., len(POINTS), CLASSES]`."""
        return self.linear(patches).unflatten(-1, (len(POINTS), CLASSES))


def reading_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the characters with blank points weighted by `BLANK_WEIGHT`."""
    weight = torch.ones(CLASSES)
    weight[0] = BLANK_WEIGHT
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), weight=weight)


def patch_targets(
    glyphs: Sequence[Glyph],
    scale: tuple[float, float],
    offset: tuple[float, float],
    shape: tuple[int, int],
    patch: int,
) -> np.ndarray:
    """The character under each point.

    A patch takes a character's class when its row shares at least 3 pixels, or half of the
    character's height, with the character's box, and the point lies between its sides.

    Args:
        glyphs: Boxes in pixels of the original image.
        scale: Factors from the original to the image that is seen, of x and of y.
        offset: x and y of the seen window in the scaled image, in pixels.
        shape: Rows and columns of patches in the window.
        patch: Side of a patch in pixels.

    Returns:
        int64 `[rows, columns, len(POINTS)]`.
    """
    rows, columns = shape
    targets = np.zeros((rows, columns * len(POINTS)), np.int64)
    centres = (np.arange(columns)[:, None] + np.array(POINTS)).ravel() * patch
    edges = np.arange(rows) * patch
    for glyph in glyphs:
        x0, x1 = (x * scale[0] - offset[0] for x in (glyph.x0, glyph.x1))
        y0, y1 = (y * scale[1] - offset[1] for y in (glyph.y0, glyph.y1))
        left, right = np.searchsorted(centres, (x0, x1))
        shared = np.minimum(edges + patch, y1) - np.maximum(edges, y0)
        targets[shared >= min(3.0, (y1 - y0) / 2), left:right] = ord(glyph.char) - 32
    return targets.reshape(rows, columns, len(POINTS))


def to_tiles(raster: np.ndarray, side: int) -> np.ndarray:
    """`[down * side, across * side, ...]` to `[down * across, side * side, ...]`, tiles row-major."""
    down, across = raster.shape[0] // side, raster.shape[1] // side
    tiles = raster.reshape(down, side, across, side, *raster.shape[2:]).swapaxes(1, 2)
    return tiles.reshape(down * across, side * side, *raster.shape[2:])


def page(document: Document, scale: float, processor: HyperVLImageProcessor, patch: int) -> Page:
    """Page of a document as the product's image processor makes it, with targets."""
    tiles, grid = processor.tiles(document.image, scale)
    height, width = scaled_size(document.image.height, document.image.width, scale)
    side = processor.tile_size // patch
    shape = (-(-height // processor.tile_size) * side, -(-width // processor.tile_size) * side)
    raster = patch_targets(document.glyphs, (scale, scale), (0.0, 0.0), shape, patch)
    return Page(tiles, torch.from_numpy(to_tiles(raster, side)), grid, scale)


def window(document: Document, scale: float, rng: random.Random, processor: HyperVLImageProcessor, patch: int) -> Page:
    """One tile-sized window of a document at a random place."""
    tile = processor.tile_size
    pixels = processor.to_pixels(document.image)
    height, width = pixels.shape[-2:]
    size = scaled_size(height, width, scale)
    pixels = processor.normalize(processor.resize(pixels, *size))
    top, left = (rng.randint(0, max(0, extent - tile)) for extent in size)
    seen = pixels[..., top : top + tile, left : left + tile]
    tiles = F.pad(seen, (0, tile - seen.shape[-1], 0, tile - seen.shape[-2]))
    side = tile // patch
    targets = patch_targets(document.glyphs, (scale, scale), (left, top), (side, side), patch)
    return Page(tiles, torch.from_numpy(targets.reshape(1, side * side, -1)), (0, 0))


def one_of(editions: Sequence[Edition], rng: random.Random) -> Edition:
    """An edition by chance; where there is one, no number is drawn."""
    return editions[0] if len(editions) == 1 else rng.choice(editions)


def random_scale(document: Document, rng: random.Random, shrunk: float = 0.5) -> float:
    """A scale that keeps a text legible: 1 or, with probability `shrunk`, anything down to the smallest text.

    Of a document with several sizes it is one of them, by chance, that stays legible.
    """
    if rng.random() >= shrunk:
        return 1.0
    size = rng.choice(sorted(set(document.line_sizes))) if document.line_sizes else document.text_size
    smallest = min(1.0, SMALLEST_TEXT / size)
    return smallest ** rng.random()


def windows(
    seed: str,
    processor: HyperVLImageProcessor,
    patch: int,
    count: int,
    sheets: float = 0.6,
    editions: Sequence[Edition] = (NARROW,),
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of `count` windows: tiles `[count, 3, T, T]` and targets `[count, patches, points]`.

    Args:
        seed: Chooses documents, scales and places.
        processor: The product's image processor.
        patch: Side of a patch in pixels.
        count: Windows in a batch.
        sheets: Share of windows on pages full of text, which teach more per pixel than documents.
        editions: One of them is drawn from each time; one that stands here twice, twice as often.
    """
    rng = random.Random(seed)
    waiting: list[Page] = []
    while True:
        while len(waiting) < 4 * count:
            index, edition = rng.getrandbits(40), one_of(editions, rng)
            draw = edition.render_sheet if rng.random() < sheets else edition.render
            document = draw("train", index)
            for _ in range(WINDOWS_PER_PAGE):
                scale = random_scale(document, rng)
                waiting.append(window(document, scale, rng, processor, patch))
        rng.shuffle(waiting)
        pages, waiting = waiting[:count], waiting[count:]
        yield torch.cat([p.tiles for p in pages]), torch.cat([p.targets for p in pages])


def initialize_positions(tower: nn.Module, period: float = 100.0) -> None:
    """Start a tower's learned position embedding at two-dimensional sines and cosines.

    Neighbouring patches then look alike to attention from the first update on, and a tower finds
    the other half of a character much sooner than from random positions.
    """
    table = tower.get_submodule("embeddings.position_embedding").weight
    side, quarter = int(table.shape[0] ** 0.5), table.shape[1] // 4
    angles = torch.arange(side)[:, None] / period ** (torch.arange(quarter) / quarter)
    waves = torch.cat([angles.sin(), angles.cos()], -1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    with torch.no_grad():
        table.copy_(torch.cat([rows, columns], -1).reshape(table.shape))
