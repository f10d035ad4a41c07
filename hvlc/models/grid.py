"""Vision-language checkpoints whose towers see an image's own grid of patches, as transformers loads them.

transformers orders patches by the squares that merge into a visual token, and the squares by windows where there are
any; traces have both row by row.
"""

from typing import Any

import numpy as np
import torch
from transformers.vision_utils import get_vision_window_index

from hvlc.models.loaded import LoadedModel
from hvlc.results import trace_points


class GridModel(LoadedModel):
    """A checkpoint whose processor flattens the patches of all images, and says their grids in `image_grid_thw`."""

    def pieces(self, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Pixels of each image, float32 `[1, 3, H, W]`."""
        settings, start, found = self.model.config.vision_config, 0, []
        patch, frames = settings.patch_size, settings.temporal_patch_size
        for rows, columns in _grids(inputs):
            flat = inputs["pixel_values"][start : start + rows * columns].numpy()
            patches = flat.reshape(-1, 3, frames, patch, patch)[self._patches(rows, columns)]
            tiled = patches[:, :, 0].reshape(rows, columns, 3, patch, patch).transpose(2, 0, 3, 1, 4)
            found.append(tiled.reshape(1, 3, rows * patch, columns * patch))
            start += rows * columns
        return found

    def laid(self, name: str, values: np.ndarray, inputs: dict[str, Any]) -> np.ndarray:
        """Output of a module for patches or for visual tokens, row by row, float32 `[1, n, width]`."""
        merged = not name.startswith("vision.")
        by_window = self._windows(inputs) if name == trace_points.PROJECTOR or not merged else None
        square, start, found = 1 if merged else self._merge**2, 0, []
        if by_window is not None:  # squares, in the order of the windows
            values = values.reshape(-1, square, values.shape[-1])[np.argsort(by_window)].reshape(values.shape)
        for rows, columns in _grids(inputs):
            count = rows * columns * square // self._merge**2
            mine = values[start : start + count]
            found.append(mine if merged else mine[self._patches(rows, columns)])
            start += count
        return np.concatenate(found)[None]

    @property
    def _merge(self) -> int:
        """Side of the squares of patches that merge."""
        return int(self.model.config.vision_config.spatial_merge_size)

    def _patches(self, rows: int, columns: int) -> np.ndarray:
        """For each patch, row by row, where transformers has it among those of its image, int `[rows * columns]`."""
        merge = self._merge
        row, column = np.indices((rows, columns))
        squares = row // merge * (columns // merge) + column // merge
        return ((squares * merge + row % merge) * merge + column % merge).reshape(-1)

    def _windows(self, inputs: dict[str, Any]) -> np.ndarray | None:
        """Numbers of the squares, window by window; None where the tower has no windows."""
        settings = self.model.config.vision_config
        if not hasattr(settings, "window_size"):
            return None
        found, _ = get_vision_window_index(
            inputs["image_grid_thw"],
            spatial_merge_size=settings.spatial_merge_size,
            window_size=settings.window_size,
            patch_size=settings.patch_size,
        )
        return torch.as_tensor(found).numpy()


def _grids(inputs: dict[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of patches of each image."""
    return [(int(rows), int(columns)) for _, rows, columns in inputs["image_grid_thw"]]
