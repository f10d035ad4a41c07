"""Pieces on their way through an encoder: equal ones run once, and images that were encoded before not at all.

A run of an encoder over a batch gives each piece what a run over it alone gives, bit for bit, where no node of the
graph looks across the batch (`hvlc.opening.graphs.mixes_batch`): kernels make each row of a product of that row alone,
in one order of summation. So which pieces share a batch, and how many, changes nothing, and leaving repeated ones out
does not either. docs/vision.md says on what this was shown.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from hvlc.opening.sessions import PackageSession, lying


@dataclass(frozen=True)
class TileCount:
    """Numbers of pieces of a request's images.

    Attributes:
        total: of all images.
        distinct: that differ from each other. None: they were not compared.
        encoded: that an encoder ran over.
    """

    total: int
    distinct: int | None
    encoded: int


@dataclass
class RequestPieces:
    """Features of the pieces of one request, by the digest of each piece.

    Attributes:
        reuse: whether equal pieces run once.
        encoded: number of pieces that an encoder ran over.
    """

    reuse: bool
    encoded: int = 0
    _made: dict[bytes, np.ndarray] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=count)

    def encode(self, session: PackageSession, pieces: np.ndarray, digests: Sequence[bytes], batch: int) -> np.ndarray:
        """Features of pieces of one shape.

        Args:
            session: of the encoder for this shape.
            pieces: float32 `[n, 3, H, W]`.
            digests: of each piece; of no meaning without reuse.
            batch: pieces per run of the encoder.

        Returns:
            float32 `[n, tokens, width]`.

        Raises:
            SessionError: the encoder cannot be run, or gives other features than one piece's for each.
        """
        keys = digests if self.reuse else [next(self._numbers).to_bytes(8, "big") for _ in pieces]
        missing = {key: index for index, key in reversed([*enumerate(keys)]) if key not in self._made}
        order = sorted(missing.values())
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            rows = session.run(["tile_features"], {"pixel_values": _rows(pieces, chosen)})[0]
            if len(rows) != len(chosen):
                raise lying(session.file, f"it gives features of {len(rows)} pieces for {len(chosen)}")
            self._made.update((keys[index], row) for index, row in zip(chosen, rows, strict=True))
        self.encoded += len(order)
        found = [self._made[key] for key in keys]
        if len({row.shape for row in found}) > 1:
            raise lying(session.file, "it gives pieces of one shape different numbers of features")
        return np.stack(found)


def _rows(pieces: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Pieces by ascending index; neighbours are not copied."""
    first, end = chosen[0], chosen[-1] + 1
    return pieces[first:end] if end - first == len(chosen) else pieces[list(chosen)]


def piece_digests(pieces: np.ndarray) -> list[bytes]:
    """SHA-256 of the shape and the bytes of each piece, float32 `[n, 3, H, W]`."""
    shape = repr(pieces.shape[1:]).encode()
    return [hashlib.sha256(shape + np.ascontiguousarray(piece).tobytes()).digest() for piece in pieces]


class FeatureCache:
    """Visual tokens of images that were encoded before, the least recently used dropped first.

    Args:
        most_bytes: bound of the features that are kept; 0 keeps none.

    Attributes:
        hits: number of images that were found.
        misses: number of images that were not.
        used: bytes of the features that are kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.hits = self.misses = self.used = 0
        self._kept: OrderedDict[tuple[str, bytes], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, file: str, image: bytes) -> np.ndarray | None:
        """Visual tokens of an image, not to be written to; None where they are not kept.

        Args:
            file: of the encoder.
            image: digest of what the front graph made of the image.
        """
        found = self._kept.get((file, image))
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end((file, image))
        return found

    def put(self, file: str, image: bytes, features: np.ndarray) -> None:
        """Keep visual tokens, unless they alone exceed the bound."""
        if features.nbytes > self.most_bytes:
            return
        replaced = self._kept.pop((file, image), None)
        self.used += features.nbytes - (0 if replaced is None else replaced.nbytes)
        kept = features.view()
        kept.flags.writeable = False
        self._kept[file, image] = kept
        while self.used > self.most_bytes:
            self.used -= self._kept.popitem(last=False)[1].nbytes
