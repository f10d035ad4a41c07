"""The inputs that a checkpoint would be calibrated on, and what they are like."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hvlc.graphs.bundle import Bundle
from hvlc.manifest.manifest import Kind
from hvlc.results.calibration_set import Balance, VisualSize
from hvlc.weights.checkpoint import Checkpoint


def show_inputs(
    source: str, directory: Path, *, samples: int, tokens: int, progress: Callable[[int], None] = lambda done: None
) -> Balance:
    """Open a calibration set for a checkpoint and count what is in it.

    Images are counted at their full size: what the resolution compressor makes of them is smaller.

    Args:
        source: as `hvlc.calibration.sources.open_set` takes it.
        directory: the checkpoint.
        samples: how many at most.
        tokens: length of a window of text.
        progress: told how many images are measured.

    Raises:
        UserError: the checkpoint or the source is wrong.
    """
    from hvlc.calibration.balance import balance_of
    from hvlc.calibration.sources import Model, open_set
    from hvlc.export import export_bundle

    checkpoint = Checkpoint.open(directory)
    facts = export_bundle(checkpoint).facts
    inputs = open_set(source, Model(checkpoint.directory, facts), samples=samples, tokens=tokens)
    return balance_of(inputs, front_measure(facts), progress)


def front_measure(facts: Mapping[str, Any]) -> Callable[[np.ndarray], VisualSize] | None:
    """Runs a front graph without a resolution compressor over images; None for what has no tiles.

    Args:
        facts: of a bundle.
    """
    if facts["kind"] != Kind.VISION_LANGUAGE:
        return None
    import onnx_ir as ir

    from hvlc.graphs.sessions import open_session
    from hvlc.passes.vision.tile_images import TileImages

    front = Bundle("front")
    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
    TileImages(facts["tile_size"], facts["cell_size"], mean, std).run(front)
    model = ir.to_proto(front.components["front"].model).SerializeToString()
    session = open_session(model)
    limit = np.array([facts["max_visual_tokens"]], np.int64)

    def measure(image: np.ndarray) -> VisualSize:
        feeds = {"image": image, "scale": np.ones(1, np.float32), "max_visual_tokens": limit}
        tiles, grid = session.run(["pixel_values", "grid"], feeds)
        return VisualSize(len(tiles), int(grid[0]), int(grid[1]))

    return measure
