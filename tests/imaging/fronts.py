"""Front graphs of a test, run by onnxruntime."""

from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from PIL import Image

from hvlc.imaging.rule import ImageRule
from tests.helpers.sessions import session


class Seen(NamedTuple):
    """What a front graph answers."""

    pixel_values: np.ndarray
    image_ids: list[int]
    grid: list[int]
    used_scale: np.float32


class Front:
    """The front graph of a rule, ready to run."""

    def __init__(self, rule: ImageRule, optimization: str = "optimized") -> None:
        self.session: ort.InferenceSession = session(rule.front(), optimization)
        self.rule = rule

    def run(self, image: np.ndarray | Image.Image, scale: float = 1.0, bound: int | None = None) -> Seen:
        """See an image uint8 `[height, width, 3]`; without a bound the rule's own."""
        feeds = {
            "image": np.asarray(image),
            "scale": np.array([scale], np.float32),
            "max_visual_tokens": np.array([bound or self.rule.most_visual_tokens], np.int64),
        }
        outputs = ["pixel_values", "image_ids", "grid", "used_scale"]
        pixels, ids, grid, used = self.session.run(outputs, feeds)
        return Seen(pixels, ids.tolist(), grid.tolist(), used[0])
