"""Describe a calibration set: counts by kind and shape, with warnings about an imbalance."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hvlc.calibration.samples import CalibrationSet, ImageSample, TextSample
from hvlc.calibration.sources import ADVISED
from hvlc.results.calibration_set import Balance, Spread, VisualSize

#: Bands of width to height: the upper bound (not included), and the name.
_ASPECTS = ((0.5, "below 1:2"), (0.8, "1:2 to 4:5"), (1.25, "4:5 to 5:4"), (2.0, "5:4 to 2:1"), (np.inf, "from 2:1"))

#: More than this share of one sort is lopsided.
_LOPSIDED = 0.9

#: Tells what an image of a height and a width in pixels becomes.
Measure = Callable[[int, int], VisualSize]


def balance_of(
    inputs: CalibrationSet, measure: Measure | None = None, progress: Callable[[int], None] = lambda done: None
) -> Balance:
    """Count what is in a set.

    Args:
        inputs: the set.
        measure: tells sizes as the package's front graph does. None: that is not known.
        progress: told how many images are measured.

    Raises:
        UserError: an image can no longer be read.
    """
    sizes = None if measure is None else _measured(inputs.images, measure, progress)
    kinds = Counter(sample.kind for sample in inputs.samples)
    aspects = Counter(aspect(s.picture.width, s.picture.height) for s in inputs.images)
    tiles = Counter(f"{size.tiles} tiles" for size in sizes or [])
    lopsided = [
        *(_lopsided(kinds, "kind") if len(kinds) > 1 else []),
        *_lopsided(aspects, "aspect"),
        *_lopsided(tiles, "number of tiles"),
    ]
    return Balance(
        name=inputs.name,
        digest=inputs.digest,
        samples=len(inputs.samples),
        kinds=dict(kinds.most_common()),
        tokens=Spread.of(_lengths(inputs, sizes)),
        aspects={name: aspects[name] for _, name in _ASPECTS if aspects[name]},
        tiles=Spread.of(size.tiles for size in sizes or []),
        visual_tokens=Spread.of(size.tokens for size in sizes or []),
        warnings=(*_small(len(inputs.samples)), *inputs.notes, *lopsided),
    )


def aspect(width: int, height: int) -> str:
    """The band of an image."""
    return next(name for bound, name in _ASPECTS if width < bound * height)


def _measured(images: Sequence[ImageSample], measure: Measure, progress: Callable[[int], None]) -> list[VisualSize]:
    sizes = []
    for done, sample in enumerate(images, 1):
        sizes.append(measure(sample.picture.height, sample.picture.width))
        progress(done)
    return sizes


def _lengths(inputs: CalibrationSet, sizes: Sequence[VisualSize] | None) -> list[int]:
    """Tokens of every sequence; nothing where those of an image cannot be told."""
    texts = [len(s.ids) for s in inputs.samples if isinstance(s, TextSample)]
    if not inputs.images:
        return texts
    if sizes is None:
        return []
    asked = zip(inputs.images, sizes, strict=True)
    return texts + [s.prompt.length + size.length for s, size in asked if s.prompt is not None]


def _small(count: int) -> list[str]:
    return [f"{count} samples are few: {ADVISED} at least are advised"] if count < ADVISED else []


def _lopsided(counts: Mapping[str, int], what: str) -> list[str]:
    """A warning when nearly all is of one sort."""
    total = sum(counts.values())
    return [
        f"{100 * count / total:.0f} % are of one {what}: {name}"
        for name, count in counts.items()
        if count > _LOPSIDED * total
    ]
