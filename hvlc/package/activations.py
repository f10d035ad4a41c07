"""Memory that a package's vision encoders take for activations: stated from their graphs, before anything runs."""

from collections.abc import Sequence
from pathlib import Path

from hvlc.graphs.activations import stated_cap
from hvlc.manifest.manifest import Manifest
from hvlc.opening.graphs import load_graph, mixes_batch
from hvlc.runtime.settings import TILE_BATCH

_INPUT = "pixel_values"


def encoder_caps(directory: Path, manifest: Manifest, tile_batch: int | None = None) -> dict[str, int]:
    """Most bytes of activations of each encoder whose pieces have one shape, over a full batch of them.

    Args:
        directory: the package.
        manifest: of it.
        tile_batch: pieces per run. None: the package's.

    Raises:
        UserError: a graph cannot be read.
    """
    if manifest.images is None or manifest.images.piece is None:
        return {}
    batch = tile_batch or manifest.images.tile_batch or TILE_BATCH
    shape = (batch, 3, *manifest.images.piece)
    caps = {name: request_cap(directory, manifest, name, [shape], batch) for name in manifest.encoders}
    return {name: cap for name, cap in caps.items() if cap is not None}


def request_cap(
    directory: Path, manifest: Manifest, encoder: str, parts: Sequence[tuple[int, ...]], batch: int
) -> int | None:
    """Most bytes of activations of an encoder over a request's pieces.

    Args:
        directory: the package.
        manifest: of it.
        encoder: its name.
        parts: shapes of pieces, `[n, 3, H, W]`.
        batch: most pieces per run.

    Returns:
        None: a graph is compiled for a device, or does not say.

    Raises:
        UserError: a graph cannot be read.
    """
    caps = []
    for number, *piece in parts:
        file = manifest.encoder_file(encoder, *piece[1:])
        if manifest.component_in(file).compiled:
            return None
        model = load_graph(directory / file)
        most = 1 if mixes_batch(model.graph) else min(batch, number)
        caps.append(stated_cap(model, {_INPUT: (most, *piece)}))
    known = [cap for cap in caps if cap is not None]
    return max(known, default=None) if len(known) == len(caps) else None
