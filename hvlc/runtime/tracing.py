"""A package, stage by stage (`hvlc.stages`): each stage as a function of the values before it.

So a stage can be given the package's own values, which is the package as it runs, or another model's, which shows
what that stage alone does differently. One stage's session is open at a time.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

from hvlc import stages
from hvlc.errors import UserError
from hvlc.manifest import Kind, Manifest
from hvlc.rotation import Rotation
from hvlc.runtime.generation import LanguageModel, VisionLanguageModel
from hvlc.runtime.package_stages import (
    TILE_BATCH,
    Basis,
    DecoderLayer,
    Embedding,
    Head,
    Merge,
    Preprocessing,
    Resolution,
    Stage,
    Stitching,
    Tiles,
    Tokenization,
)
from hvlc.runtime.parts import Graph, Part, Stream
from hvlc.runtime.vision import Vision
from hvlc.stages import Layout, Question, Values


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
        self._basis = Basis(rotation if self.rotated else None, self._rotates_inside)

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
        return Vision(self.directory, self.manifest, TILE_BATCH, self._threads)

    def stages(self, question: Question) -> tuple[Stage, ...]:
        """The stages of a resolved question but its answer, in the order in which they run.

        Raises:
            UserError: a graph cannot be cut.
        """
        found: list[Stage] = [Tokenization(self, question)]
        if question.images:
            found += [Resolution(self, question), Preprocessing(self, question), *self._vision_stages(question)]
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
        yield Tiles(stages.VISION_EMBEDDINGS, stages.PREPROCESSING, first)
        source = stages.VISION_EMBEDDINGS
        for index, (start, end) in enumerate(pairwise(ends)):
            name = stages.vision_layer(index)
            yield Tiles(name, source, graph.part([start], [end]), residual=True)
            source = name
        yield Tiles(stages.POST_NORM, source, graph.part([stream.end], [stream.norm]))
        projector = graph.part([stream.norm], [graph.value("tile_features")])
        yield Tiles(stages.PROJECTOR, stages.POST_NORM, projector, self._basis)
        stitch = self.graph("stitch")
        laid = stitch.part(["tile_features", "grid"], [stitch.value("image_features")])
        yield Stitching(laid, self.manifest, self._basis)

    def _decoder_stages(self, *, seeing: bool) -> Iterator[Stage]:
        tokens = self.manifest.tokens
        if tokens is None:
            entry = self._decoder.value("embed_tokens")
            yield Embedding(self._decoder.part(["input_ids"], [entry]), self._basis)
            source = stages.EMBEDDING
        else:
            graph = self.graph("embedding")
            entry = self._decoder.value("inputs_embeds")
            part = graph.part(["input_ids", "image_features"], [graph.value("inputs_embeds")])
            yield Embedding(part, self._basis, (tokens.image, tokens.row))
            source = stages.EMBEDDING
            if seeing:
                yield Merge(part, self._basis, tokens.image)
                source = stages.MERGE
        ends = [entry, *self._stream.layers[1:], self._stream.end]
        for index, (start, end) in enumerate(pairwise(ends)):
            yield DecoderLayer(index, source, self._layer_part(index, start, end), self._basis)
            source = stages.decoder_layer(index)
        head = self._decoder.part([self._stream.end], [self._decoder.value("logits")])
        yield Head(source, head, self._basis)

    def _layer_part(self, index: int, start: ir.Value, end: ir.Value) -> Part:
        sides = ("key", "value")
        past = [f"past_key_values.{index}.{side}" for side in sides]
        present = [self._decoder.value(f"present.{index}.{side}") for side in sides]
        return self._decoder.part([start, "attention_mask", *past], [end, *present])
