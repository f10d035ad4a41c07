"""Positions of tokens in three axes, time, row and column, where a decoder is given them (M-RoPE, arXiv 2409.12191).

onnxruntime-genai makes them of the tokens and `image_grid_thw`; this does the same for those who run a decoder alone.
"""

from collections.abc import Sequence

import numpy as np

_AXES = 3


def grid_positions(ids: np.ndarray, image_token: int, grids: Sequence[np.ndarray]) -> np.ndarray:
    """Position of each token of a sequence.

    Text counts on in all axes at once. The tokens of an image share one time and have its rows and columns, counted
    from there; the text after it goes on behind the largest of them.

    Args:
        ids: int64 `[n]`; the visual tokens of an image stand together.
        image_token: placeholder of a visual token.
        grids: int64 `[2]`, rows and columns of visual tokens of each image, in order.

    Returns:
        int64 `[3, n]`.

    Raises:
        ValueError: the tokens are not those of these images.
    """
    found = np.empty((_AXES, len(ids)), np.int64)
    waiting, at, position = list(grids), 0, 0
    while at < len(ids):
        if ids[at] != image_token:
            found[:, at] = position
            at, position = at + 1, position + 1
            continue
        rows, columns = (int(size) for size in (waiting.pop(0) if waiting else (0, 0)))
        end = at + rows * columns
        if end == at or not np.array_equal(ids[at:end], np.full(rows * columns, image_token)):
            raise ValueError(f"token {at} is of an image, and {len(grids)} grids do not say which")
        row, column = np.indices((rows, columns)).reshape(2, -1)
        found[:, at:end] = position + np.stack([np.zeros_like(row), row, column])
        at, position = end, position + max(rows, columns)
    if waiting:
        raise ValueError(f"{len(waiting)} of {len(grids)} images have no tokens")
    return found


def position_table(positions: np.ndarray, context: int) -> np.ndarray:
    """Positions of all rows of a cache, int32 `[3, context]`: a prompt's, then those of an answer, which count on.

    Args:
        positions: int64 `[3, n]` of the prompt's tokens, `n` at least 1.
        context: rows of the cache; those that a prompt has too many are left out.
    """
    rows = np.arange(1, context - positions.shape[1] + 1) + positions.max()
    every = np.concatenate([positions, np.broadcast_to(rows, (_AXES, len(rows)))], axis=1)
    return every[:, :context].astype(np.int32)
