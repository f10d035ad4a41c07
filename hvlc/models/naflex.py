"""Vision-language checkpoints whose processor pads the patches of pieces of any shape, as transformers loads them.

A trace has the pieces one behind the other, without padding; their patches lie row by row already.
"""

from typing import Any

import numpy as np

from hvlc.models.loaded import LoadedModel
from hvlc.results import trace_points


class NaflexModel(LoadedModel):
    """A checkpoint whose processor says the grids of pieces in `spatial_shapes` (LFM2-VL)."""

    def pieces(self, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Pixels of each piece, float32 `[1, 3, H, W]`."""
        side, found = self.model.config.vision_config.patch_size, []
        for flat, (rows, columns) in zip(inputs["pixel_values"].numpy(), _grids(inputs), strict=True):
            squares = flat[: rows * columns].reshape(rows, columns, side, side, 3)
            found.append(squares.transpose(4, 0, 2, 1, 3).reshape(1, 3, rows * side, columns * side))
        return found

    def laid(self, name: str, values: np.ndarray, inputs: dict[str, Any]) -> np.ndarray:
        """Values of a module for patches or for visual tokens, float32 `[1, n, width]`."""
        if name == trace_points.PROJECTOR:  # of each piece alone
            return values.reshape(1, -1, values.shape[-1])
        grids = _grids(inputs)
        return np.concatenate([mine[: r * c] for mine, (r, c) in zip(values, grids, strict=True)])[None]


def _grids(inputs: dict[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of patches of each piece."""
    return [(int(rows), int(columns)) for rows, columns in inputs["spatial_shapes"]]
