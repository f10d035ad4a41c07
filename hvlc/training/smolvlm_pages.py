"""Documents as SmolVLM's own processor cuts them: tiles, an overview, and the characters under the tiles' patches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import torch
from PIL import Image
from transformers import SmolVLMImageProcessorPil

from hvlc.training.answering import IGNORED
from hvlc.training.reading import Page, patch_targets, to_tiles
from hvlc.zoo.documents import Document, Glyph, render, render_sheet

#: Sides of the parts that are cut out of sheets, in pixels: those of most documents.
PARTS = (70, 200)

#: Parts of one sheet; drawing a sheet costs as much as reading several.
PARTS_PER_SHEET = 4


def page(document: Document, processor: SmolVLMImageProcessorPil, patch: int) -> Page:
    """Page of a document as the image processor makes it, with targets; the overview, too small to read, has none.

    The processor stretches a document to whole tiles, so a character's width and height grow by factors of their own.
    """
    cut = processor(images=[document.image], return_row_col_info=True, return_tensors="pt")
    tiles, rows, columns = cut["pixel_values"][0], cut["rows"][0][0], cut["cols"][0][0]
    side = tiles.shape[-1]
    scale = (columns * side / document.image.width, rows * side / document.image.height)
    shape = (rows * side // patch, columns * side // patch)
    raster = to_tiles(patch_targets(document.glyphs, scale, (0.0, 0.0), shape, patch), side // patch)
    targets = torch.full((len(tiles), *raster.shape[1:]), IGNORED)
    targets[: len(raster)] = torch.from_numpy(raster)
    return Page(tiles, targets, (rows, columns))


def part(document: Document, box: tuple[int, int, int, int]) -> Document:
    """The part of a document within `box` (left, top, right, bottom, in pixels), with the characters that reach in."""
    left, top, right, bottom = box
    glyphs = [
        Glyph(g.char, g.x0 - left, g.y0 - top, g.x1 - left, g.y1 - top)
        for g in document.glyphs
        if g.x1 > left and g.x0 < right and g.y1 > top and g.y0 < bottom
    ]
    image: Image.Image = document.image.crop(box)
    return dataclasses.replace(document, image=image, glyphs=tuple(glyphs))


def random_part(document: Document, rng: random.Random) -> Document:
    """A part of the size of most documents at a random place."""
    width, height = (min(extent, rng.randint(*PARTS)) for extent in document.image.size)
    left, top = rng.randint(0, document.image.width - width), rng.randint(0, document.image.height - height)
    return part(document, (left, top, left + width, top + height))


def read_tiles(
    seed: str, processor: SmolVLMImageProcessorPil, patch: int, count: int, sheets: float = 0.6
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of `count` tiles with targets: float32 `[count, 3, T, T]`, int64 `[count, patches, points]`.

    Args:
        seed: chooses documents, parts and the order.
        processor: the checkpoint's image processor.
        patch: side of a patch in pixels.
        count: tiles in a batch.
        sheets: share of parts of pages full of text, which teach more per pixel than documents.
    """
    rng = random.Random(seed)
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
    while True:
        while len(waiting) < 4 * count:
            index = rng.getrandbits(40)
            if rng.random() < sheets / (sheets + PARTS_PER_SHEET * (1 - sheets)):
                sheet = render_sheet("train", index)
                seen = [random_part(sheet, rng) for _ in range(PARTS_PER_SHEET)]
            else:
                seen = [render("train", index)]
            for document in seen:
                cut = page(document, processor, patch)
                waiting += list(zip(cut.tiles, cut.targets, strict=True))[:-1]  # without the overview
        rng.shuffle(waiting)
        chosen, waiting = waiting[:count], waiting[count:]
        yield torch.stack([tiles for tiles, _ in chosen]), torch.stack([targets for _, targets in chosen])
