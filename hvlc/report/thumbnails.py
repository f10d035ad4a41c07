"""Thumbnails, small enough to put hundreds into one page."""

import base64
import bisect
import io

from PIL import Image

#: Bytes of all images of a page together, before base64 adds a third.
_PAGE_BYTES = 1_700_000

#: Bytes of one image: smaller is unreadable, larger shows no more.
_LEAST, _MOST = 2_500, 14_000

#: Longest side in pixels and WebP quality, tried from fine to coarse.
_STEPS = (
    *((480, 86), (480, 72), (400, 60), (360, 45), (300, 40), (260, 32), (220, 25), (180, 20), (140, 15)),
    *((110, 12), (80, 10), (56, 8)),  # for noise: so many of these that a page stays small
)


def image_budget(count: int) -> int:
    """Bytes that each of `count` images of a page may take."""
    return max(_LEAST, min(_MOST, _PAGE_BYTES // max(1, count)))


def thumbnail(image: Image.Image, budget: int) -> tuple[str, int, int]:
    """A WebP of at most about `budget` bytes, as a data URI, with its width and height in pixels."""
    made: dict[int, tuple[bytes, tuple[int, int]]] = {}

    def fits(step: int) -> bool:
        made[step] = _encoded(image, *_STEPS[step])
        return len(made[step][0]) <= budget

    steps = range(len(_STEPS) - 1)  # coarser ones are smaller; the coarsest has to do
    best = bisect.bisect_left(steps, True, key=fits)
    data, size = made.get(best) or _encoded(image, *_STEPS[best])
    return "data:image/webp;base64," + base64.b64encode(data).decode(), *size


def _encoded(image: Image.Image, side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """A WebP with sides of at most `side` pixels, and its width and height."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue(), small.size
