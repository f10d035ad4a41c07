"""Images small enough to put hundreds into one page."""

import base64
import io

from PIL import Image

#: Bytes of all images of a page together, before base64 adds a third.
_PAGE_BYTES = 1_700_000

#: Bytes of one image: smaller is unreadable, larger shows no more.
_LEAST, _MOST = 2_500, 14_000

#: Longest side in pixels and WebP quality, tried from fine to coarse.
_STEPS = ((480, 86), (480, 72), (400, 60), (360, 45), (300, 40), (260, 32), (220, 25), (180, 20), (140, 15))


def image_budget(count: int) -> int:
    """Bytes that each of `count` images of a page may take."""
    return max(_LEAST, min(_MOST, _PAGE_BYTES // max(1, count)))


def thumbnail(image: Image.Image, budget: int) -> tuple[str, int, int]:
    """A WebP of at most about `budget` bytes, as a data URI, with its width and height in pixels."""
    data, size = b"", image.size
    for side, quality in _STEPS:
        small = image.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=quality, method=4)
        data, size = file.getvalue(), small.size
        if len(data) <= budget:
            break
    return "data:image/webp;base64," + base64.b64encode(data).decode(), *size
