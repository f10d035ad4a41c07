"""The stages of a package, each a function of the values before it; `hvlc.tracing.package` puts them in a row."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from hvlc.graphs.builder import POSITIONS
from hvlc.graphs.states import PAST, empty_shape
from hvlc.opening.sessions import PackageSession
from hvlc.results import trace_points
from hvlc.results.trace_points import Question, Values
from hvlc.runtime.fixed import DTYPES
from hvlc.runtime.generation import LanguageModel
from hvlc.runtime.positions import grid_positions
from hvlc.runtime.vision import Seen
from hvlc.tracing.parts import Part, Precision
from hvlc.weights.rotation import Rotation

TILE_BATCH = 4  # tiles per run of an encoder
PIXELS, EMBEDDINGS = "pixel_values", "inputs_embeds"

#: The values that a stage makes of those before it.
Run = Callable[..., dict[str, np.ndarray]]


class Stage(ABC):
    """A stage of a package.

    Attributes:
        name: `hvlc.results.trace_points` has them.
        before: name of the value that it adds to, for a layer; "" where it makes something new.
        steps: whether it runs one token after another as well.
        detail: what is to be said of how it was run.
    """

    name: str
    before: str = ""
    steps: bool = False
    detail: str = ""

    @property
    def label(self) -> str:
        """Name of the stage in results."""
        return self.name

    @property
    def precision(self) -> Precision:
        """Precision of the stage."""
        return Precision()

    @property
    def part(self) -> Part | None:
        """Part of a graph that the stage runs; None: not a part of one graph."""
        return None

    @abstractmethod
    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open what it runs on; a run takes a trace's values and returns the stage's own."""


@dataclass(frozen=True)
class Basis:
    """The basis of a residual stream.

    Attributes:
        rotation: None where it is the checkpoint's.
        inside: whether the stream is rotated from the first layer on only, not what enters it.
    """

    rotation: Rotation | None
    inside: bool

    def into(self, name: str, values: np.ndarray) -> np.ndarray:
        """A value of a stage as the package has it."""
        return values @ self._matrix if self._turns(name) else values

    def back(self, name: str, values: np.ndarray) -> np.ndarray:
        """A value of a stage as the checkpoint has it."""
        return values @ self._matrix.T if self._turns(name) else values

    def _turns(self, name: str) -> bool:
        entering = (trace_points.PROJECTOR, trace_points.STITCHING, trace_points.EMBEDDING, trace_points.MERGE)
        return self.rotation is not None and not (self.inside and name in entering)

    @cached_property
    def _matrix(self) -> np.ndarray:
        if self.rotation is None:
            raise ValueError("there is no rotation")
        return self.rotation.matrix().read()


#: Basis of the checkpoint.
SAME = Basis(None, inside=False)


#: Function to the front graph's outputs for a question's images, at scales that are given or as the question says.
See = Callable[[Question, np.ndarray | None], list[Seen]]


class Tokenization(Stage):
    """The prompt through the package's template and tokenizer, with what the front graph says for its images.

    Args:
        question: resolved.
        engine: opens what has the tokenizer.
        see: runs the front graph.
    """

    name = trace_points.TOKENIZATION

    def __init__(self, question: Question, engine: Callable[[], LanguageModel], see: See) -> None:
        self._question, self._engine, self._see = question, engine, see

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open the tokenizer."""
        engine = self._engine()

        def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
            seen = self._see(self._question, values.get(trace_points.RESOLUTION)) if self._question.images else []
            return {self.name: engine.prompt_ids(self._question.prompt, seen).astype(np.int64)}

        yield run


class _Front(Stage):
    """A stage of the front graph.

    Args:
        question: resolved.
        see: runs the front graph.
    """

    def __init__(self, question: Question, see: See) -> None:
        self._question, self._see = question, see

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Nothing to open: the package's vision half is."""

        def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
            return {self.name: self._made(values)}

        yield run

    @abstractmethod
    def _made(self, values: Values) -> np.ndarray:
        """The stage's value."""


class Resolution(_Front):
    """The scale that the resolution compressor chooses, within the bound of visual tokens."""

    name = trace_points.RESOLUTION

    def _made(self, values: Values) -> np.ndarray:
        return np.array([seen.scale for seen in self._see(self._question, None)], np.float32)


class Preprocessing(_Front):
    """Images at given scales to normalized pieces.

    Args:
        question: resolved.
        see: runs the front graph.
        is_free: whether each image has a piece of its own size.
    """

    name = trace_points.PREPROCESSING

    def __init__(self, question: Question, see: See, *, is_free: bool) -> None:
        super().__init__(question, see)
        self._is_free = is_free

    def _made(self, values: Values) -> np.ndarray:
        seen = self._see(self._question, values[trace_points.RESOLUTION])
        if self._is_free:
            return trace_points.joined_pixels([piece for image in seen for piece in single_pieces(image)])
        return np.concatenate([image.pieces for image in seen])


class _PartStage(Stage):
    """A stage that is a part of a graph."""

    def __init__(self, name: str, part: Part, basis: Basis = SAME) -> None:
        self.name = name
        self._part, self._basis = part, basis

    @property
    def precision(self) -> Precision:
        """Precision of the part."""
        return self._part.precision

    @property
    def part(self) -> Part | None:
        """Part of a graph that the stage runs."""
        return self._part

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open the part."""
        with self._part.opened() as session:

            def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
                return {self.name: self._basis.back(self.name, self._made(session, values, stepwise=stepwise))}

            yield run

    @abstractmethod
    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        """The stage's value in the package's basis."""

    def _given(self, name: str, values: Values) -> np.ndarray:
        """A value in the package's basis."""
        return self._basis.into(name, values[name])


class Tiles(_PartStage):
    """A part of a vision encoder, over batches of tiles."""

    def __init__(self, name: str, source: str, part: Part, basis: Basis = SAME, *, residual: bool = False) -> None:
        super().__init__(name, part, basis)
        self._source = source
        self.before = source if residual else ""

    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        return run_tiles(session, values[self._source])


@dataclass(frozen=True)
class Shapes:
    """Sizes of the pieces of a question's images, some of which have a size of their own.

    Attributes:
        question: resolved.
        see: runs the front graph.
    """

    question: Question
    see: See

    def seen(self, values: Values) -> list[Seen]:
        """The images after the front graph."""
        return self.see(self.question, values[trace_points.RESOLUTION])

    def pictures(self, values: Values) -> list[np.ndarray]:
        """Pixels of each piece of a trace, float32 `[1, 3, H, W]`."""
        sizes = [piece.shape for image in self.seen(values) for piece in single_pieces(image)]
        ends = np.cumsum([height * width for *_, height, width in sizes])
        parts = np.split(values[trace_points.PREPROCESSING], ends[:-1], axis=-1)
        return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]

    def shares(self, joined: np.ndarray, values: Values) -> list[np.ndarray]:
        """Parts of values `[1, n, ...]` for each piece, by its pixels; the pieces lie one after the other."""
        areas = np.cumsum([piece.size for image in self.seen(values) for piece in single_pieces(image)])
        return np.split(joined, areas[:-1] * joined.shape[1] // areas[-1], axis=1)

    def by_part(self, joined: np.ndarray, values: Values) -> list[list[np.ndarray]]:
        """Shares for each image, by its parts (`Seen.parts`), float32 `[pieces, n, ...]`."""
        shares = iter(self.shares(joined, values))
        return [
            [np.concatenate(list(islice(shares, len(part)))) for part in image.parts] for image in self.seen(values)
        ]


def single_pieces(image: Seen) -> list[np.ndarray]:
    """Each piece of an image alone, float32 `[1, 3, H, W]`."""
    return [piece[None] for part in image.parts for piece in part]


class Pictures(_PartStage):
    """A part of a vision encoder that takes pieces of any size, one after another.

    Args:
        name: of the stage.
        sources: names of the values that enter it, by the names of the part's inputs; the pixels are beside them.
        part: of the encoder.
        shapes: of the images.
        basis: of what it makes.
        residual: whether it adds to the one value that enters it.
    """

    def __init__(
        self,
        name: str,
        sources: Mapping[str, str],
        part: Part,
        shapes: Shapes,
        basis: Basis = SAME,
        *,
        residual: bool = False,
    ) -> None:
        super().__init__(name, part, basis)
        self._sources, self._shapes = sources, shapes
        self.before = next(iter(sources.values())) if residual else ""

    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        pictures = self._shapes.pictures(values)
        given = {name: self._shapes.shares(values[source], values) for name, source in self._sources.items()}
        wanted, made = {v.name for v in session.get_inputs()}, []
        for index, picture in enumerate(pictures):
            feeds = {PIXELS: picture, **{name: shares[index] for name, shares in given.items()}}
            outputs = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
            made.append(np.concatenate(outputs, -1))
        return np.concatenate(made, 1)


def run_tiles(session: PackageSession, given: np.ndarray) -> np.ndarray:
    """A graph over `[tiles, ...]`, as many at a time as it takes."""
    taken = session.get_inputs()[0]
    fixed = taken.shape[0] if taken.shape else None  # inside a graph, a shape need not be known
    batch = fixed if isinstance(fixed, int) else TILE_BATCH
    starts = range(0, len(given), batch)
    return np.concatenate([session.run(None, {taken.name: given[i : i + batch]})[0] for i in starts])


class Stitching(_PartStage):
    """The pieces of each image to its visual tokens, image after image."""

    def __init__(self, question: Question, see: See, part: Part, basis: Basis, *, is_free: bool) -> None:
        super().__init__(trace_points.STITCHING, part, basis)
        self._question, self._see, self._is_free = question, see, is_free

    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        features, made = self._given(trace_points.PROJECTOR, values), []
        if trace_points.TAPS in values:
            features = np.concatenate([features, values[trace_points.TAPS]], -1)
        images = self._see(self._question, values[trace_points.RESOLUTION])
        if self._is_free:
            parts = Shapes(self._question, self._see).by_part(features, values)
        else:
            parts = [[tiles] for tiles in np.split(features, np.cumsum([len(seen.pieces) for seen in images])[:-1])]
        for seen, mine in zip(images, parts, strict=True):
            made.append(session.run(None, seen.merger_feeds(mine))[0])
        return np.concatenate(made)


class Embedding(_PartStage):
    """Rows of the table; placeholders of images are looked up as another token is, so that no image is needed."""

    def __init__(self, part: Part, basis: Basis, image: int | None = None) -> None:
        super().__init__(trace_points.EMBEDDING, part, basis)
        self._image = image

    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        ids = trace_points.read_ids(values)
        if self._image is None:
            taken = session.get_inputs()[0]
            return session.run(None, {taken.name: ids[None].astype(DTYPES[taken.type])})[0][0]
        other = 0 if self._image else 1
        width = session.get_inputs()[1].shape[1]
        feeds = {
            "input_ids": np.where(ids == self._image, other, ids)[None],
            "image_features": np.zeros((0, width), np.float32),
        }
        return session.run(None, feeds)[0][0]


class Merge(_PartStage):
    """Visual tokens in the places of image placeholders; the other rows are those that it was given.

    The graph looks its tokens up itself, so what they add to a given row is taken out again: what remains is where
    the visual tokens went.
    """

    def __init__(self, part: Part, basis: Basis, image: int) -> None:
        super().__init__(trace_points.MERGE, part, basis)
        self._image = image

    @property
    def precision(self) -> Precision:
        """Precision of moving values: the table is the stage before."""
        return Precision()

    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        ids = trace_points.read_ids(values)
        features, given = self._given(trace_points.STITCHING, values), self._given(trace_points.EMBEDDING, values)
        feeds = {"input_ids": ids[None], "image_features": features}
        merged: np.ndarray = session.run(None, feeds)[0][0]
        feeds["image_features"] = np.zeros_like(features)
        looked_up: np.ndarray = session.run(None, feeds)[0][0]
        text = ids != self._image
        return np.where((text & (merged == looked_up).all(-1))[:, None], given, merged)


@dataclass(frozen=True)
class Beside:
    """Inputs of a decoder's layers besides the residual stream: positions in grids, features of images.

    Attributes:
        shapes: of the images. None: the question has none.
        image: placeholder of a visual token. None: the package sees nothing.
    """

    shapes: Shapes | None
    image: int | None

    def positions(self, values: Values) -> np.ndarray:
        """int64 `[3, positions]`."""
        ids = trace_points.read_ids(values)
        grids = [image.grid for image in self.shapes.seen(values)] if self.shapes else []
        return grid_positions(ids, -1 if self.image is None else self.image, grids)

    def embeddings(self, values: Values) -> np.ndarray:
        """float32 `[positions, width]`: what enters the decoder."""
        return values[trace_points.MERGE if trace_points.MERGE in values else trace_points.EMBEDDING]

    def rows(self, wanted: Container[str], values: Values) -> "Rows":
        """Rows of all positions that a part asks for."""
        positions = self.positions(values)[:, None] if POSITIONS in wanted else None
        return Rows(positions, self.embeddings(values)[None] if EMBEDDINGS in wanted else None)


@dataclass(frozen=True)
class Rows:
    """Inputs of a layer besides the residual stream, at all positions.

    Attributes:
        positions: int64 `[3, 1, n]`. None: it is given none.
        embeddings: float32 `[1, n, width]`. None: it does not read them again.
    """

    positions: np.ndarray | None
    embeddings: np.ndarray | None

    def between(self, start: int, end: int) -> dict[str, np.ndarray]:
        """The graph's inputs for some positions."""
        found = {} if self.positions is None else {POSITIONS: self.positions[..., start:end]}
        return found if self.embeddings is None else found | {EMBEDDINGS: self.embeddings[:, start:end]}


class DecoderLayer(_PartStage):
    """A decoder layer: over all positions at once, or as an answer is made, one token after another with a cache."""

    steps = True

    def __init__(self, index: int, source: str, part: Part, basis: Basis, beside: "Beside") -> None:
        super().__init__(trace_points.decoder_layer(index), part, basis)
        self.before, self._beside = source, beside

    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        given = self._given(self.before, values)[None]
        prompt = len(values[trace_points.TOKENIZATION])
        ends = [prompt, *range(prompt + 1, given.shape[1] + 1)] if stepwise else [given.shape[1]]
        stream, *more = session.get_inputs()
        cache = [value for value in more if value.name.startswith(PAST)]
        rows = self._beside.rows({value.name for value in more}, values)
        past = [np.zeros(empty_shape(v.shape), DTYPES[v.type]) for v in cache]
        made, start = [], 0
        for end in ends:
            feeds = {stream.name: given[:, start:end], "attention_mask": np.ones((1, end), np.int64)}
            feeds |= rows.between(start, end)
            out, *past = session.run(None, feeds | {v.name: p for v, p in zip(cache, past, strict=True)})
            made.append(out[0])
            start = end
        return np.concatenate(made)


class Head(_PartStage):
    """Last norm and logits."""

    def __init__(self, source: str, part: Part, basis: Basis) -> None:
        super().__init__(trace_points.HEAD, part)
        self._source, self._of = source, basis

    def _made(self, session: PackageSession, values: Values, *, stepwise: bool) -> np.ndarray:
        given = self._of.into(self._source, values[self._source])[trace_points.head_start(values) :]
        return session.run(None, {session.get_inputs()[0].name: given[None]})[0][0]
