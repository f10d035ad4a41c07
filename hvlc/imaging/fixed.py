"""One image of one size (Gemma 3, PaliGemma): squashed, whatever its shape."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hvlc.graphs.builder import GraphBuilder
from hvlc.imaging.pieces import normalized, planes
from hvlc.imaging.resize import Resampling, resized
from hvlc.imaging.rule import Answer, ImageRule, Normalization, Request


@dataclass(frozen=True)
class FixedSize(ImageRule):
    """The whole image at one height and width.

    Attributes:
        height: of the piece in pixels.
        width: of the piece in pixels.
        image_tokens: visual tokens of the image.
        resampling: of the resize.
        normalization: of grey levels.
        before: ids before the visual tokens.
        image_token: id that stands for a feature.
        after: ids after them.
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
        reason = "every image has the one size that the encoder takes"
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
        """One."""
        return 1

    def answer(self, b: GraphBuilder, request: Request) -> Answer:
        """Squash the image."""
        image = planes(b, resized(b, request.image, b.ints(self.height, self.width), self.resampling, "squashed"))
        ids = b.ints(*self.before, *[self.image_token] * self.image_tokens, *self.after)
        full = b.op("Identity", b.constant(np.ones(1, np.float32)))
        grid = b.op("Identity", b.ints(1, 1))
        return Answer(normalized(b, image, self.normalization), b.op("Identity", ids), grid, full)
