"""A package, stage by stage (`hvlc.stages`): each stage as a function of the values before it.

So a stage can be given the package's own values, which is the package as it runs, or another model's, which shows
what that stage alone does differently. One stage's session is open at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from PIL import Image

from hvlc import stages
from hvlc.errors import UserError
from hvlc.manifest import Kind, Manifest
from hvlc.rotation import Rotation
from hvlc.runtime.generation import LanguageModel, VisionLanguageModel
from hvlc.runtime.parts import Graph, Part, Precision, Stream
from hvlc.runtime.vision import Tiled, Vision
from hvlc.stages import Layout, Question, Values

_TILE_BATCH = 4
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}

#: The values that a stage makes of those before it.
Run = Callable[..., dict[str, np.ndarray]]


class Stage(ABC):
    """A stage of a package.

    Attributes:
        name: `hvlc.stages` has them.
        before: name of the value that it adds to, for a layer; "" where it makes something new.
    """

    name: str
    before: str = ""

    @property
    def precision(self) -> Precision:
        """What it computes with."""
        return Precision()

    @property
    def part(self) -> Part | None:
        """What it runs; None for what is no part of one graph."""
        return None

    @abstractmethod
    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open what it runs on; a run takes a trace's values and returns the stage's own."""


class PackageTracer:
    """Takes traces of a package.

    Args:
        directory: what `hvlc build` wrote. Its files are not held against their digests: a damaged package is what
            a trace may be taken for.
        rotation: of the decoder's residual stream, where its recipe asks for one; values are given in the basis of
            the checkpoint all the same.
        prepared: what its recipe did to the float weights before they were stored; "" for nothing.
        threads: of sessions; 0 lets onnxruntime choose.

    Attributes:
        manifest: of the package.
        name: the directory's.
        runs_on: what computes.
        prepared: as given.
        rotated: whether the residual stream has the rotation's basis.

    Raises:
        UserError: no package, one that answers nothing, or one whose graphs cannot be cut.
    """

    runs_on = "onnxruntime CPU"

    def __init__(self, directory: Path, rotation: Rotation | None = None, prepared: str = "", threads: int = 0) -> None:
        self.prepared = prepared
        self.manifest = Manifest.load(directory)
        if self.manifest.kind is Kind.VISION:
            cause = f"{directory} is a vision package, which answers nothing"
            raise UserError("package.kind", cause, "name a language or a vision-language package")
        self.directory, self.name = directory, directory.resolve().name
        self._threads = threads
        self._decoder = Graph(directory, self.manifest.whole_decoder.file, threads)
        self._stream = self._decoder.stream("input_layernorm", "norm")
        self.rotated = rotation is not None and self._stream.uniform
        self._basis = _Basis(rotation if self.rotated else None, self._rotates_inside)

    @property
    def sees(self) -> bool:
        """Whether it takes images."""
        return self.manifest.kind is Kind.VISION_LANGUAGE

    @property
    def _rotates_inside(self) -> bool:
        """Whether the decoder itself changes the basis, before its first layer."""
        return any(node.name == "residual.rotate" for node in self._decoder.graph)

    @cached_property
    def layout(self) -> Layout:
        """Its widths and numbers of layers."""
        towers = {name: self._tower(name)[1] for name in self.manifest.encoders}
        logits = self._decoder.value("logits").shape
        return Layout(
            {name: (stream.width, len(stream.layers)) for name, stream in towers.items()},
            len(self._stream.layers),
            self._stream.width,
            int(str(logits[-1])) if logits is not None else 0,
        )

    def resolved(self, question: Question) -> Question:
        """The question with the encoder that the package's policy chooses.

        Raises:
            UserError: it has no such encoder, or takes no images.
        """
        if not question.images:
            return replace(question, encoder="")
        if not self.sees:
            cause = f"{self.directory} is a {self.manifest.kind} package, and the question has an image"
            raise UserError("request.image", cause, "ask without")
        tokens = int(self.grids(question).prod(-1).sum())
        return replace(question, encoder=self._vision.choose(question.encoder, tokens))

    def grids(self, question: Question) -> np.ndarray:
        """int64 `[images, 2]`: rows and columns of visual tokens that the package makes of a question's images."""
        if not question.images:
            return np.zeros((0, 2), np.int64)
        tiled = [self._vision.tile(image, compress=question.vrc) for image in question.images]
        return np.array([(t.rows, t.columns) for t in tiled], np.int64)

    @cached_property
    def _vision(self) -> Vision:
        return Vision(self.directory, self.manifest, _TILE_BATCH, self._threads)

    def stages(self, question: Question) -> tuple[Stage, ...]:
        """The stages of a resolved question but its answer, in the order in which they run.

        Raises:
            UserError: a graph cannot be cut.
        """
        found: list[Stage] = [_Tokenization(self, question)]
        if question.images:
            found += [_Resolution(self, question), _Preprocessing(self, question), *self._vision_stages(question)]
        return (*found, *self._decoder_stages(seeing=bool(question.images)))

    def trace(self, question: Question) -> Values:
        """The values of all stages of a resolved question, in the order in which they run.

        Raises:
            UserError: the question cannot be asked, or a graph cannot be cut.
        """
        answer, tokens = self.answer(question), self.manifest.tokens
        read = answer if tokens is None else stages.before_placeholder(answer, tokens.image)
        values: dict[str, np.ndarray] = {stages.SAMPLING: read, stages.ANSWER: answer}
        for stage in self.stages(question):
            with stage.opened() as run:
                values |= run(values)
        return stages.in_order(values)

    def answer(self, question: Question) -> np.ndarray:
        """int64 `[tokens]`: what onnxruntime-genai answers greedily; none where none are asked for."""
        if not question.max_new_tokens:
            return np.zeros(0, np.int64)
        answered = self.engine().answer(
            question.prompt,
            [Image.fromarray(image) for image in question.images],
            encoder=question.encoder or "auto",
            vrc=question.vrc,
            max_new_tokens=question.max_new_tokens,
        )
        return np.array(answered.tokens, np.int64)

    def engine(self) -> LanguageModel:
        """The package as it answers; its memory is freed with it."""
        kind = VisionLanguageModel if self.sees else LanguageModel
        return kind(self.directory, verify=False)

    def graph(self, component: str) -> Graph:
        """A graph of the package, by the name of its component."""
        return Graph(self.directory, self.manifest.components[component].file, self._threads)

    def _tower(self, encoder: str) -> tuple[Graph, Stream]:
        graph = Graph(self.directory, self.manifest.encoders[encoder], self._threads)
        return graph, graph.stream("layer_norm1", "post_layernorm")

    def _vision_stages(self, question: Question) -> Iterator[Stage]:
        graph, stream = self._tower(question.encoder)
        ends = [*stream.layers, stream.end]
        first = graph.part(["pixel_values"], [stream.layers[0]])
        yield _Tiles(stages.VISION_EMBEDDINGS, stages.PREPROCESSING, first)
        source = stages.VISION_EMBEDDINGS
        for index, (start, end) in enumerate(pairwise(ends)):
            name = stages.vision_layer(index)
            yield _Tiles(name, source, graph.part([start], [end]), residual=True)
            source = name
        yield _Tiles(stages.POST_NORM, source, graph.part([stream.end], [stream.norm]))
        projector = graph.part([stream.norm], [graph.value("tile_features")])
        yield _Tiles(stages.PROJECTOR, stages.POST_NORM, projector, self._basis)
        stitch = self.graph("stitch")
        laid = stitch.part(["tile_features", "grid"], [stitch.value("image_features")])
        yield _Stitching(laid, self.manifest, self._basis)

    def _decoder_stages(self, *, seeing: bool) -> Iterator[Stage]:
        tokens = self.manifest.tokens
        if tokens is None:
            entry = self._decoder.value("embed_tokens")
            yield _Embedding(self._decoder.part(["input_ids"], [entry]), self._basis)
            source = stages.EMBEDDING
        else:
            graph = self.graph("embedding")
            entry = self._decoder.value("inputs_embeds")
            part = graph.part(["input_ids", "image_features"], [graph.value("inputs_embeds")])
            yield _Embedding(part, self._basis, (tokens.image, tokens.row))
            source = stages.EMBEDDING
            if seeing:
                yield _Merge(part, self._basis, tokens.image)
                source = stages.MERGE
        ends = [entry, *self._stream.layers[1:], self._stream.end]
        for index, (start, end) in enumerate(pairwise(ends)):
            yield _DecoderLayer(index, source, self._layer_part(index, start, end), self._basis)
            source = stages.decoder_layer(index)
        head = self._decoder.part([self._stream.end], [self._decoder.value("logits")])
        yield _Head(source, head, self._basis)

    def _layer_part(self, index: int, start: ir.Value, end: ir.Value) -> Part:
        sides = ("key", "value")
        past = [f"past_key_values.{index}.{side}" for side in sides]
        present = [self._decoder.value(f"present.{index}.{side}") for side in sides]
        return self._decoder.part([start, "attention_mask", *past], [end, *present])


@dataclass(frozen=True)
class _Basis:
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
        entering = (stages.PROJECTOR, stages.STITCHING, stages.EMBEDDING, stages.MERGE)
        return self.rotation is not None and not (self.inside and name in entering)

    @cached_property
    def _matrix(self) -> np.ndarray:
        if self.rotation is None:
            raise ValueError("there is no rotation")
        return self.rotation.matrix().read()


_SAME = _Basis(None, inside=False)


class _Tokenization(Stage):
    """The prompt through the package's template and tokenizer; image placeholders as the grids say."""

    name = stages.TOKENIZATION

    def __init__(self, tracer: PackageTracer, question: Question) -> None:
        self._tracer, self._question = tracer, question

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open the tokenizer."""
        engine = self._tracer.engine()

        def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
            grids = values.get(stages.GRIDS)
            grids = self._tracer.grids(self._question) if grids is None else grids
            tiled = [Tiled(np.zeros(0, np.float32), int(rows), int(columns), 1.0) for rows, columns in grids]
            return {self.name: engine.prompt_ids(self._question.prompt, tiled).astype(np.int64)}

        yield run


class _Front(Stage):
    """A stage of the front graph."""

    def __init__(self, tracer: PackageTracer, question: Question) -> None:
        self._tracer, self._question = tracer, question
        rule = tracer.manifest.tiles
        if rule is None:
            raise UserError("package.kind", f"{tracer.directory} has no tiles", "name a vision-language package")
        self._rule = rule

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open the front graph."""
        names = ["pixel_values", "grid", "used_scale"]
        with self._tracer.graph("front").whole.opened() as session:

            def front(image: np.ndarray, scale: float) -> list[np.ndarray]:
                limit = np.array([self._rule.max_visual_tokens], np.int64)
                feeds = {"image": image, "scale": np.array([scale], np.float32), "max_visual_tokens": limit}
                return list(session.run(names, feeds))

            def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
                return self._made(front, values)

            yield run

    @abstractmethod
    def _made(self, front: Callable[[np.ndarray, float], list[np.ndarray]], values: Values) -> dict[str, np.ndarray]:
        """The stage's values; the front graph gives tiles, grid and scale of an image at a scale."""


class _Resolution(_Front):
    """The scale that the resolution compressor chooses, within the bound of visual tokens."""

    name = stages.RESOLUTION

    def _made(self, front: Callable[[np.ndarray, float], list[np.ndarray]], values: Values) -> dict[str, np.ndarray]:
        asked = self._question.vrc and self._rule.resolution_compressor
        scales = [front(image, 0.0 if asked else 1.0)[2] for image in self._question.images]
        return {self.name: np.concatenate(scales)}


class _Preprocessing(_Front):
    """Images at given scales to normalized tiles."""

    name = stages.PREPROCESSING

    def _made(self, front: Callable[[np.ndarray, float], list[np.ndarray]], values: Values) -> dict[str, np.ndarray]:
        pairs = zip(self._question.images, values[stages.RESOLUTION], strict=True)
        cut = [front(image, float(scale)) for image, scale in pairs]
        return {
            self.name: np.concatenate([tiles for tiles, *_ in cut]),
            stages.GRIDS: np.array([grid for _, grid, _ in cut], np.int64),
        }


class _PartStage(Stage):
    """A stage that is a part of a graph."""

    def __init__(self, name: str, part: Part, basis: _Basis = _SAME) -> None:
        self.name = name
        self._part, self._basis = part, basis

    @property
    def precision(self) -> Precision:
        """Of the part."""
        return self._part.precision

    @property
    def part(self) -> Part | None:
        """What it runs."""
        return self._part

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Open the part."""
        with self._part.opened() as session:

            def run(values: Values, *, stepwise: bool = False) -> dict[str, np.ndarray]:
                return {self.name: self._basis.back(self.name, self._made(session, values, stepwise=stepwise))}

            yield run

    @abstractmethod
    def _made(self, session: ort.InferenceSession, values: Values, *, stepwise: bool) -> np.ndarray:
        """The stage's value in the package's basis."""

    def _given(self, name: str, values: Values) -> np.ndarray:
        """A value in the package's basis."""
        return self._basis.into(name, values[name])


class _Tiles(_PartStage):
    """A part of a vision encoder, over batches of tiles."""

    def __init__(self, name: str, source: str, part: Part, basis: _Basis = _SAME, *, residual: bool = False) -> None:
        super().__init__(name, part, basis)
        self._source = source
        self.before = source if residual else ""

    def _made(self, session: ort.InferenceSession, values: Values, *, stepwise: bool) -> np.ndarray:
        given, name = values[self._source], session.get_inputs()[0].name
        starts = range(0, len(given), _TILE_BATCH)
        return np.concatenate([session.run(None, {name: given[i : i + _TILE_BATCH]})[0] for i in starts])


class _Stitching(_PartStage):
    """Tiles side by side, image after image."""

    def __init__(self, part: Part, manifest: Manifest, basis: _Basis) -> None:
        super().__init__(stages.STITCHING, part, basis)
        if manifest.tiles is None:
            raise UserError("package.kind", "the package has no tiles", "name a vision-language package")
        self._side = manifest.tiles.tile_size // manifest.tiles.cell_size

    def _made(self, session: ort.InferenceSession, values: Values, *, stepwise: bool) -> np.ndarray:
        features, rasters, start = self._given(stages.PROJECTOR, values), [], 0
        for grid in values[stages.GRIDS]:
            stop = start + int(np.prod(-(-grid // self._side)))
            rasters.append(session.run(None, {"tile_features": features[start:stop], "grid": grid})[0])
            start = stop
        return np.concatenate(rasters)


class _Embedding(_PartStage):
    """Rows of the table; image placeholders are looked up as rows' ends are, so that no image is needed."""

    def __init__(self, part: Part, basis: _Basis, image_and_row: tuple[int, int] | None = None) -> None:
        super().__init__(stages.EMBEDDING, part, basis)
        self._tokens = image_and_row

    def _made(self, session: ort.InferenceSession, values: Values, *, stepwise: bool) -> np.ndarray:
        ids = stages.read_ids(values)
        if self._tokens is None:
            return session.run(None, {"input_ids": ids[None]})[0][0]
        image, row = self._tokens
        width = session.get_inputs()[1].shape[1]
        feeds = {
            "input_ids": np.where(ids == image, row, ids)[None],
            "image_features": np.zeros((0, width), np.float32),
        }
        return session.run(None, feeds)[0][0]


class _Merge(_PartStage):
    """Visual tokens in the places of image placeholders; the other rows are those that it was given.

    The graph looks its tokens up itself, so what they add to a given row is taken out again: what remains is where
    the visual tokens went.
    """

    def __init__(self, part: Part, basis: _Basis, image: int) -> None:
        super().__init__(stages.MERGE, part, basis)
        self._image = image

    @property
    def precision(self) -> Precision:
        """Of moving values: the table is the stage before."""
        return Precision()

    def _made(self, session: ort.InferenceSession, values: Values, *, stepwise: bool) -> np.ndarray:
        ids = stages.read_ids(values)
        features, given = self._given(stages.STITCHING, values), self._given(stages.EMBEDDING, values)
        feeds = {"input_ids": ids[None], "image_features": features}
        merged: np.ndarray = session.run(None, feeds)[0][0]
        feeds["image_features"] = np.zeros_like(features)
        looked_up: np.ndarray = session.run(None, feeds)[0][0]
        text = ids != self._image
        return np.where((text & (merged == looked_up).all(-1))[:, None], given, merged)


class _DecoderLayer(_PartStage):
    """A decoder layer: over all positions at once, or as an answer is made, one token after another with a cache."""

    def __init__(self, index: int, source: str, part: Part, basis: _Basis) -> None:
        super().__init__(stages.decoder_layer(index), part, basis)
        self.before = source

    def _made(self, session: ort.InferenceSession, values: Values, *, stepwise: bool) -> np.ndarray:
        given = self._given(self.before, values)[None]
        prompt = len(values[stages.TOKENIZATION])
        ends = [prompt, *range(prompt + 1, given.shape[1] + 1)] if stepwise else [given.shape[1]]
        stream, _, *cache = session.get_inputs()
        past = [np.zeros((1, v.shape[1], 0, v.shape[3]), _DTYPES[v.type]) for v in cache]
        made, start = [], 0
        for end in ends:
            feeds = {stream.name: given[:, start:end], "attention_mask": np.ones((1, end), np.int64)}
            out, *past = session.run(None, feeds | {v.name: p for v, p in zip(cache, past, strict=True)})
            made.append(out[0])
            start = end
        return np.concatenate(made)


class _Head(_PartStage):
    """Last norm and logits."""

    def __init__(self, source: str, part: Part, basis: _Basis) -> None:
        super().__init__(stages.HEAD, part)
        self._source, self._of = source, basis

    def _made(self, session: ort.InferenceSession, values: Values, *, stepwise: bool) -> np.ndarray:
        given = self._of.into(self._source, values[self._source])[stages.head_start(values) :]
        return session.run(None, {session.get_inputs()[0].name: given[None]})[0][0]
