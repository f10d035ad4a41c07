"""Image files to arrays; untrusted bytes, so every failure is a user's error.

All code that opens an image does it here: the formats that hvlc means, whatever the file's name, in bounded memory and
time. Nothing that Pillow also knows is tried: EPS runs Ghostscript, and rare decoders fail in ways of their own.
"""

import contextlib
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import (
    BmpImagePlugin,  # noqa: F401  the six readers register themselves; otherwise Pillow imports every other one too
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)
from PIL.ExifTags import Base

from hvlc.errors import UserError
from hvlc.files.reading import IMAGE, is_file, open_file, shown
from hvlc.inputs.high_bit_depth import is_wide, narrowed
from hvlc.inputs.image_bounds import BoundedReader, check_passes

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
PIXEL_LIMIT = 80_000_000  # of a file: 320 MB decoded, below Pillow's own warning against decompression bombs
WEBP_LIMIT = 64_000_000  # the same of WebP, whose decoder holds four copies of the image: 1 GB

#: Pixels of a decoded image: larger ones are made smaller at once. What phones' cameras save by default (12 MP) stays
#: as it is, and four times what a model sees of an image at most (4096 visual tokens of 32 x 32 pixels) is left.
WORKING_PIXELS = 4096 * 4096
TOGETHER_LIMIT = 8 * WORKING_PIXELS  # of all images of a question: 540 MB
MOST_IMAGES = 256  # of a question
_BAND = 1 << 22  # pixels of a band

_FIX = "give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
_SHRINK = "shrink it first"
#: Errors of Pillow's readers of these formats on damaged bytes: found by reading them, and by fuzzing.
_DECODER_ERRORS = (
    OSError,  # UnidentifiedImageError is one
    SyntaxError,  # Pillow's own, of headers
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,  # NotImplementedError, RecursionError too
    struct.error,
    zlib.error,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(path: Path) -> Image.Image:
    """An RGB image, turned upright as its EXIF orientation says, transparency on white; of several frames the first.

    One of more than `WORKING_PIXELS` is made smaller.

    Raises:
        UserError: missing, empty, not an image of `FORMATS`, damaged, or larger than `PIXEL_LIMIT` pixels.
    """
    with _opened(path) as (image, guarded):
        with guarded:
            image.draft(None, _fitted(image.size))  # of JPEG: decodes a half, quarter or eighth that is large enough
            image.load()
            turn = _TURNS.get(image.getexif().get(Base.Orientation, 1))
        pixels: Image.Image = narrowed(image) if is_wide(image) else image
        with guarded:
            small = _shrunk(pixels)
        return small if turn is None else small.transpose(turn)


def load_images(paths: Sequence[Path]) -> list[Image.Image]:
    """The images of one question; see `load_image`.

    Raises:
        UserError: see `load_image`; or together they are more than `TOGETHER_LIMIT` pixels or `MOST_IMAGES`.
    """
    if len(paths) > MOST_IMAGES:
        raise UserError("image.too_many", f"{len(paths)} images, and {MOST_IMAGES} are the most", "ask about fewer")
    pixels = sum(min(WORKING_PIXELS, math.prod(image_size(path))) for path in paths)
    if pixels > TOGETHER_LIMIT:
        cause = f"{len(paths)} images of {pixels} pixels, and {TOGETHER_LIMIT} are the most for one question"
        raise UserError("image.too_large", cause, "shrink them, or ask about fewer")
    return [load_image(path) for path in paths]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as the file's header says, before it is turned upright; no pixel is decoded.

    Raises:
        UserError: missing, empty, not an image of `FORMATS`, or larger than `PIXEL_LIMIT` pixels.
    """
    with _opened(path) as (image, _):
        return image.size


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 `[height, width, 3]`."""
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[ImageFile.ImageFile, "_Guarded"]]:
    """An image whose header was read and whose size is within the limit, and what its decoder is to run in."""
    if not is_file(path):
        raise UserError("image.missing", f"{shown(path)} is not a file", "check the path")
    guarded = _Guarded(path)
    with open_file(path, "image.unreadable", limit=IMAGE) as file:
        if not file.read(1):
            raise UserError("image.empty", f"{shown(path)} has no bytes", "fetch the image again")
        with guarded:
            check_passes(file)
            reader = BoundedReader(file)
            image = Image.open(cast(IO[bytes], reader), formats=FORMATS)
            reader.in_header = False
        with image:
            guarded.check_size(image)
            yield image, guarded


class _Guarded:
    """A block of the decoder's: what it raises is the user's error, what it warns of is not printed.

    Args:
        path: of the image, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._warnings.__exit__(None, None, None)
        if isinstance(error, Image.DecompressionBombError | MemoryError):
            cause = f"{shown(self._path)}: {error or 'it takes more memory than there is'}"
            raise UserError("image.too_large", cause, _SHRINK) from error
        if isinstance(error, _DECODER_ERRORS):
            raise UserError("image.unreadable", f"{shown(self._path)}: {_said(error)}", _FIX) from error

    def check_size(self, image: ImageFile.ImageFile) -> None:
        """Refuse more pixels than the limit, in the image or in a tile of it, and none at all.

        Raises:
            UserError: what was found.
        """
        named = shown(self._path)
        if 0 in image.size:
            raise UserError("image.unreadable", f"{named} has no pixels", _FIX)
        limit = min(PIXEL_LIMIT, WEBP_LIMIT) if image.format == "WEBP" else PIXEL_LIMIT
        if max(math.prod(image.size), self._tile(image)) > limit:
            of_webp = " of a WebP file" if image.format == "WEBP" else ""
            cause = f"{named} has {image.width} x {image.height} pixels, and {limit} in all are the most{of_webp}"
            raise UserError("image.too_large", cause, _SHRINK)

    def _tile(self, image: ImageFile.ImageFile) -> int:
        """Pixels of a tile of a TIFF, which libtiff makes room for; 0 without tiles."""
        if not isinstance(image, TiffImagePlugin.TiffImageFile):
            return 0
        with self:
            sides = [image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
            return int(sides[0]) * int(sides[1])


def _said(error: BaseException) -> str:
    """Message of a decoder in few words; one about the object that hvlc gave it says nothing."""
    text = str(error) or type(error).__name__
    return "not an image of these formats" if "cannot identify" in text else text[:200]


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height with the same proportions and at most `WORKING_PIXELS`."""
    scale = math.sqrt(WORKING_PIXELS / math.prod(size))
    if scale >= 1:
        return size
    width, height = (max(1, round(side * scale)) for side in size)
    # A side of 1 pixel cannot shrink with the other.
    return min(width, WORKING_PIXELS // height), min(height, WORKING_PIXELS // width)


def _shrunk(image: Image.Image) -> Image.Image:
    """RGB of at most `WORKING_PIXELS`, made by bands: a whole image in another mode would take as much room again."""
    size = _fitted(image.size)
    if size == image.size:
        return _on_white(image)
    made = Image.new("RGB", size)
    rows, scale = max(1, _BAND // image.width), image.height / size[1]
    for top in range(0, size[1], rows):
        bottom = min(top + rows, size[1])
        # The filter reads as many rows above and below as one row of the result stands for.
        first = max(0, math.floor(top * scale - scale) - 1)
        last = min(image.height, math.ceil(bottom * scale + scale) + 1)
        band = _on_white(image.crop((0, first, image.width, last)))
        box = (0, top * scale - first, image.width, min(bottom * scale - first, band.height))
        made.paste(band.resize((size[0], bottom - top), Image.Resampling.HAMMING, box), (0, top))
    return made


def _on_white(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparency on white, as viewers show it."""
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
