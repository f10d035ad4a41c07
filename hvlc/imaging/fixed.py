"""One image of one size (Gemma 3 without pan and scan, PaliGemma): squashed to it, whatever its shape."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.pieces import normalized, planes
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, ImageRule, Normalization, Request


@dataclass(frozen=True)
class FixedImage(ImageRule):
    """The whole image as one piece.

    Attributes:
        height: of the piece in pixels.
        width: of the piece in pixels.
        image_tokens: visual tokens of an image.
        resampling: of the resize.
        normalization: of grey levels.
        before: ids before the image.
        image_token: id that stands for a feature.
        after: ids after the image.
    """

    kind: ClassVar[str] = "fixed"
    height: int
    width: int
    image_tokens: int
    resampling: Resampling
    normalization: Normalization
    before: tuple[int, ...]
    image_token: int
    after: tuple[int, ...]

    @property
    def ignores(self) -> tuple[tuple[str, str], ...]:
        reason = f"every image is resized to {self.width} x {self.height} pixels, {self.image_tokens} visual tokens"
        return ("scale", reason), ("max_visual_tokens", reason)

    @property
    def most_visual_tokens(self) -> int:
        return self.image_tokens

    @property
    def piece_shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def tokens_per_piece(self) -> int:
        return self.image_tokens

    def pieces(self, rows: int, columns: int) -> int:
        """One, whatever the grid."""
        return 1

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Resize to the one size; the scale used is 1."""
        image = resized(b, request.image, b.ints(self.height, self.width), self.resampling, "squashed")
        ids = b.ints(*self.before, *[self.image_token] * self.image_tokens, *self.after)
        answers = (b.op("Identity", constant) for constant in (ids, b.ints(1, 1), b.constant(np.ones(1, np.float32))))
        return Answer(normalized(b, planes(b, image), self.normalization), *answers)
