"""Images after the front graph as pictures: the tiles that an encoder would see, equal ones marked."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hvlc.runtime.tiles import piece_digests
from hvlc.runtime.vision import Seen

_SIDE = 160  # pixels of a thumbnail's longest side
_MOST = 256  # tiles that are drawn; the others are counted


@dataclass(frozen=True)
class Looked:
    """Images after the front graph.

    Attributes:
        images: of the request, in order.
        encoder: that would answer.
    """

    images: Sequence[Seen]
    encoder: str

    def told(self) -> dict[str, Any]:
        """The object of `/v1/look`: each image with its scale, grid, visual tokens and tiles."""
        return {"object": "look", "encoder": self.encoder, "images": [_image(seen) for seen in self.images]}


def _image(seen: Seen) -> dict[str, Any]:
    pieces = [piece for part in seen.parts for piece in part]
    digests = [digest for part in seen.parts for digest in piece_digests(part)]
    numbers = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
    lows, highs = _range(pieces)
    tiles = [
        {"url": _thumbnail(piece, lows, highs), "group": numbers[digest], "overview": part == len(seen.parts) - 1}
        for part, piece, digest in _drawn(seen, digests)
    ]
    if seen.overview is None:
        tiles = [{**tile, "overview": False} for tile in tiles]
    return {
        "scale": seen.scale,
        "grid": [int(side) for side in seen.grid],
        "visual_tokens": seen.visual_tokens,
        "count": seen.count,
        "distinct": len(numbers),
        "tile": [int(side) for side in pieces[0].shape[1:]],
        "tiles": tiles,
    }


def _drawn(seen: Seen, digests: Sequence[bytes]) -> list[tuple[int, np.ndarray, bytes]]:
    """Number of its part, pixels and digest of each tile that is drawn."""
    numbered = [(number, piece) for number, part in enumerate(seen.parts) for piece in part]
    return [(number, piece, digest) for (number, piece), digest in zip(numbered, digests, strict=True)][:_MOST]


def _range(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each channel, float32 `[3, 1, 1]`: what black and white were before normalization."""
    lows = np.min([piece.min(axis=(1, 2)) for piece in pieces], axis=0)[:, None, None]
    highs = np.max([piece.max(axis=(1, 2)) for piece in pieces], axis=0)[:, None, None]
    return lows, highs


def _thumbnail(piece: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> str:
    """A tile, float32 `[3, H, W]`, as a data URL of a small PNG."""
    levels = (piece - lows) / np.maximum(highs - lows, 1e-6) * 255
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0), "RGB")
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
