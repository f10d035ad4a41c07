"""The vision half of a package: front graph, the chosen encoder over batches of tiles, stitching."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hvlc.errors import UserError, nearest
from hvlc.manifest.manifest import Manifest
from hvlc.opening.sessions import PackageSession, lying
from hvlc.runtime.providers import open_component, register_providers

_ASK_COMPRESSOR, _FULL_SIZE = 0.0, 1.0
_MOST_TOKENS = 2**24  # of an image, whatever a graph says


@dataclass(frozen=True)
class Tiled:
    """An image after the front graph.

    Attributes:
        tiles: float32 `[n, 3, T, T]`.
        rows: rows of visual tokens.
        columns: columns of visual tokens.
        scale: scale per side that was used.
    """

    tiles: np.ndarray
    rows: int
    columns: int
    scale: float

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens."""
        return self.rows * self.columns


class Vision:
    """Sessions are opened on demand; at most one encoder is resident.

    Args:
        directory: the package.
        manifest: its manifest.
        tile_batch: tiles per encoder run; peak memory is set by one batch, whatever the image.
        threads: threads per session; 0 lets onnxruntime choose.

    Attributes:
        tokens: of the image placeholders.

    Raises:
        UserError: the package is of a kind that has no tiles.
    """

    def __init__(self, directory: Path, manifest: Manifest, tile_batch: int = 4, threads: int = 0) -> None:
        if manifest.tiles is None or manifest.policy is None or manifest.tokens is None:
            raise UserError("package.kind", f"{directory} has no tiles", "name a vision-language package")
        self.tokens = manifest.tokens
        self._tiles, self._policy = manifest.tiles, manifest.policy
        self._directory = directory
        self._manifest = manifest
        self._tile_batch = tile_batch
        self._threads = threads
        register_providers(manifest)
        self._front = self._session(manifest.components["front"].file)
        self._stitch = self._session(manifest.components["stitch"].file)
        self._encoder: tuple[str, PackageSession] | None = None

    def tile(self, image: np.ndarray, *, compress: bool, max_visual_tokens: int | None = None) -> Tiled:
        """Cut an image into tiles.

        Args:
            image: uint8 `[height, width, 3]`.
            compress: whether the resolution compressor chooses the scale.
            max_visual_tokens: bound for this image; the package's when None.

        Raises:
            UserError: the bound is below 1 or beyond any context, or the package's graph cannot be run.
        """
        limit = self._tiles.max_visual_tokens if max_visual_tokens is None else max_visual_tokens
        if not 1 <= limit <= _MOST_TOKENS:
            cause = f"{limit} visual tokens of an image, and 1 to {_MOST_TOKENS} are possible"
            raise UserError("request.max_visual_tokens", cause, "ask for a number within these")
        asked = compress and self._tiles.resolution_compressor
        feeds = {
            "image": image,
            "scale": np.array([_ASK_COMPRESSOR if asked else _FULL_SIZE], np.float32),
            "max_visual_tokens": np.array([limit], np.int64),
        }
        tiles, grid, scale = self._front.run(["pixel_values", "grid", "used_scale"], feeds)
        tiled = Tiled(tiles, int(grid[0]), int(grid[1]), float(scale[0]))
        if min(tiled.rows, tiled.columns) < 1 or tiled.visual_tokens > _MOST_TOKENS:
            raise lying(self._front.file, f"it makes {tiled.rows} rows of {tiled.columns} visual tokens of an image")
        return tiled

    def encode(self, tiled: Tiled, encoder: str) -> np.ndarray:
        """Visual tokens float32 `[rows * columns, hidden]` in raster order.

        Raises:
            UserError: the package has no such encoder, or a graph cannot be run.
        """
        side = -(-self._tiles.tile_size // self._tiles.cell_size)
        if tiled.visual_tokens > len(tiled.tiles) * side * side:
            size = f"{tiled.rows} rows of {tiled.columns} visual tokens"
            raise lying(self._front.file, f"it cuts an image into {len(tiled.tiles)} tiles, and says they are {size}")
        session = self._encoder_session(encoder)
        fixed = session.get_inputs()[0].shape[0]  # a number where an NPU's compiler wants one
        batch = fixed if isinstance(fixed, int) else self._tile_batch
        starts = range(0, len(tiled.tiles), batch)
        parts = [session.run(["tile_features"], {"pixel_values": tiled.tiles[i : i + batch]})[0] for i in starts]
        grid = np.array([tiled.rows, tiled.columns], np.int64)
        feeds = {"tile_features": np.concatenate(parts), "grid": grid}
        features: np.ndarray = self._stitch.run(["image_features"], feeds)[0]
        if len(features) != tiled.visual_tokens:
            raise lying(self._stitch.file, f"it gives {len(features)} visual tokens of {tiled.visual_tokens}")
        return features

    def choose(self, encoder: str, visual_tokens: int) -> str:
        """The encoder for a request: as asked, or by the package's policy for "auto".

        Raises:
            UserError: the package has no such encoder.
        """
        encoders: Mapping[str, str] = self._manifest.encoders
        if encoder == "auto":
            return self._policy.choose(visual_tokens)
        if encoder not in encoders:
            raise UserError(
                "request.encoder", f"the package has no encoder {encoder!r}", nearest(encoder, [*encoders, "auto"])
            )
        return encoder

    def _encoder_session(self, encoder: str) -> PackageSession:
        if self._encoder is None or self._encoder[0] != encoder:
            self._encoder = None  # free the other one first
            self._encoder = (encoder, self._session(self._manifest.encoders[encoder]))
        return self._encoder[1]

    def _session(self, file: str) -> PackageSession:
        return open_component(self._directory, self._manifest.component_in(file), self._threads)
