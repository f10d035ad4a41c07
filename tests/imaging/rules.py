"""Every image rule, with the numbers of a released model and with those of a tiny one."""

from hvlc.imaging.bounded_grid import BoundedGrid
from hvlc.imaging.fixed import FixedImage
from hvlc.imaging.fixed_grids import fixed_grids
from hvlc.imaging.multiple_tiles import MultipleTiles, OverviewTokens
from hvlc.imaging.naflex_tiles import NaflexTiles, TileTokens
from hvlc.imaging.native_grid import NativeGrid
from hvlc.imaging.raster_tiles import RasterTiles
from hvlc.imaging.ratio_tiles import RatioTiles
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import ImageRule, Normalization

IMAGE, ROW, END = 7, 8, 9
HALF = Normalization((0.5,) * 3, (0.5,) * 3)


def names(most: int) -> tuple[tuple[int, ...], ...]:
    """Ids of the names of tiles, by row and column."""
    return tuple(tuple(100 + row * most + column for column in range(most)) for row in range(most))


def _overview(tile: int, longest: int, tokens: int) -> MultipleTiles:
    around = OverviewTokens(IMAGE, (1,), (2,), names(-(-min(longest, 4096) // tile)), (3,), (4,))
    return MultipleTiles(tile, longest, tokens, Resampling("lanczos"), HALF, around)


def _ratio(tile: int, most: int, tokens: int) -> RatioTiles:
    return RatioTiles(tile, 1, most, tokens, Resampling("bicubic"), HALF, (1,), IMAGE, (2,))


def _naflex(tile: int, cell: int, least: int, most: int) -> NaflexTiles:
    resampling = Resampling("bilinear", width_first=True, short_weights=True)
    ids = TileTokens(IMAGE, (1,), names(10), (2,), (3,))
    return NaflexTiles(tile, 2, 10, cell, cell // 2, least, most, 2.0, resampling, HALF, ids)


def _native(cell: int, least: int, most: int) -> NativeGrid:
    return NativeGrid(cell, least * cell**2, most * cell**2, Resampling("bicubic"), HALF, IMAGE)


#: Sizes of released models are those of general knowledge.
RELEASED: dict[str, ImageRule] = {
    "hypervl": RasterTiles(256, 32, HALF, IMAGE, ROW),
    "smolvlm": _overview(512, 2048, 64),
    "internvl": _ratio(448, 12, 256),
    "qwen2_5_vl": _native(28, 4, 16384),
    "qwen3_vl": _native(32, 64, 16384),
    "qwen on an NPU": fixed_grids(_native(28, 4, 1280), ((448, 448), (448, 896), (896, 448))),
    "lighton_ocr": BoundedGrid(28, 1540, 1540, Resampling("bicubic"), HALF, IMAGE, (ROW, END)),
    "lfm2_vl": _naflex(512, 32, 64, 256),
    "gemma3": FixedImage(896, 896, 256, Resampling("bilinear"), HALF, (1,), IMAGE, (2,)),
}
TINY: dict[str, ImageRule] = {
    "hypervl": RasterTiles(32, 16, HALF, IMAGE, ROW),
    "smolvlm": _overview(16, 75, 3),
    "internvl": _ratio(16, 6, 4),
    "qwen2_5_vl": _native(8, 1, 60),
    "qwen3_vl": _native(8, 4, 60),
    "qwen on an NPU": fixed_grids(_native(8, 4, 60), ((32, 32), (32, 64), (64, 32))),
    "lighton_ocr": BoundedGrid(8, 96, 64, Resampling("bicubic"), HALF, IMAGE, (ROW, END)),
    "lfm2_vl": _naflex(32, 8, 4, 16),
    "gemma3": FixedImage(32, 32, 4, Resampling("bilinear"), HALF, (1,), IMAGE, (2,)),
}
