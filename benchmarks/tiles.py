"""Share of tiles that equal another, of the pages of PDF files.

    python benchmarks/tiles.py DIRECTORY [--documents 40] [--pages 4] [--dpi 150] [--tiles 256 384 512] [--json]

DIRECTORY is searched for PDF files, which `pdftoppm` (Debian's poppler-utils) renders. Of each of some documents, drawn
by a fixed seed, the first pages are looked at: as rendered; with white margins of an eighth of the page on each side,
as scanning software fills them; and as a scan: grey paper, the same margins, noise, another on every page. Front graphs
of three image rules cut them; the two that resize a page to whole tiles cut it alike whatever a tile's size is, and
have the released one. A tile is saved where another one of the same image has its bytes, or of the same request of all
the document's pages. Intervals are bootstrap percentiles over documents, 95 %.

Pages of a Debian package: apt-get download texlive-latex-recommended-doc && dpkg -x *.deb DIRECTORY
"""

import argparse
import io
import json
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from PIL import Image
from rich.console import Console
from rich.table import Table

from hvlc.evaluation.metrics import share
from hvlc.graphs.sessions import open_session
from hvlc.imaging.multiple_tiles import MultipleTiles, OverviewTokens
from hvlc.imaging.raster_tiles import RasterTiles
from hvlc.imaging.ratio_tiles import RatioTiles
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import ImageRule, Normalization
from hvlc.runtime.tiles import piece_digests

_SEED = 0
_PAPER, _NOISE, _MARGIN = 244, 2.0, 8  # grey level, its deviation, and the part of a side that a margin is
_LONGEST = 4  # tiles of the longest edge of a page by the overview rule, as SmolVLM has them


def rules(tiles: Sequence[int]) -> dict[tuple[str, int], ImageRule]:
    """Image rules by name and size of a tile in pixels; their ids are of no meaning here."""
    half, names = Normalization((0.5,) * 3, (0.5,) * 3), ((0,) * _LONGEST,) * _LONGEST
    tokens = OverviewTokens(0, (1,), (2,), names, (3,), (4,))
    return {
        **{("raster (HyperVL)", tile): RasterTiles(tile, 32, half, 0, 1) for tile in tiles},
        ("overview (SmolVLM)", 512): MultipleTiles(512, _LONGEST * 512, 64, Resampling("lanczos"), half, tokens),
        ("ratio (InternVL)", 448): RatioTiles(448, 1, 12, 256, Resampling("bicubic"), half, (1,), 0, (2,)),
    }


def cutter(rule: ImageRule) -> Callable[[np.ndarray], list[bytes]]:
    """Function to the digests of the pieces of an image, uint8 `[height, width, 3]`."""
    model = rule.front()
    RemoveUnusedNodesPass()(model)
    session = open_session(ir.to_proto(model).SerializeToString())
    limit = np.array([rule.most_visual_tokens], np.int64)

    def cut(image: np.ndarray) -> list[bytes]:
        feeds = {"image": image, "scale": np.ones(1, np.float32), "max_visual_tokens": limit}
        return piece_digests(session.run(["pixel_values"], feeds)[0])

    return cut


def with_margins(page: np.ndarray) -> np.ndarray:
    """The page with a white margin around it."""
    high, wide = (side // _MARGIN for side in page.shape[:2])
    return np.pad(page, ((high, high), (wide, wide), (0, 0)), constant_values=255)


class Scanner:
    """Makes scans of pages: with margins, on paper that is not white, with noise that never comes again."""

    def __init__(self) -> None:
        self._noise = np.random.default_rng(_SEED)

    def __call__(self, page: np.ndarray) -> np.ndarray:
        """The scan of a page."""
        shaded = with_margins(page).astype(np.float32) * np.float32(_PAPER / 255)
        noise = self._noise.normal(0, _NOISE, shaded.shape[:2]).astype(np.float32)[..., None]
        return (shaded + noise).round().clip(0, 255).astype(np.uint8)


def conditions() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Changes of a page, by name."""
    return {"as rendered": lambda page: page, "white margins": with_margins, "scan with noise": Scanner()}


def rendered(path: Path, page: int, dpi: int) -> np.ndarray | None:
    """A page uint8 `[height, width, 3]`, counted from 1; None: the document has fewer, or cannot be read."""
    command = ["pdftoppm", "-r", str(dpi), "-f", str(page), "-l", str(page), str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        return None
    return np.asarray(Image.open(io.BytesIO(done.stdout)).convert("RGB"))


def sampled(directory: Path, documents: int, pages: int, dpi: int) -> Iterator[list[np.ndarray]]:
    """Pages of documents: all of one drawn document at a time."""
    paths = sorted(directory.rglob("*.pdf"))
    random.Random(_SEED).shuffle(paths)
    for path in paths[:documents]:
        found = [rendered(path, number, dpi) for number in range(1, pages + 1)]
        if kept := [page for page in found if page is not None]:
            yield kept


@dataclass(frozen=True)
class Saved:
    """Share of tiles that equal another.

    Attributes:
        rule: by which pages are cut.
        tile: side of a tile in pixels.
        pages: what was done to the pages.
        together: "page" or "request": among which tiles equal ones are found.
        documents: how many.
        tiles: of all pages.
        value: the share.
        low: end of its 95 % interval.
        high: the other end.
    """

    rule: str
    tile: int
    pages: str
    together: str
    documents: int
    tiles: int
    value: float
    low: float
    high: float


Key = tuple[str, int, str]


def counted(documents: Iterator[list[np.ndarray]], tiles: Sequence[int]) -> dict[Key, list[list[list[bytes]]]]:
    """Digests of the tiles of each page of each document, by rule, tile and condition."""
    cutters = {key: cutter(rule) for key, rule in rules(tiles).items()}
    changes = conditions()
    found: dict[Key, list[list[list[bytes]]]] = {(*key, name): [] for key in cutters for name in changes}
    for pages in documents:
        for condition, change in changes.items():
            changed = [change(page) for page in pages]
            for key, cut in cutters.items():
                found[*key, condition].append([cut(page) for page in changed])
    return found


def shares(found: Mapping[Key, list[list[list[bytes]]]]) -> Iterator[Saved]:
    """Shares of all that was counted, within pages and within requests."""
    for (rule, tile, condition), documents in found.items():
        tiles = [sum(map(len, pages)) for pages in documents]
        distinct = {
            "page": [sum(len(set(page)) for page in pages) for pages in documents],
            "request": [len(set().union(*pages)) for pages in documents],
        }
        for together, left in distinct.items():
            score = share([all_ - some for all_, some in zip(tiles, left, strict=True)], tiles)
            ends = (score.value, score.low, score.high)
            yield Saved(rule, tile, condition, together, len(documents), sum(tiles), *ends)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--dpi", type=int, default=150)
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 384, 512])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pages = sampled(options.directory, options.documents, options.pages, options.dpi)
    found = list(shares(counted(pages, options.tiles)))
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    table = Table("rule", "tile", "pages", "tiles", "saved within a page, %", "within a request, %")
    for page, request in zip(found[::2], found[1::2], strict=True):
        cells = [f"{100 * one.value:.1f} ({100 * one.low:.1f}–{100 * one.high:.1f})" for one in (page, request)]
        table.add_row(page.rule, str(page.tile), page.pages, str(page.tiles), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
