"""Options of commands that run vision encoders; none of them changes an answer."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from hvlc.cli.options import TILE_BATCH, Size


def vision_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--tile-batch`, `--no-tile-reuse` and `--feature-cache`.

    Args:
        command: takes them as `vision`; None: none is given.
    """

    @click.option("--tile-batch", type=TILE_BATCH, help="Tiles per encoder run (default: the package's).")
    @click.option("--no-tile-reuse", is_flag=True, help="Encode equal tiles of a request again.")
    @click.option(
        "--feature-cache", type=Size(least=0), help="Memory for visual tokens of earlier images (default: 64MiB)."
    )
    @wraps(command)
    def configured(
        *arguments: Any, tile_batch: int | None, no_tile_reuse: bool, feature_cache: int | None, **options: Any
    ) -> None:
        from hvlc.runtime.settings import USUAL, VisionSettings

        kept = USUAL.feature_cache if feature_cache is None else feature_cache
        given = VisionSettings(tile_batch, not no_tile_reuse, kept)
        command(*arguments, vision=None if given == USUAL else given, **options)

    return configured
