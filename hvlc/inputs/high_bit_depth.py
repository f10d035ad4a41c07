"""Grey images of more than 8 bits, as they look: Pillow clips them to white or black instead of scaling them."""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

_BAND = 1 << 22  # pixels that are converted at once
_UNSIGNED, _SIGNED = 1, 2  # TIFF 6.0, section 19: SampleFormat
_WHITE_IS_ZERO = 0  # TIFF 6.0, section 4: PhotometricInterpretation
_BYTE, _WORD = 255.0, 65_535.0


def is_wide(image: Image.Image) -> bool:
    """Whether the values are wider than 8 bits, integers or floats, of one channel."""
    return image.mode == "F" or image.mode.startswith("I")


def narrowed(image: Image.Image) -> Image.Image:
    """A loaded wide image in 8-bit grey.

    What is white is said by the file where it has 12 or 16 bits. Values of 32 bits have no agreed range: white is the
    smallest of 1 (floats alone), 255 and 65535 that half of the largest value does not exceed, so that a little
    overshoot is clipped; above, it is the largest value that the integer type holds, or that the float image has.
    Negative values and NaN are black.

    Args:
        image: of the modes "I", "I;16" and its kin, and "F".
    """
    white = _white(image)
    key = image.info.get("transparency")
    turned = _tag(image, PHOTOMETRIC_INTERPRETATION, 1) == _WHITE_IS_ZERO
    grey = np.empty((image.height, image.width), np.uint8)
    for top, band in _bands(image):
        level = _levels(band, white)
        if turned:
            level = 255 - level
        if isinstance(key, int):  # PNG: the one value that is transparent
            level[band == key] = 255
        grey[top : top + len(band)] = level
    return Image.fromarray(grey)


def _levels(band: np.ndarray, white: float) -> np.ndarray:
    """uint8 of values float or integer; integers are rounded down, as cutting off the low byte does."""
    if band.dtype.kind == "f":
        known = np.nan_to_num(band.astype(np.float64), nan=0.0, posinf=white, neginf=0.0)
        return np.rint(known.clip(0, white) * (255 / white)).astype(np.uint8)
    return (band.astype(np.int64).clip(0, int(white)) * 255 // int(white)).astype(np.uint8)


def _white(image: Image.Image) -> float:
    bits = _tag(image, BITSPERSAMPLE, 32 if image.mode in "IF" else 16)
    signed = _tag(image, SAMPLEFORMAT, _SIGNED if image.mode == "I" else _UNSIGNED) == _SIGNED
    if bits <= 16:
        return float((1 << (bits - signed)) - 1)
    largest = max(_largest(band) for _, band in _bands(image))
    ranges = (1.0, _BYTE, _WORD) if image.mode == "F" else (_BYTE, _WORD)
    found = next((white for white in ranges if largest <= 2 * white), None)
    if found is not None:
        return found
    return largest if image.mode == "F" else float((1 << (bits - signed)) - 1)


def _largest(band: np.ndarray) -> float:
    finite = band[np.isfinite(band)]
    return float(finite.max()) if finite.size else 0.0


def _bands(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """Rows from the top, some at a time: number of the first, and values `[rows, width]`."""
    unsigned = image.mode == "I" and _tag(image, SAMPLEFORMAT, _SIGNED) == _UNSIGNED
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        yield top, band.view(np.uint32) if unsigned else band


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """The first number of a TIFF tag; `default` where the file has none or is not a TIFF."""
    found = image.tag_v2.get(tag, default) if isinstance(image, TiffImageFile) else default
    first = found[0] if isinstance(found, tuple) and found else found
    return first if isinstance(first, int) else default
