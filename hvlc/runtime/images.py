"""Image files to arrays; untrusted bytes, so every failure is a user's error."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hvlc.errors import UserError

PIXEL_LIMIT = 100_000_000


def load_image(path: Path) -> Image.Image:
    """An RGB image, turned upright as its EXIF orientation says.

    Raises:
        UserError: missing, empty, not an image, damaged, or larger than `PIXEL_LIMIT` pixels.
    """
    if not path.is_file():
        raise UserError("image.missing", f"{path} is no file", "check the path")
    if path.stat().st_size == 0:
        raise UserError("image.empty", f"{path} has no bytes", "fetch the image again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.width * opened.height > PIXEL_LIMIT:
                    raise UserError(
                        "image.too_large", f"{path} has {opened.width} x {opened.height} pixels", "shrink it first"
                    )
                return ImageOps.exif_transpose(opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError("image.too_large", f"{path}: {error}", "shrink it first") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(
            "image.unreadable", f"{path}: {error}", "give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
        ) from error


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 `[height, width, 3]`."""
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
