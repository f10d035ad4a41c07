"""Images and prompts for HyperVL: scale, resize, pad to whole tiles, expand placeholders.

Every size is computed in float32 with the same operations, in the same order, as the front graph
of a package (`hvlc/imaging/raster_tiles.py`), so both agree to the pixel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

ImageLike = Image.Image | np.ndarray | torch.Tensor


def cap_scale(height: int, width: int, scale: float, cell_size: int, max_visual_tokens: int) -> np.float32:
    """The largest scale up to `scale` that keeps an image within `max_visual_tokens` cells.

    An image of `h x w` pixels makes `ceil(h s / c) * ceil(w s / c)` visual tokens, which is at most
    `(a s + 1)(b s + 1)` with `a = h / c`, `b = w / c`; solving that for N gives a bound that always holds.
    """
    one, n = np.float32(1), np.float32(max_visual_tokens)
    a = np.float32(height) / np.float32(cell_size)
    b = np.float32(width) / np.float32(cell_size)
    s = np.float32(scale)
    h, w = scaled_size(height, width, s)
    if -(-h // cell_size) * -(-w // cell_size) <= max_visual_tokens:
        return s
    total = a + b
    root = np.sqrt(total * total + np.float32(4) * a * b * (n - one))
    return min(s, (root - total) / (np.float32(2) * a * b))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width in pixels after scaling, at least one pixel each."""
    s = np.float32(scale)
    return max(1, int(np.floor(np.float32(height) * s))), max(1, int(np.floor(np.float32(width) * s)))


class HyperVLImageProcessor(BaseImageProcessor):
    """Processor of images into tiles, grids of cells, and the compressor's proxies.

    Args:
        tile_size: side of a tile in pixels.
        cell_size: side in pixels of the square behind one visual token.
        proxy_size: side of the compressor's view in pixels.
        max_visual_tokens: default bound of visual tokens per image.
        image_mean: per-channel mean on the 0..1 scale.
        image_std: per-channel standard deviation on the 0..1 scale.
    """

    model_input_names = ["pixel_values", "image_grids"]

    def __init__(
        self,
        tile_size: int = 256,
        cell_size: int = 32,
        proxy_size: int = 256,
        max_visual_tokens: int = 4096,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tile_size = tile_size
        self.cell_size = cell_size
        self.proxy_size = proxy_size
        self.max_visual_tokens = max_visual_tokens
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def to_pixels(self, image: ImageLike) -> torch.Tensor:
        """uint8-valued float32 `[1, 3, height, width]` of a PIL image or a uint8 `[height, width, 3]` array.

        Raises:
            ValueError: the image is empty or of another layout.
        """
        if isinstance(image, Image.Image):
            image = np.array(image.convert("RGB"))
        pixels = torch.as_tensor(image)
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8 or 0 in pixels.shape:
            raise ValueError(
                f"expected a non-empty uint8 [height, width, 3] image, got {tuple(pixels.shape)} {pixels.dtype}"
            )
        return pixels.permute(2, 0, 1).unsqueeze(0).float()

    def resize(self, pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Antialiased bilinear resize of float `[1, 3, h, w]`, without rounding to grey levels."""
        if pixels.shape[-2:] == (height, width):
            return pixels
        if width == 1 < height:  # torch 2.13 repeats the first row of such a result; turned, it is right
            return self.resize(pixels.mT.contiguous(), 1, height).mT
        return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """0..255 to `(x / 255 - mean) / std`."""
        mean = torch.tensor(self.image_mean).view(1, 3, 1, 1)
        std = torch.tensor(self.image_std).view(1, 3, 1, 1)
        return (pixels / 255 - mean) / std

    def tiles(
        self, image: ImageLike, scale: float = 1.0, max_visual_tokens: int | None = None
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Tiles float32 `[n, 3, T, T]` (row-major, zero-padded right and below) and the grid of cells."""
        pixels = self.to_pixels(image)
        limit = max_visual_tokens or self.max_visual_tokens
        height, width = pixels.shape[-2:]
        size = scaled_size(height, width, cap_scale(height, width, scale, self.cell_size, limit))
        pixels = self.normalize(self.resize(pixels, *size))
        t = self.tile_size
        down, across = -(-size[0] // t), -(-size[1] // t)
        padded = F.pad(pixels, (0, across * t - size[1], 0, down * t - size[0]))
        tiles = padded.reshape(3, down, t, across, t).permute(1, 3, 0, 2, 4).reshape(down * across, 3, t, t)
        return tiles, (-(-size[0] // self.cell_size), -(-size[1] // self.cell_size))

    def proxy(self, image: ImageLike) -> tuple[torch.Tensor, tuple[int, int]]:
        """The compressor's view, float32 `[1, 3, P, P]` (longest side fitted, zero-padded), and the original size."""
        pixels = self.to_pixels(image)
        height, width = pixels.shape[-2:]
        fit = np.float32(self.proxy_size) / np.float32(max(height, width))
        size = tuple(min(self.proxy_size, side) for side in scaled_size(height, width, fit))
        pixels = self.normalize(self.resize(pixels, *size))
        return F.pad(pixels, (0, self.proxy_size - size[1], 0, self.proxy_size - size[0])), (height, width)

    def proxies(self, images: Sequence[ImageLike]) -> BatchFeature:
        """`proxy_values` `[images, 3, P, P]` and `image_sizes` int64 `[images, 2]`, as `predict_scale` takes them."""
        pairs = [self.proxy(image) for image in images]
        return BatchFeature(
            {
                "proxy_values": torch.cat([values for values, _ in pairs]),
                "image_sizes": torch.tensor([size for _, size in pairs], dtype=torch.int64),
            }
        )

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        scales: float | Sequence[float] | None = None,
        max_visual_tokens: int | None = None,
        **_: Any,
    ) -> BatchFeature:
        """`pixel_values` float32 `[tiles, 3, T, T]` and `image_grids` int64 `[images, 2]` of all images in order."""
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        wanted = [1.0] * len(images) if scales is None else np.broadcast_to(np.asarray(scales), (len(images),)).tolist()
        cut = [self.tiles(image, scale, max_visual_tokens) for image, scale in zip(images, wanted, strict=True)]
        return BatchFeature(
            {
                "pixel_values": torch.cat([tiles for tiles, _ in cut]),
                "image_grids": torch.tensor([grid for _, grid in cut], dtype=torch.int64),
            }
        )


class HyperVLProcessor(ProcessorMixin):
    """Image processor and tokenizer; expands each image placeholder into rows of cells.

    `processor(images=..., text=..., scales=model.predict_scale(...))` gives what `generate` takes.
    Without `scales` images keep their size.
    """

    def __init__(
        self,
        image_processor: HyperVLImageProcessor | None = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<|image_pad|>",
        row_token: str = "<|vision_pad|>",
        **kwargs: Any,
    ) -> None:
        self.image_token = image_token
        self.row_token = row_token
        super().__init__(
            image_processor, tokenizer, chat_template=chat_template or getattr(tokenizer, "chat_template", None)
        )

    def placeholder(self, rows: int, columns: int) -> str:
        """The text that stands for an image of `rows x columns` visual tokens."""
        return (self.image_token * columns + self.row_token) * rows

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike] | None = None,
        text: str | Sequence[str] = "",
        scales: float | Sequence[float] | None = None,
        max_visual_tokens: int | None = None,
        padding: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tensors for `HyperVLForConditionalGeneration`.

        Raises:
            ValueError: the texts hold more or fewer image placeholders than there are images.
        """
        texts = [text] if isinstance(text, str) else list(text)
        features = self.image_processor(images, scales, max_visual_tokens) if images is not None else BatchFeature({})
        grids = features["image_grids"].tolist() if features else []
        wanted = sum(t.count(self.image_token) for t in texts)
        if wanted != len(grids):
            raise ValueError(f"{wanted} image placeholders in the text but {len(grids)} images")
        remaining = iter(grids)
        expanded = []
        for t in texts:
            head, *tail = t.split(self.image_token)
            expanded.append(head + "".join(self.placeholder(*next(remaining)) + part for part in tail))
        tokens = self.tokenizer(expanded, return_tensors="pt", padding=padding, add_special_tokens=False)
        keep = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
        return BatchFeature({**keep, **features})

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_grids"]
