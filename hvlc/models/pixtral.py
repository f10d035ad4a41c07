"""Vision-language checkpoints with Pixtral's tower, as transformers loads them: images are padded to one size."""

from typing import Any

import numpy as np

from hvlc.models.loaded import LoadedModel


class PixtralModel(LoadedModel):
    """A checkpoint whose processor pads all images to one size, and says their own in `image_sizes`."""

    def pieces(self, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Pixels of each image, float32 `[1, 3, H, W]`."""
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        padded = inputs["pixel_values"].numpy()
        return [image[None, :, :height, :width] for image, (height, width) in zip(padded, sizes, strict=True)]

    def laid(self, name: str, values: np.ndarray, inputs: dict[str, Any]) -> np.ndarray:
        """Values that a module computes for patches or visual tokens, float32 `[1, n, width]`."""
        return values.reshape(1, -1, values.shape[-1])
