"""Forward passes of a float model for sensitivity: a change in a component is followed through all after it.

Encoders take turns: each answers for the images whose turn it is, so a change in one costs nothing where the other
looks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hvlc.calibration.samples import CalibrationSet
from hvlc.calibration.segments import Walk, WalkCache, cut_segments, in_float, walk
from hvlc.calibration.sensitivity import Answers, Feeds
from hvlc.errors import UserError
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.graphs.linears import linear_groups, operand, values_of
from hvlc.workflows.calibrate.inputs import output_of, text_feeds
from hvlc.workflows.calibrate.vision import VisionForward, features_of

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
        scored: of each of the decoder's sequences, the positions whose answers count (see `VisionForward`).
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
    encoders = bundle.with_role(Role.VISION_ENCODER)
    if encoders:
        if len(inputs.images) < len(encoders):
            cause = f"{len(inputs.images)} images are too few for {len(encoders)} encoders that take turns"
            raise UserError("sensitivity.images", cause, "give more samples with an image")
        return _Vision(VisionForward.open(bundle, inputs, threads), spool).forward_pass()
    decoder = bundle.with_role(Role.DECODER)[0]
    feeds = list(text_feeds(decoder, inputs, _BATCH_TOKENS))
    only = ComponentForward(decoder, lambda _: feeds, output_of(decoder, "logits"), iter, tuple(range(len(feeds))), 0)
    return ForwardPass((only,), (slice(None),) * len(feeds), WalkCache())


def weights_of(component: Component) -> int:
    """Weights of all products of a component."""
    return sum(prod(values_of(operand(n, 1)).shape) for g in linear_groups(component.graph) for n in g.nodes)


@dataclass(frozen=True)
class _Vision:
    """The forward pass of a vision-language model, and what its walks share.

    Attributes:
        forward: what components are fed.
        spool: directory for large values.
        cache: sessions and weights.
    """

    forward: VisionForward
    spool: Path
    cache: WalkCache = field(default_factory=WalkCache)

    def forward_pass(self) -> ForwardPass:
        """Encoders, then the decoder on what they make of the images in float."""
        forward = self.forward
        features = forward.encoded(self._encode)
        every = tuple(range(len(forward.sequences)))
        behind = weights_of(forward.decoder)
        components = [
            ComponentForward(
                forward.bundle.components[name],
                lambda _, turn=turn: forward.pieces(turn),  # type: ignore[misc]
                features_of(forward.bundle.components[name]),
                lambda outputs, turn=turn: self._answers(outputs, turn),  # type: ignore[misc]
                turn,
                behind * len(turn) // len(every),
            )
            for name, turn in forward.turns.items()
        ]

        def fed(changed: _Tables) -> Sequence[Mapping[str, np.ndarray]]:
            return forward.decoder_feeds(forward.every(features), self._looked_up(changed).get)

        components.append(ComponentForward(forward.decoder, fed, self._logits, iter, every, 0))
        return ForwardPass(tuple(components), forward.scored, self.cache)

    @property
    def _logits(self) -> ir.Value:
        return output_of(self.forward.decoder, "logits")

    def _encode(self, encoder: Component, turn: Sequence[int]) -> Iterator[np.ndarray]:
        output = features_of(encoder)
        pieces = self.forward.pieces(turn)
        walked = self._walk(pieces)
        walk(cut_segments(encoder.graph, [], [output]), walked, in_float)
        return (walked.value(output, at) for at in range(len(pieces)))

    def _answers(self, outputs: Iterable[np.ndarray], turn: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits of the sequences whose images an encoder saw, again and again as outputs come."""
        sequences = list(self.forward.visual_tokens(cycle(turn), outputs))
        graph = self.forward.decoder.graph
        path = cut_segments(graph, [g.input for g in linear_groups(graph)], [self._logits])
        walked = self._walk(self.forward.decoder_feeds(sequences))
        walk(path[:-1], walked, in_float)
        for (answer,) in walked.results(path[-1], in_float):
            yield answer

    def _looked_up(self, changed: _Tables) -> dict[ir.Value, np.ndarray]:
        """Values of the embedding component's tables, of those that are changed."""
        embedding = self.forward.bundle.components["embedding"]
        places = {(embedding.name, str(node.name)): node for node in embedding.graph}
        return {operand(places[place], 0): table for place, table in changed.items() if place in places}

    def _walk(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> Walk:
        return Walk(feeds, self.forward.threads, self.spool, self.cache)
