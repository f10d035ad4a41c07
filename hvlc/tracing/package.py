"""A package, stage by stage (`hvlc.results.trace_points`): each stage as a function of the values before it.

So a stage can be given the package's own values, which is the package as it runs, or another model's, which shows
what that stage alone does differently. One stage's session is open at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

from hvlc.errors import UserError
from hvlc.graphs.bundle import Role
from hvlc.graphs.facts import Kind
from hvlc.manifest.manifest import ComponentEntry, Manifest
from hvlc.opening.package import open_package
from hvlc.results import trace_points
from hvlc.results.trace_points import Layout, Question, Values
from hvlc.runtime.generation import LanguageModel, VisionLanguageModel
from hvlc.runtime.providers import register_providers, runs_on
from hvlc.runtime.settings import VisionSettings
from hvlc.runtime.vision import Seen, Vision
from hvlc.tracing.decoders import open_decoder
from hvlc.tracing.fixed_stages import CompiledEncoder, CompiledGraph
from hvlc.tracing.package_stages import (
    PIXELS,
    TILE_BATCH,
    Basis,
    Pictures,
    Preprocessing,
    Resolution,
    Shapes,
    Stage,
    Stitching,
    Tiles,
    Tokenization,
)
from hvlc.tracing.parts import Graph, Precision, Stream, before_rounding
from hvlc.weights.rotation import Rotation


class PackageTracer:
    """Tracer of a package.

    Args:
        directory: what `hvlc build` wrote. Its files are not held against their digests: a damaged package is what
            a trace may be taken for.
        rotation: of the decoder's residual stream, where its recipe asks for one; values are given in the basis of
            the checkpoint all the same.
        prepared: what its recipe did to the float weights before they were stored; "" for nothing.
        compiled: what compiled components were made to compute with, by role: their graphs do not show it.
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

    def __init__(
        self,
        directory: Path,
        rotation: Rotation | None = None,
        prepared: str = "",
        compiled: Mapping[Role, Precision] | None = None,
        threads: int = 0,
    ) -> None:
        self.prepared = prepared
        self.manifest = Manifest.load(directory)
        if self.manifest.kind is Kind.VISION:
            cause = f"{directory} is a vision package, which answers nothing"
            raise UserError("package.kind", cause, "name a language or a vision-language package")
        open_package(directory)
        self._read: dict[str, list[int]] = {}  # tokens of questions
        self.directory, self.name = directory, directory.resolve().name
        self._threads, self._precisions = threads, compiled or {}
        self.runs_on = runs_on(self.manifest) if self.is_compiled else "onnxruntime CPU"
        register_providers(self.manifest)
        self._decoder = open_decoder(directory, self.manifest, self._precision(Role.DECODER), threads)
        if rotation is not None and self._decoder.uniform is None:
            cause = f"{directory} is compiled and may be rotated, which a compiled graph does not show"
            raise UserError("bisect.compiled", cause, "take the package that was built with --no-aot")
        self.rotated = rotation is not None and bool(self._decoder.uniform)
        self._basis = Basis(rotation if self.rotated else None, self._decoder.turns_inside)

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return self.manifest.kind is Kind.VISION_LANGUAGE

    @property
    def is_compiled(self) -> bool:
        """Whether any graph is; such a graph is one stage."""
        return any(entry.compiled for entry in self.manifest.components.values())

    def _precision(self, role: Role) -> Precision:
        return self._precisions.get(role, Precision())

    @cached_property
    def layout(self) -> Layout:
        """Its widths and numbers of layers."""
        towers = {name: self._tower_size(name) for name in self.manifest.encoders}
        return Layout(towers, self._decoder.layers, self.manifest.hidden_size, self._decoder.vocabulary)

    def _tower_size(self, encoder: str) -> tuple[int, int] | None:
        """Width and number of layers; None where a compiled graph does not show them."""
        if self._encoder(encoder).compiled:
            return None
        _, stream = self._tower(encoder)
        return stream.width, len(stream.layers)

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
        return replace(question, encoder=self._vision.choose(question.encoder, self.seen(question, None)))

    def seen(self, question: Question, scales: np.ndarray | None) -> list[Seen]:
        """Outputs of the front graph for a question's images.

        Args:
            question: asked.
            scales: float32 `[images]` that are used. None: as the question says.
        """
        if scales is None:
            asked = self._question_ids(question)
            return [self._vision.see(image, compress=question.vrc, question=asked) for image in question.images]
        pairs = zip(question.images, scales.tolist(), strict=True)
        return [self._vision.see(image, compress=False, scale=scale) for image, scale in pairs]

    def _question_ids(self, question: Question) -> list[int]:
        """Tokens of a question for a resolution compressor that reads them."""
        images = self.manifest.images
        if images is None or images.question_tokens is None or not question.vrc:
            return []
        if question.prompt not in self._read:
            self._read[question.prompt] = self.engine().text_ids(question.prompt)
        return self._read[question.prompt]

    @cached_property
    def _vision(self) -> Vision:
        return Vision(self.directory, self.manifest, VisionSettings(TILE_BATCH), self._threads)

    def stages(self, question: Question) -> tuple[Stage, ...]:
        """The stages of a resolved question but its answer, in the order in which they run.

        Raises:
            UserError: a graph cannot be cut.
        """
        found: list[Stage] = [Tokenization(question, self.engine, self.seen)]
        if question.images:
            found += [Resolution(question, self.seen), Preprocessing(question, self.seen, is_free=self._is_free)]
            found += self._vision_stages(question)
        shapes = Shapes(question, self.seen) if question.images else None
        return (*found, *self._decoder.stages(self._basis, shapes))

    def trace(self, question: Question) -> Values:
        """The values of all stages of a resolved question, in the order in which they run.

        Raises:
            UserError: the question cannot be asked, or a graph cannot be cut.
        """
        answer, images = self.answer(question), self.manifest.images
        read = answer if images is None else trace_points.before_placeholder(answer, images.token)
        values: dict[str, np.ndarray] = {trace_points.SAMPLING: read, trace_points.ANSWER: answer}
        for stage in self.stages(question):
            with stage.opened() as run:
                values |= run(values)
        return trace_points.in_order(values)

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

    def _encoder(self, encoder: str) -> ComponentEntry:
        return self.manifest.component_in(self.manifest.encoders[encoder])

    def _tower(self, encoder: str, file: str | None = None) -> tuple[Graph, Stream]:
        graph = Graph(self.directory, file or self.manifest.encoders[encoder], self._threads)
        return graph, graph.stream("layer_norm1", "post_layernorm")

    def _grid_file(self, question: Question) -> str | None:
        """File of the encoder's graph for the grid of a question's images; None: it is one graph.

        Raises:
            UserError: the images have several grids, or a graph for one is compiled.
        """
        images = self.manifest.images
        if images is None or not images.grids:
            return None
        shapes = sorted({piece.shape[2:] for image in self.seen(question, None) for piece in image.parts})
        if len(shapes) > 1 or self._encoder(question.encoder).compiled:
            told = ", ".join(f"{height}x{width}" for height, width in shapes)
            cause = f"the images have the grids {told}, each with a graph of its own, and a trace takes one that "
            fix = "ask about one image, of a package that is not compiled (--no-aot)"
            raise UserError("bisect.grids", f"{cause}is not compiled", fix)
        return self.manifest.encoder_file(question.encoder, *shapes[0])

    def _vision_stages(self, question: Question) -> Iterator[Stage]:
        file = self._grid_file(question)
        entry = self._encoder(question.encoder)
        if entry.compiled:
            covers, precision = "tower and projector", self._precision(Role.VISION_ENCODER)
            name = f"vision_{question.encoder}"
            yield CompiledEncoder(CompiledGraph(name, self.directory, entry, covers, precision, self._threads))
        elif self._is_free:
            yield from self._free_stages(question.encoder, Shapes(question, self.seen), file)
        else:
            yield from self._tower_stages(question.encoder)
        stitch = self.graph("stitch")
        given = [str(value.name) for value in stitch.graph.inputs]
        laid = stitch.part(given, [stitch.value("image_features")])
        yield Stitching(question, self.seen, laid, self._basis, is_free=self._is_free)

    @property
    def _is_free(self) -> bool:
        """Whether a piece of an image has a size of its own."""
        images = self.manifest.images
        return images is not None and (images.piece is None or images.overview)

    def _free_stages(self, encoder: str, shapes: Shapes, file: str | None) -> Iterator[Stage]:
        """Stages of a tower over images of any size, whose layers read the grid of the patches, so the pixels, too."""
        graph, stream = self._tower(encoder, file)
        pixels, projected, taps = graph.inputs(PIXELS), *_tokens_and_taps(graph)
        ends = [*stream.layers, stream.end]
        first = graph.part(pixels, [stream.layers[0]])
        yield Pictures(trace_points.VISION_EMBEDDINGS, {}, first, shapes)
        names = [trace_points.VISION_EMBEDDINGS, *(trace_points.vision_layer(i) for i in range(len(stream.layers)))]
        for (source, start), (name, end) in pairwise(zip(names, ends, strict=True)):
            part = graph.part([start], [end], pixels)
            yield Pictures(name, {str(start.name): source}, part, shapes, residual=True)
        last = names[-1]
        if stream.norm is not None:
            norm = graph.part([stream.end], [stream.norm], pixels)
            yield Pictures(trace_points.POST_NORM, {str(stream.end.name): last}, norm, shapes)
            last = trace_points.POST_NORM
        entry = stream.norm or stream.end
        projector = graph.part([entry], [projected], pixels)
        yield Pictures(trace_points.PROJECTOR, {str(entry.name): last}, projector, shapes, self._basis)
        if taps:
            part = graph.part([], taps, [*ends, *pixels])
            read = {v.name for v in part.model.graph.inputs}
            sources = {str(end.name): name for name, end in zip(names, ends, strict=True) if end.name in read}
            yield Pictures(trace_points.TAPS, sources, part, shapes)

    def _tower_stages(self, encoder: str) -> Iterator[Stage]:
        graph, stream = self._tower(encoder)
        ends = [*stream.layers, stream.end]
        first = graph.part(["pixel_values"], [stream.layers[0]])
        yield Tiles(trace_points.VISION_EMBEDDINGS, trace_points.PREPROCESSING, first)
        source = trace_points.VISION_EMBEDDINGS
        for index, (start, end) in enumerate(pairwise(ends)):
            name = trace_points.vision_layer(index)
            yield Tiles(name, source, graph.part([start], [end]), residual=True)
            source = name
        if stream.norm is not None:
            yield Tiles(trace_points.POST_NORM, source, graph.part([stream.end], [stream.norm]))
            source = trace_points.POST_NORM
        projector = graph.part([stream.norm or stream.end], [graph.value("tile_features")])
        yield Tiles(trace_points.PROJECTOR, source, projector, self._basis)


def _tokens_and_taps(graph: Graph) -> tuple[ir.Value, list[ir.Value]]:
    """Features of an encoder's last layer, and those of other layers, which lie side by side in its output."""
    features = graph.value("tile_features")
    node = before_rounding(features).producer()
    if node is None or node.op_type != "Concat":
        return features, []
    first, *rest = (value for value in node.inputs if value is not None)
    return first, rest
