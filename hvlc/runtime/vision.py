"""The vision half of a package: front graph, the chosen encoder over batches of pieces, merger.

Nothing here knows a family: the front graph answers for it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hvlc.errors import UserError, nearest
from hvlc.manifest.manifest import Manifest
from hvlc.manifest.policy import Circumstances, ImageStatistics
from hvlc.opening.graphs import load_graph, mixes_batch
from hvlc.opening.sessions import PackageSession, lying
from hvlc.runtime.providers import open_component, register_providers
from hvlc.runtime.settings import TILE_BATCH, USUAL, VisionSettings
from hvlc.runtime.tiles import FeatureCache, RequestPieces, TileCount, piece_digests

#: Output of a front graph, as `hvlc.imaging.rule` has it, which imports onnx_ir.
OVERVIEW = "overview"
_ASK_COMPRESSOR, FULL_SIZE = 0.0, 1.0  # scales that a front graph is given
#: A caller who says nothing for the policy.
UNSTATED = Circumstances()
_MOST_TOKENS = 2**24  # of an image, whatever a graph says
#: Pixels of an image, twice those of 8192 x 8192, and of a side: beyond it float32 has no whole numbers.
_MOST_PIXELS, _LONGEST = 2**27, 2**24


@dataclass(frozen=True)
class Seen:
    """An image after the front graph.

    Attributes:
        pieces: float32 `[n, 3, H, W]`, an encoder's inputs.
        ids: int64 `[m]`, everything that stands for the image in the prompt.
        grid: int64 `[2]`, rows and columns that the merger reads.
        scale: scale per side that was used.
        visual_tokens: placeholders among the ids.
        overview: float32 `[1, 3, h, w]`, one more piece, of a shape of its own. None: the rule has none.
        size: height and width in pixels of the image as it was given. None: the front graph's outputs alone are known.
    """

    pieces: np.ndarray
    ids: np.ndarray
    grid: np.ndarray
    scale: float
    visual_tokens: int
    overview: np.ndarray | None = None
    size: tuple[int, int] | None = None

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        """Inputs of an encoder, float32 `[n, 3, H, W]`: pieces of one shape, if there are any; the overview."""
        pieces = (self.pieces,) if len(self.pieces) else ()
        return pieces if self.overview is None else (*pieces, self.overview)

    @property
    def count(self) -> int:
        """Number of pieces, the overview included."""
        return sum(len(part) for part in self.parts)

    @classmethod
    def of(cls, made: Mapping[str, np.ndarray], token: int) -> "Seen":
        """Image from a front graph's outputs, by their names.

        Args:
            made: the outputs.
            token: id of a visual token.
        """
        pieces, ids, grid, used = (made[name] for name in ("pixel_values", "image_ids", "grid", "used_scale"))
        return cls(pieces, ids, grid, float(used[0]), int((ids == token).sum()), made.get(OVERVIEW))

    def merger_feeds(self, features: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The merger's inputs.

        Args:
            features: float32 `[pieces, tokens, width]` of each part, as an encoder gives them.
        """
        feeds = {"tile_features": features[0], "grid": self.grid}
        if self.overview is None:
            return feeds
        if not len(self.pieces):
            feeds["tile_features"] = np.zeros((0, *features[0].shape[1:]), np.float32)
        return feeds | {"overview_features": features[-1]}


@dataclass(frozen=True)
class Encoded:
    """A request's images after the encoder.

    Attributes:
        features: float32 `[visual tokens, hidden]` of each image, in the order of their placeholders.
        tiles: numbers of their pieces.
    """

    features: tuple[np.ndarray, ...]
    tiles: TileCount


class Vision:
    """Sessions are opened on demand; at most one encoder is resident.

    Args:
        directory: the package.
        manifest: its manifest.
        settings: how encoders run.
        threads: threads per session; 0 lets onnxruntime choose.

    Attributes:
        images: how images become visual tokens.
        cache: visual tokens of earlier images.

    Raises:
        UserError: the package is of a kind that sees no images.
    """

    def __init__(self, directory: Path, manifest: Manifest, settings: VisionSettings = USUAL, threads: int = 0) -> None:
        if manifest.images is None or manifest.policy is None:
            raise UserError("package.kind", f"{directory} sees no images", "name a vision-language package")
        self.images, self._policy = manifest.images, manifest.policy
        self._directory = directory
        self._manifest = manifest
        self._settings = settings
        self.cache = FeatureCache(settings.feature_cache)
        self._threads = threads
        register_providers(manifest)
        self._front = self._session(manifest.components["front"].file)
        self._stitch = self._session(manifest.components["stitch"].file)
        self._encoder: tuple[str, PackageSession] | None = None
        self._mixing: dict[str, bool] = {}

    def see(
        self,
        image: np.ndarray,
        *,
        compress: bool,
        max_visual_tokens: int | None = None,
        scale: float = FULL_SIZE,
        question: Sequence[int] = (),
    ) -> Seen:
        """Run the front graph over an image.

        Args:
            image: uint8 `[height, width, 3]`.
            compress: whether the resolution compressor chooses the scale.
            max_visual_tokens: bound for this image; the package's when None.
            scale: scale per side where the compressor does not choose it.
            question: tokens of the question, for a compressor that reads it.

        Raises:
            UserError: the image has no pixels, too many, or is of another kind; the bound is below 1 or beyond any
                context; or the package's graph cannot be run.
        """
        _check_image(image)
        limit = self.images.max_visual_tokens if max_visual_tokens is None else max_visual_tokens
        if not 1 <= limit <= _MOST_TOKENS:
            cause = f"{limit} visual tokens of an image, and 1 to {_MOST_TOKENS} are possible"
            raise UserError("request.max_visual_tokens", cause, "ask for a number within these")
        asked = compress and self.images.resolution_compressor
        feeds = {
            "image": image,
            "scale": np.array([_ASK_COMPRESSOR if asked else scale], np.float32),
            "max_visual_tokens": np.array([limit], np.int64),
        }
        if self.images.question_tokens is not None:
            feeds["question_ids"] = np.array(question[: self.images.question_tokens], np.int64)
        names = ["pixel_values", "image_ids", "grid", "used_scale", *([OVERVIEW] if self.images.overview else [])]
        seen = Seen.of(dict(zip(names, self._front.run(names, feeds), strict=True)), self.images.token)
        self._check(seen, limit)
        return replace(seen, size=image.shape[:2])

    def _check(self, seen: Seen, limit: int) -> None:
        """Refuse an image that makes more tokens than were allowed, and a graph that makes none.

        Raises:
            UserError: the rule has no form as small as the bound, or the graph is not one of a rule.
        """
        if not 1 <= seen.visual_tokens <= _MOST_TOKENS or min(seen.grid.tolist()) < 1:
            made = f"{seen.visual_tokens} visual tokens of {seen.count} pieces in a grid of {seen.grid.tolist()}"
            raise lying(self._front.file, f"it makes {made} of an image")
        if seen.visual_tokens > limit:
            cause = f"the image makes at least {seen.visual_tokens} visual tokens, and {limit} are allowed"
            raise UserError("request.max_visual_tokens", cause, "allow more with --max-visual-tokens")

    def _most_tokens(self, seen: Seen) -> int:
        """Most visual tokens of pieces of these sizes: one for each pixel where nobody says how many."""
        known = self.images.tokens_per_piece
        most = 0 if seen.overview is None else int(seen.overview[0, 0].size)
        return most + len(seen.pieces) * (int(seen.pieces[0, 0].size) if known is None else known)

    def encode(self, images: Sequence[Seen], encoder: str) -> Encoded:
        """Visual tokens of a request's images; each distinct piece runs once, and no image that is still kept.

        Raises:
            UserError: the package has no such encoder, or a graph cannot be run.
        """
        pieces, digests, features = RequestPieces(self._settings.reuse_tiles), set[bytes](), []
        compares = self._settings.reuse_tiles or self._settings.feature_cache > 0
        for seen in images:
            if seen.visual_tokens > self._most_tokens(seen):
                made = f"{seen.visual_tokens} visual tokens of {seen.count} pieces"
                raise lying(self._front.file, f"it makes {made} of an image")
            parts = [piece_digests(part) for part in seen.parts] if compares else []
            digests.update(*parts)
            features.append(self._encoded(seen, encoder, pieces, parts))
        total = sum(seen.count for seen in images)
        return Encoded(tuple(features), TileCount(total, len(digests) if compares else None, pieces.encoded))

    def _encoded(
        self, seen: Seen, encoder: str, pieces: RequestPieces, digests: Sequence[Sequence[bytes]]
    ) -> np.ndarray:
        """Visual tokens of an image, float32 `[visual tokens, hidden]`.

        Args:
            seen: the image.
            encoder: its encoder's name.
            pieces: of the request.
            digests: of the pieces of each part; none where nothing is compared.
        """
        file = self._manifest.encoder_file(encoder, *seen.pieces.shape[2:])
        image = hashlib.sha256(seen.grid.tobytes() + b"".join(map(b"".join, digests))).digest()
        kept = self.cache.get(file, image) if self.cache.most_bytes else None
        if kept is not None:
            return kept
        session = self._encoder_session(file)
        batch = self._batch(session)
        given = digests or [[b""] * len(part) for part in seen.parts]
        encoded = [pieces.encode(session, *part, batch) for part in zip(seen.parts, given, strict=True)]
        features: np.ndarray = self._stitch.run(["image_features"], seen.merger_feeds(encoded))[0]
        if len(features) != seen.visual_tokens:
            raise lying(self._stitch.file, f"it gives {len(features)} visual tokens of {seen.visual_tokens}")
        self.cache.put(file, image, features)
        return features

    @property
    def tile_batch(self) -> int:
        """Pieces per run that are asked for: by the settings, else by the package."""
        return self._settings.tile_batch or self.images.tile_batch or TILE_BATCH

    def _batch(self, session: PackageSession) -> int:
        """Pieces per run: as many as the graph says, one where pieces of a batch would change each other's features."""
        fixed = session.get_inputs()[0].shape[0]  # a number where an NPU's compiler wants one
        if isinstance(fixed, int):
            return fixed
        batch = self.tile_batch
        if session.file not in self._mixing:
            self._mixing[session.file] = mixes_batch(load_graph(self._directory / session.file).graph)
        return 1 if self._mixing[session.file] else batch

    def choose(self, encoder: str, images: Sequence[Seen], stated: Circumstances = UNSTATED) -> str:
        """The encoder for a request: as asked, or by the package's policy for "auto".

        Args:
            encoder: its name, or "auto".
            images: of the request.
            stated: by the caller, for the policy.

        Raises:
            UserError: the package has no such encoder.
        """
        encoders: Mapping[str, str] = self._manifest.encoders
        if encoder == "auto":
            return self._policy.choose(stated, statistics_of(images))
        if encoder not in encoders:
            raise UserError(
                "request.encoder", f"the package has no encoder {encoder!r}", nearest(encoder, [*encoders, "auto"])
            )
        return encoder

    def _encoder_session(self, file: str) -> PackageSession:
        if self._encoder is None or self._encoder[0] != file:
            self._encoder = None  # free the other one first
            self._encoder = (file, self._session(file))
        return self._encoder[1]

    def _session(self, file: str) -> PackageSession:
        return open_component(self._directory, self._manifest.component_in(file), self._threads)


def statistics_of(images: Sequence[Seen]) -> ImageStatistics:
    """Figures of a request's images for a policy.

    Args:
        images: as `Vision.see` gives them.
    """
    if not images:
        return ImageStatistics()
    sizes = [image.size for image in images if image.size]
    return ImageStatistics(
        visual_tokens=sum(image.visual_tokens for image in images),
        pieces=sum(image.count for image in images),
        pixels=max((height * width for height, width in sizes), default=0),
        aspect=max((max(size) / min(size) for size in sizes), default=1.0),
        scale=max(image.scale for image in images),
    )


def _check_image(image: np.ndarray) -> None:
    """Refuse what is not an image, or one that a front graph cannot hold.

    Raises:
        UserError: how it differs.
    """
    kind = f"{image.dtype} {list(image.shape)}"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        cause = f"an image is given as {kind}, and uint8 [height, width, 3] with at least one pixel is read"
        raise UserError("request.image", cause, "convert it to RGB of 8 bits a channel")
    if image.size > 3 * _MOST_PIXELS or max(image.shape) > _LONGEST:
        cause = f"an image is given as {kind}; {_MOST_PIXELS} pixels, and sides of {_LONGEST}, are the most"
        raise UserError("image.too_large", cause, "shrink it first")
