"""LFM2-VL's processor where torchvision is not installed, which transformers' own image processor needs.

The arithmetic is that of transformers' `Lfm2VlImageProcessor`, and resizing is torch's `interpolate` of bytes, which
torchvision calls too; so pixels are equal to the bit (tests/models/test_lfm2_vl.py compares them where torchvision is
installed).
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoTokenizer, BatchFeature, Lfm2VlProcessor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs

_MODES = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}


class Lfm2VlSettings(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict, untyped
    """Settings of the image processor, as checkpoints save them."""

    downsample_factor: int
    do_image_splitting: bool
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    min_image_tokens: int
    max_image_tokens: int
    encoder_patch_size: int
    tile_size: int
    max_pixels_tolerance: float
    do_pad: bool
    return_row_col_info: bool


class Lfm2VlImageProcessorPil(PilBackend):
    """Images to patches, each image alone, padded to the most patches."""

    downsample_factor = 2
    do_image_splitting = True
    min_tiles = 2
    max_tiles = 10
    use_thumbnail = True
    min_image_tokens = 64
    max_image_tokens = 256
    encoder_patch_size = 16
    tile_size = 512
    max_pixels_tolerance = 2.0
    do_resize = True
    size: ClassVar[dict[str, int]] = {"height": 512, "width": 512}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_pad = True
    return_row_col_info = False
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    valid_kwargs = Lfm2VlSettings
    model_input_names: ClassVar[list[str]] = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]

    def _preprocess(self, images: list[np.ndarray], return_tensors: Any = None, **settings: Any) -> BatchFeature:
        """Pieces of all images, one after another.

        Args:
            images: uint8 `[3, h, w]` each.
            return_tensors: framework of the result.
            settings: see `Lfm2VlSettings`.
        """
        seen = [_seen(torch.from_numpy(np.ascontiguousarray(image)), settings) for image in images]
        patch = settings["encoder_patch_size"]
        pieces = [_normalized(piece, settings) for found, _, _ in seen for piece in found]
        most = settings["max_image_tokens"] * settings["downsample_factor"] ** 2
        most = max(most, (settings["tile_size"] // patch) ** 2 if settings["do_image_splitting"] else 0)
        patches = [_patches(piece, patch) for piece in pieces]
        data: dict[str, Any] = {
            "pixel_values": torch.stack([_padded(rows, most) for rows in patches]),
            "pixel_attention_mask": torch.stack([(torch.arange(most) < len(rows)).int() for rows in patches]),
            "spatial_shapes": torch.tensor([[side // patch for side in piece.shape[1:]] for piece in pieces]),
        }
        if settings.get("return_row_col_info"):
            data["image_rows"], data["image_cols"] = ([grid[axis] for _, grid, _ in seen] for axis in (0, 1))
            data["image_sizes"] = [size for _, _, size in seen]
        return BatchFeature(data=data, tensor_type=return_tensors)


def _seen(image: torch.Tensor, settings: dict[str, Any]) -> tuple[list[torch.Tensor], tuple[int, int], list[int]]:
    """Pieces uint8 `[3, h, w]` of an image, its rows and columns of tiles, and the size of its native piece."""
    height, width = image.shape[1:]
    size = smart_size(height, width, settings)
    native = _resized(image, size, settings)
    if not _is_cut(height, width, settings):
        return [native], (1, 1), list(size)
    rows, columns = nearest_grid(height, width, settings)
    side = settings["tile_size"]
    stretched = _resized(image, (rows * side, columns * side), settings)
    tiles = [tile for band in stretched.split(side, 1) for tile in band.split(side, 2)]
    return [*tiles, *([native] if settings["use_thumbnail"] else [])], (rows, columns), list(size)


def smart_size(height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the native piece: multiples of a cell, within the numbers of tokens."""
    cell = settings["encoder_patch_size"] * settings["downsample_factor"]
    least, most = (settings[name] * cell**2 for name in ("min_image_tokens", "max_image_tokens"))
    rounded = [max(cell, round(side / cell) * cell) for side in (height, width)]
    if math.prod(rounded) > most:
        factor = math.sqrt(height * width / most)
        rounded = [max(cell, math.floor(side / factor / cell) * cell) for side in (height, width)]
    elif math.prod(rounded) < least:
        factor = math.sqrt(least / (height * width))
        rounded = [math.ceil(side * factor / cell) * cell for side in (height, width)]
    return rounded[0], rounded[1]


def _is_cut(height: int, width: int, settings: dict[str, Any]) -> bool:
    patch = settings["encoder_patch_size"]
    cell = patch * settings["downsample_factor"]
    pixels = math.prod(max(patch, round(side / cell) * cell) for side in (height, width))
    is_large = pixels > settings["max_image_tokens"] * cell**2 * settings["max_pixels_tolerance"]
    return bool(is_large and settings["do_image_splitting"] and settings["max_tiles"] > 1)


def nearest_grid(height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of tiles whose aspect ratio is the image's, or nearly."""
    best, least = (1, 1), math.inf
    for columns, rows in _grids(settings["min_tiles"], settings["max_tiles"]):
        away = abs(width / height - columns / rows)
        filled = height * width > 0.5 * settings["tile_size"] ** 2 * rows * columns
        if away < least or (away == least and filled):
            best, least = (rows, columns), away
    return best


def _grids(fewest: int, most: int) -> Sequence[tuple[int, int]]:
    """Columns and rows, in transformers' order: that of a set, by area."""

    def tried() -> Iterator[tuple[int, int]]:
        for count in range(fewest, most + 1):
            for columns in range(1, count + 1):
                yield from ((columns, rows) for rows in range(1, count + 1) if fewest <= columns * rows <= most)

    return sorted(set(tried()), key=lambda grid: grid[0] * grid[1])


def _resized(image: torch.Tensor, size: tuple[int, int], settings: dict[str, Any]) -> torch.Tensor:
    mode = _MODES[settings["resample"]]
    found: torch.Tensor = torch.nn.functional.interpolate(image[None], size, mode=mode, antialias=True)[0]
    return found


def _normalized(piece: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """float32 `[3, h, w]`; mean and deviation are those of the levels where both steps are asked for."""
    values, factor = piece.float(), settings["rescale_factor"]
    if not settings["do_normalize"]:
        return values * factor if settings["do_rescale"] else values
    levels = 1 / factor if settings["do_rescale"] else 1.0
    mean, std = (torch.tensor(settings[name])[:, None, None] * levels for name in ("image_mean", "image_std"))
    return (values - mean) / std


def _patches(piece: torch.Tensor, side: int) -> torch.Tensor:
    """float32 `[patches, side * side * 3]`."""
    channels, height, width = piece.shape
    squares = piece.reshape(channels, height // side, side, width // side, side)
    return squares.permute(1, 3, 2, 4, 0).reshape(-1, side * side * channels)


def _padded(rows: torch.Tensor, most: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, max(0, most - len(rows))))


class Lfm2VlImageTextProcessor(Lfm2VlProcessor):
    """transformers' own processor with the image processor above."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        """The class of a part; that of images is the one above."""
        return type(argument) if name == "image_processor" else super().check_argument_for_proper_class(name, argument)


def load_processor(directory: Path) -> Lfm2VlImageTextProcessor:
    """The processor of a checkpoint.

    Args:
        directory: of the checkpoint.
    """
    settings, _ = Lfm2VlProcessor.get_processor_dict(directory)
    parts = [Lfm2VlImageProcessorPil.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)]
    found: Lfm2VlImageTextProcessor = Lfm2VlImageTextProcessor.from_args_and_dict(parts, settings)
    return found
