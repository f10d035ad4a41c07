"""Records that describe a calibration set: numbers, lengths, shapes and kinds of samples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True)
class Spread:
    """Counts of many things in a few numbers."""

    least: int
    median: float
    most: int
    total: int

    @classmethod
    def of(cls, counts: Iterable[int]) -> Self | None:
        """The spread of some counts; None of none."""
        found = list(counts)
        return cls(min(found), median(found), max(found), sum(found)) if found else None


@dataclass(frozen=True)
class VisualSize:
    """Tiles and visual tokens of an image.

    Attributes:
        tiles: pieces that an encoder reads.
        tokens: visual tokens.
        length: tokens that stand for it in a prompt, visual ones included.
        pixels: pixels of all pieces.
    """

    tiles: int
    tokens: int
    length: int
    pixels: int


@dataclass(frozen=True)
class Balance:
    """Description of a calibration set.

    Attributes:
        name: of the set.
        digest: hex SHA-256 of what the model is fed.
        samples: how many.
        kinds: samples of each kind, most first.
        tokens: of a sequence, visual ones and those between them included; None where nothing reads tokens or the
            size of images is not known.
        aspects: images of each band of width to height, from narrow to wide; empty without images.
        tiles: of an image; None where that is not known.
        visual_tokens: of an image; None where that is not known.
        warnings: what makes it lopsided, in words.
    """

    name: str
    digest: str
    samples: int
    kinds: Mapping[str, int]
    tokens: Spread | None
    aspects: Mapping[str, int]
    tiles: Spread | None
    visual_tokens: Spread | None
    warnings: tuple[str, ...]
