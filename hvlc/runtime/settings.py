"""Settings of how a package's encoders run, for whoever opens one."""

from dataclasses import dataclass

#: Bytes of features that are kept for later requests where nothing else is said.
FEATURE_CACHE = 64 << 20
#: Pieces per encoder run where neither the request nor the package says how many.
TILE_BATCH = 4


@dataclass(frozen=True)
class VisionSettings:
    """Settings of how encoders run; none changes what they give.

    Attributes:
        tile_batch: pieces per encoder run; peak memory is set by one batch, whatever the image. None: the package's.
        reuse_tiles: whether equal pieces of a request run once.
        feature_cache: bytes of visual tokens that are kept for images that come again; 0 keeps none.
    """

    tile_batch: int | None = None
    reuse_tiles: bool = True
    feature_cache: int = FEATURE_CACHE


USUAL = VisionSettings()
