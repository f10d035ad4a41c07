"""Documents as Qwen's own image processor cuts them: patches in squares that merge, and the characters under them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

import torch
from transformers import Qwen2VLImageProcessorPil

from hvlc.training.reading import Page, one_of, patch_targets
from hvlc.training.smolvlm_pages import random_part
from hvlc.zoo.documents import Document
from hvlc.zoo.editions import Edition


def page(document: Document, processor: Qwen2VLImageProcessorPil) -> Page:
    """Page of a document as the image processor makes it, with targets; `grid` counts visual tokens.

    The processor stretches a document to whole squares, so a character's width and height grow by factors of their own.
    """
    cut = processor(images=[document.image], return_tensors="pt")
    _, rows, columns = cut["image_grid_thw"][0].tolist()
    patch, merge = processor.patch_size, processor.merge_size
    scale = (columns * patch / document.image.width, rows * patch / document.image.height)
    raster = torch.from_numpy(patch_targets(document.glyphs, scale, (0.0, 0.0), (rows, columns), patch))
    squares = raster.unflatten(1, (columns // merge, merge)).unflatten(0, (rows // merge, merge)).transpose(1, 2)
    return Page(cut["pixel_values"], squares.flatten(0, 3), (rows // merge, columns // merge))


def shrunk(document: Document, scale: float) -> Document:
    """A document made smaller, as the resolution compressor will ask for."""
    if scale >= 1:
        return document
    size = (max(1, int(document.image.width * scale)), max(1, int(document.image.height * scale)))
    factor = (size[0] / document.image.width, size[1] / document.image.height)
    glyphs = [
        dataclasses.replace(g, x0=g.x0 * factor[0], x1=g.x1 * factor[0], y0=g.y0 * factor[1], y1=g.y1 * factor[1])
        for g in document.glyphs
    ]
    return dataclasses.replace(document, image=document.image.resize(size), glyphs=tuple(glyphs))


def read_pages(
    seed: str, processor: Qwen2VLImageProcessorPil, patches: int, editions: Sequence[Edition], sheets: float = 0.6
) -> Iterator[list[Page]]:
    """Endless batches of pages with at most so many patches together.

    Args:
        seed: chooses documents, parts and the order.
        processor: the checkpoint's image processor.
        patches: of a batch.
        editions: one of them is drawn from each time.
        sheets: share of parts of pages full of text, which teach more per pixel than documents.
    """
    rng = random.Random(seed)
    while True:
        batch: list[Page] = []
        left = patches
        while left > 0:
            index, edition = rng.getrandbits(40), one_of(editions, rng)
            is_sheet = rng.random() < sheets
            drawn = (
                random_part(edition.render_sheet("train", index), rng) if is_sheet else edition.render("train", index)
            )
            seen = page(drawn, processor)
            left -= len(seen.tiles)
            batch.append(seen)
        yield batch
