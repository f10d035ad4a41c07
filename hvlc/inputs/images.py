"""Image files to arrays; untrusted bytes, so every failure is a user's error."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hvlc.errors import UserError

PIXEL_LIMIT = 80_000_000  # below Pillow's own warning against decompression bombs


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
                return _rgb(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError("image.too_large", f"{path}: {error}", "shrink it first") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(
            "image.unreadable", f"{path}: {error}", "give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit greys scaled (Pillow would clip them to white), transparency on white, as viewers show it."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 `[height, width, 3]`."""
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
