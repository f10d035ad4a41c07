"""Forward passes of a float model for calibration and sensitivity, one component after another.

A change in a component is followed through all components after it. Encoders take turns: each answers for the images
whose turn it is, so a change in one costs nothing where the other looks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hvlc.calibration.samples import CalibrationSet, ImageSample, TextSample
from hvlc.calibration.segments import Walk, WalkCache, cut_segments, walk
from hvlc.calibration.sensitivity import Answers, Feeds, in_float
from hvlc.errors import UserError
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.linears import linear_groups, operand, values_of
from hvlc.runtime.vision import Seen
from hvlc.workflows.calibrate.inputs import decoder_feeds, embedded, look, output_of, stitcher, text_feeds

_BATCH_TOKENS = 512  # of text that run at once: their answers are in memory twice

_Tables = Mapping[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class ComponentForward:
    """One component of a forward pass.

    Attributes:
        component: its graph.
        feeds: its inputs for every sample.
        output: that the answers come from.
        answers: what the model says to it.
        sequences: those of the decoder's sequences that it has a part in, by number.
        weights_after: weights of the products that come after this component.
    """

    component: Component
    feeds: Feeds
    output: ir.Value
    answers: Answers
    sequences: tuple[int, ...]
    weights_after: int


@dataclass(frozen=True)
class ForwardPass:
    """A forward pass over all calibration samples.

    Attributes:
        components: in order; the last is the decoder's.
        scored: of each of the decoder's sequences, the positions whose answers count: all of a text's, and those that
            foretell a token after an image.
        cache: what its walks share.
    """

    components: tuple[ComponentForward, ...]
    scored: tuple[slice, ...]
    cache: WalkCache


def forward_pass_of(bundle: Bundle, inputs: CalibrationSet, threads: int, spool: Path) -> ForwardPass:
    """The forward pass of a bundle whose decoder gives logits at all positions.

    Raises:
        UserError: there are fewer images than encoders.
    """
    decoder = bundle.with_role(Role.DECODER)[0]
    if bundle.with_role(Role.VISION_ENCODER):
        return _VisionForward.open(bundle, inputs, threads, spool).forward_pass()
    feeds = list(text_feeds(decoder, inputs, _BATCH_TOKENS))
    only = ComponentForward(decoder, lambda _: feeds, output_of(decoder, "logits"), iter, tuple(range(len(feeds))), 0)
    return ForwardPass((only,), (slice(None),) * len(feeds), WalkCache())


def weights_of(component: Component) -> int:
    """Weights of all products of a component."""
    return sum(prod(values_of(operand(n, 1)).shape) for g in linear_groups(component.graph) for n in g.nodes)


@dataclass(frozen=True)
class _VisionForward:
    """Builds the forward pass of a vision-language model.

    Attributes:
        bundle: its components.
        threads: of onnxruntime.
        spool: directory for large values.
        turns: for each encoder, the numbers of the images that it encodes.
        tiles: feeds of an encoder, for each image.
        grids: int64 `[2]` of each image.
        ids: int64 `[n]` of each sequence, those with an image first.
        scored: positions of each sequence whose answers count.
        stitch: features of an image's tiles, and its grid, to features of its visual tokens.
        cache: what walks share.
    """

    bundle: Bundle
    threads: int
    spool: Path
    turns: dict[str, tuple[int, ...]]
    tiles: list[dict[str, np.ndarray]]
    grids: list[np.ndarray]
    ids: list[np.ndarray]
    scored: list[slice]
    stitch: Callable[[np.ndarray, np.ndarray], np.ndarray]
    cache: WalkCache = field(default_factory=WalkCache)

    @classmethod
    def open(cls, bundle: Bundle, inputs: CalibrationSet, threads: int, spool: Path) -> "_VisionForward":
        """Run the front graph over the images and count their tokens."""
        images = inputs.images
        encoders = [c.name for c in bundle.with_role(Role.VISION_ENCODER)]
        if len(images) < len(encoders):
            cause = f"{len(images)} images are too few for {len(encoders)} encoders that take turns"
            raise UserError("sensitivity.images", cause, "give more samples with an image")
        seen = look(bundle, images, threads)
        ids, scored = [], []
        for number, sample in enumerate(images):
            sequence, positions = _asked(sample, seen[number])
            ids.append(sequence)
            scored.append(positions)
        texts = [sample.ids for sample in inputs.samples if isinstance(sample, TextSample)]
        turns = {name: tuple(range(turn, len(images), len(encoders))) for turn, name in enumerate(encoders)}
        return cls(
            bundle,
            threads,
            spool,
            turns,
            [{"pixel_values": image.pieces} for image in seen],
            [image.grid for image in seen],
            [*ids, *texts],
            [*scored, *[slice(None)] * len(texts)],
            stitcher(bundle, threads),
        )

    def forward_pass(self) -> ForwardPass:
        """Encoders, then the decoder on what they make of the images in float."""
        features: dict[int, np.ndarray] = {}
        for name, turn in self.turns.items():
            walked = Walk([self.tiles[i] for i in turn], self.threads, self.spool, self.cache)
            output = self._features_of(name)
            walk(cut_segments(self.bundle.components[name].graph, [], [output]), walked, in_float)
            features |= {i: self.stitch(walked.value(output, at), self.grids[i]) for at, i in enumerate(turn)}
        every = tuple(range(len(self.ids)))
        behind = weights_of(self._decoder)
        components = [
            ComponentForward(
                self.bundle.components[name],
                lambda _, turn=turn: [self.tiles[i] for i in turn],  # type: ignore[misc]
                self._features_of(name),
                lambda outputs, turn=turn: self._answers(outputs, turn),  # type: ignore[misc]
                turn,
                behind * len(turn) // len(every),
            )
            for name, turn in self.turns.items()
        ]

        def fed(changed: _Tables) -> Sequence[Mapping[str, np.ndarray]]:
            return self._decoder_feeds([(i, features.get(i)) for i in every], changed)

        components.append(ComponentForward(self._decoder, fed, output_of(self._decoder, "logits"), iter, every, 0))
        return ForwardPass(tuple(components), tuple(self.scored), self.cache)

    @property
    def _decoder(self) -> Component:
        return self.bundle.with_role(Role.DECODER)[0]

    def _features_of(self, encoder: str) -> ir.Value:
        return output_of(self.bundle.components[encoder], "tile_features")

    def _decoder_feeds(
        self, sequences: Sequence[tuple[int, np.ndarray | None]], changed: _Tables
    ) -> list[dict[str, np.ndarray]]:
        """The decoder's inputs for sequences with these features of an image."""
        embedding = self.bundle.components["embedding"]
        nothing = np.empty((0, self.bundle.facts.hidden_size), np.float32)
        mine = [(self.ids[i], nothing if features is None else features) for i, features in sequences]
        looked_up = {
            operand(node, 0): changed[embedding.name, str(node.name)]
            for node in embedding.graph
            if (embedding.name, str(node.name)) in changed
        }
        merged = embedded(embedding, mine, self.threads, looked_up.get)
        return [decoder_feeds(self._decoder, "inputs_embeds", embeds) for embeds in merged]

    def _answers(self, outputs: Iterable[np.ndarray], turn: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits of the sequences whose images an encoder saw, again and again as outputs come."""
        sequences = [
            (turn[at % len(turn)], self.stitch(features, self.grids[turn[at % len(turn)]]))
            for at, features in enumerate(outputs)
        ]
        logits = output_of(self._decoder, "logits")
        path = cut_segments(self._decoder.graph, [g.input for g in linear_groups(self._decoder.graph)], [logits])
        walked = Walk(self._decoder_feeds(sequences, {}), self.threads, self.spool, self.cache)
        walk(path[:-1], walked, in_float)
        for (answer,) in walked.results(path[-1], in_float):
            yield answer


def _asked(sample: ImageSample, image: Seen) -> tuple[np.ndarray, slice]:
    """The sequence around an image, and the positions that foretell what follows it."""
    if sample.prompt is None:
        raise ValueError(f"{sample.question!r} has no tokens")
    ids = sample.prompt.ids(image.ids)
    return ids, slice(len(ids) - len(sample.prompt.after) - 1, len(ids) - 1)
