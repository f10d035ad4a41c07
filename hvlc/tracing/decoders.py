"""The decoder of a package as stages: one graph that is cut, or graphs of fixed shapes that are cut or run whole."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import onnx_ir as ir

from hvlc.errors import UserError
from hvlc.graphs.builder import EMBEDDED_TOKENS, LAST_INDEX, LAST_ROW, MOST_TOKENS, POSITIONS
from hvlc.graphs.placement import Phase
from hvlc.graphs.states import PAST, PRESENT
from hvlc.manifest.manifest import POSITION_TABLE, ComponentEntry, Images, Manifest
from hvlc.results import trace_points
from hvlc.runtime.fixed import LOGITS
from hvlc.tracing.fixed_stages import Chain, CompiledGraph, FixedHead, FixedLayers, HostMerge
from hvlc.tracing.package_stages import EMBEDDINGS, Basis, Beside, DecoderLayer, Embedding, Head, Merge, Shapes, Stage
from hvlc.tracing.parts import Graph, Part, Precision, before_rounding

_NORM, _LAST_NORM = "input_layernorm", "norm"
_ENTRY = "residual.rotate"  # hvlc.passes.prepare.rotate_residual
_CACHE = re.compile(rf"{re.escape(PAST)}(\d+)\.")
_UNCOMPILED = "take the package that was built with --no-aot"


class Decoder(ABC):
    """A decoder that stages are made of.

    Attributes:
        layers: how many.
        vocabulary: of the logits.
        uniform: whether the first layer's norm has the same gain for every channel, as in a rotated stream; None where
            that cannot be seen.
        turns_inside: whether the decoder itself changes the basis, before its first layer.
    """

    layers: int
    vocabulary: int
    uniform: bool | None
    turns_inside: bool

    @abstractmethod
    def stages(self, basis: Basis, shapes: Shapes | None) -> Iterator[Stage]:
        """Its stages from the ids on.

        Args:
            basis: of the residual stream.
            shapes: of the images; None: there are no visual tokens.

        Raises:
            UserError: a graph cannot be cut.
        """


def open_decoder(directory: Path, manifest: Manifest, precision: Precision, threads: int) -> Decoder:
    """The decoder of a package.

    Args:
        directory: the package.
        manifest: of it.
        precision: of its parts, if they are compiled.
        threads: of sessions; 0 lets onnxruntime choose.

    Raises:
        UserError: there is none, or it cannot be cut.
    """
    if manifest.is_staged:
        return FixedDecoder(directory, manifest, precision, threads)
    return WholeDecoder(directory, manifest, threads)


class WholeDecoder(Decoder):
    """A decoder that is one graph, cut at its residual stream."""

    def __init__(self, directory: Path, manifest: Manifest, threads: int) -> None:
        self._graph = Graph(directory, manifest.whole_decoder.file, threads)
        self._stream = self._graph.stream(_NORM, _LAST_NORM)
        self._images = manifest.images
        self._embedding = Graph(directory, manifest.components["embedding"].file, threads) if self._images else None
        self.layers, self.uniform = len(self._stream.layers), self._stream.uniform
        self.turns_inside = _turns(self._graph)
        self.vocabulary = _vocabulary(self._graph)

    def stages(self, basis: Basis, shapes: Shapes | None) -> Iterator[Stage]:
        """See `Decoder.stages`."""
        source = trace_points.EMBEDDING
        if self._images is None or self._embedding is None:
            entry = self._graph.value(EMBEDDED_TOKENS)
            yield Embedding(self._graph.part(["input_ids"], [entry]), basis)
        else:
            entry, made = self._graph.value("inputs_embeds"), self._embedding.value("inputs_embeds")
            part = self._embedding.part(["input_ids", "image_features"], [made])
            yield Embedding(part, basis, self._images.token)
            if shapes is not None:
                yield Merge(part, basis, self._images.token)
                source = trace_points.MERGE
        ends = [entry, *self._stream.layers[1:], self._stream.end]
        beside = Beside(shapes, self._images.token if self._images else None)
        for index, (start, end) in enumerate(pairwise(ends)):
            yield DecoderLayer(index, source, _layer_part(self._graph, index, start, end, self._images), basis, beside)
            source = trace_points.decoder_layer(index)
        yield Head(source, self._graph.part([self._stream.end], [self._graph.value(LOGITS)]), basis)


@dataclass(frozen=True)
class _Fixed:
    """One part of a decoder of fixed shapes.

    Attributes:
        name: of the component for the prompt.
        entries: of the components, by phase.
        graphs: the same, opened.
    """

    name: str
    entries: Mapping[Phase, ComponentEntry]
    graphs: Mapping[Phase, Graph]

    @property
    def compiled(self) -> bool:
        """Whether the part is compiled, and so cannot be cut."""
        return self.entries[Phase.PROMPT].compiled is not None

    @property
    def is_head(self) -> bool:
        """Whether the part gives logits."""
        return LOGITS in self.entries[Phase.PROMPT].outputs

    def given(self, phase: Phase) -> ir.Value:
        """The value that enters it."""
        return self.graphs[phase].value(self.entries[phase].inputs[0])

    def made(self, phase: Phase) -> ir.Value:
        """The value that leaves it."""
        return self.graphs[phase].value(self.entries[phase].outputs[0])

    @property
    def layers(self) -> list[int]:
        """Indices of its layers, which have a cache each."""
        found = (_CACHE.match(str(value.name)) for value in self.graphs[Phase.PROMPT].graph.inputs)
        return sorted({int(match[1]) for match in found if match})

    def ends(self, phase: Phase) -> list[ir.Value]:
        """Values at the ends of its layers: the first layer's input, and the output of each."""
        entries = self.graphs[phase].layers(_NORM).entries
        inside = [entries[index] for index in self.layers[1:]]
        return [self.given(phase), *inside, before_rounding(self.made(phase))]

    def rounding(self, phase: Phase) -> list[Part]:
        """Part that rounds the last value for the part after it, if any."""
        made = self.made(phase)
        exact = before_rounding(made)
        return [] if exact is made else [self.graphs[phase].part([exact], [made])]


class FixedDecoder(Decoder):
    """A decoder in parts of fixed shapes: cut at the residual stream, or, where it was compiled, run part by part."""

    def __init__(self, directory: Path, manifest: Manifest, precision: Precision, threads: int) -> None:
        self._directory, self._precision, self._threads = directory, precision, threads
        self._context = int(manifest.context_length or 0)  # every package with a decoder has one
        self._images = manifest.images
        self._embedding = Graph(directory, manifest.components["embedding"].file, threads)
        names = [name for name, entry in manifest.components.items() if entry.phase is Phase.PROMPT]
        self._parts = [self._opened(name, manifest.components) for name in names]
        indices = [index for part in self._parts for index in part.layers]
        if indices != list(range(len(indices))) or not indices or not self._parts[-1].is_head:
            cause = f"{', '.join(names)} of {directory} are not a decoder of layers {indices}"
            raise UserError("bisect.boundaries", cause, "build it again")
        first = self._parts[0]
        compiled = any(part.compiled for part in self._parts)
        self.layers, self.vocabulary = len(indices), _vocabulary(self._parts[-1].graphs[Phase.PROMPT])
        self.uniform = None if compiled else first.graphs[Phase.PROMPT].layers(_NORM).uniform
        self.turns_inside = _turns(first.graphs[Phase.PROMPT])
        self._check_wires()

    def _opened(self, name: str, components: Mapping[str, ComponentEntry]) -> _Fixed:
        stem = name.removesuffix(Phase.PROMPT)
        entries = {phase: components[f"{stem}{phase}"] for phase in (Phase.PROMPT, Phase.TOKEN)}
        graphs = {phase: Graph(self._directory, entry.file, self._threads) for phase, entry in entries.items()}
        return _Fixed(name, entries, graphs)

    def _check_wires(self) -> None:
        """Refuse compiled parts that hand on integers, whose scale is inside the binaries."""
        for part in self._parts:
            dtype = part.given(Phase.PROMPT).dtype
            if part.compiled and dtype is not None and not dtype.is_floating_point():
                cause = f"{part.name} is compiled and takes {dtype.name}, whose scale is inside the binary"
                raise UserError("bisect.compiled", cause, _UNCOMPILED)

    def stages(self, basis: Basis, shapes: Shapes | None) -> Iterator[Stage]:
        """See `Decoder.stages`."""
        made = self._embedding.value("inputs_embeds")
        yield Embedding(self._embedding.part(["input_ids"], [made]), basis)
        source = trace_points.EMBEDDING
        if shapes is not None and self._images is not None:
            yield HostMerge(self._images.token)
            source = trace_points.MERGE
        beside = Beside(shapes, self._images.token if self._images else None)
        before: dict[Phase, list[Part]] = {Phase.PROMPT: [], Phase.TOKEN: []}
        for part in self._parts:
            if part.is_head:
                prompt, token = (self._head(part, phase, before[phase]) for phase in (Phase.PROMPT, Phase.TOKEN))
                yield FixedHead(source, prompt, token, basis, self._context, beside)
                return
            for last, prompt, token in self._layers(part, before):
                yield FixedLayers(last, source, prompt, token, basis, self._context, beside)
                source = trace_points.decoder_layer(last)
            before = {phase: [] if part.compiled else part.rounding(phase) for phase in before}

    def _layers(self, part: _Fixed, before: Mapping[Phase, list[Part]]) -> Iterator[tuple[int, Chain, Chain]]:
        """Index of the last layer, and what runs prompts and tokens: layer by layer, or all where it is compiled."""
        indices = part.layers
        if part.compiled:
            covers = f"layers {indices[0]} to {indices[-1]}"
            prompt, token = (self._whole(part, phase, covers) for phase in (Phase.PROMPT, Phase.TOKEN))
            yield indices[-1], prompt, token
            return
        cuts = {phase: self._cut(part, phase) for phase in (Phase.PROMPT, Phase.TOKEN)}
        for position, index in enumerate(indices):
            rounded = {phase: before[phase] if position == 0 else [] for phase in before}
            prompt, token = ([*rounded[phase], cuts[phase][position]] for phase in (Phase.PROMPT, Phase.TOKEN))
            yield index, prompt, token

    def _cut(self, part: _Fixed, phase: Phase) -> list[Part]:
        """The layers of a part."""
        ends = zip(part.layers, pairwise(part.ends(phase)), strict=True)
        return [_layer_part(part.graphs[phase], index, *between, self._images) for index, between in ends]

    def _head(self, part: _Fixed, phase: Phase, before: Sequence[Part]) -> Chain:
        if part.compiled:
            return self._whole(part, phase, "last norm and logits")
        graph = part.graphs[phase]
        row = [value for value in graph.graph.inputs if value.name == LAST_ROW]
        return [*before, graph.part([part.given(phase), *row], [part.made(phase)])]

    def _whole(self, part: _Fixed, phase: Phase, covers: str) -> Chain:
        entry = part.entries[phase]
        return [CompiledGraph(part.name, self._directory, entry, covers, self._precision, self._threads)]


def _turns(graph: Graph) -> bool:
    return any(node.name == _ENTRY for node in graph.graph)


def _vocabulary(graph: Graph) -> int:
    shape = graph.value(LOGITS).shape
    return int(str(shape[-1])) if shape is not None else 0


def _layer_part(graph: Graph, index: int, start: ir.Value, end: ir.Value, images: Images | None) -> Part:
    """One layer of a graph, with its cache and what says how long the sequence is."""
    lengths = [v for v in graph.graph.inputs if v.name in ("attention_mask", LAST_INDEX, MOST_TOKENS)]
    past = [str(v.name) for v in graph.graph.inputs if str(v.name).startswith(f"{PAST}{index}.")]
    present = [v for v in graph.graph.outputs if str(v.name).startswith(f"{PRESENT}{index}.")]
    beside = graph.inputs(POSITIONS, POSITION_TABLE, *([EMBEDDINGS] if images and images.side_channels else []))
    return graph.part([start, *lengths, *past], [end, *present], beside)
