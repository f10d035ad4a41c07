"""Forward pass of a vision-language model over calibration samples, one component after another.

Encoders take turns: each encodes every n-th image, so the decoder sees what all of them make.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np
import onnx_ir as ir

from hvlc.calibration.samples import CalibrationSet, ImageSample, TextSample
from hvlc.calibration.segments import Weights, in_float
from hvlc.graphs.bundle import Bundle, Component, Role
from hvlc.runtime.positions import grid_positions
from hvlc.runtime.vision import Seen
from hvlc.workflows.calibrate.inputs import decoder_feeds, embedded, look, output_of, stitcher

#: Runs an encoder: its features of the parts of the images with these numbers, float32 `[pieces, tokens, hidden]` each.
Encode = Callable[[Component, Sequence[int]], Iterable[np.ndarray]]


@dataclass(frozen=True)
class VisionForward:
    """Forward pass of a vision-language model: what each component is fed, and made of what the ones before it make.

    Attributes:
        bundle: its components.
        threads: of onnxruntime.
        seen: images after the front graph.
        turns: for each encoder, the numbers of the images that it encodes.
        sequences: int64 `[n]` each; image `i` is in sequence `i`, texts follow.
        scored: positions of each sequence whose answers count: all of a text's, and those that foretell a token after
            an image.
        stitch: an image, and features of its parts, to features of its visual tokens.
    """

    bundle: Bundle
    threads: int
    seen: tuple[Seen, ...]
    turns: Mapping[str, tuple[int, ...]]
    sequences: tuple[np.ndarray, ...]
    scored: tuple[slice, ...]
    stitch: Callable[[Seen, Sequence[np.ndarray]], np.ndarray]

    @classmethod
    def open(cls, bundle: Bundle, inputs: CalibrationSet, threads: int) -> "VisionForward":
        """Run the front graph over the images of a calibration set.

        Args:
            bundle: of a vision-language model, in float.
            inputs: images whose prompts have tokens, and texts.
            threads: of onnxruntime.
        """
        images = inputs.images
        seen = look(bundle, images, threads)
        asked = [_asked(sample, image) for sample, image in zip(images, seen, strict=True)]
        asked += [(sample.ids, slice(None)) for sample in inputs.samples if isinstance(sample, TextSample)]
        encoders = [c.name for c in bundle.with_role(Role.VISION_ENCODER)]
        return cls(
            bundle,
            threads,
            tuple(seen),
            {name: tuple(range(turn, len(images), len(encoders))) for turn, name in enumerate(encoders)},
            tuple(ids for ids, _ in asked),
            tuple(positions for _, positions in asked),
            stitcher(bundle, threads),
        )

    @property
    def decoder(self) -> Component:
        """The component that reads the sequences."""
        return self.bundle.with_role(Role.DECODER)[0]

    def pieces(self, images: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """An encoder's inputs for the images with these numbers, one for each part of an image (`Seen.parts`)."""
        return [{"pixel_values": part} for image in images for part in self.seen[image].parts]

    def places(self, images: Iterable[int]) -> Iterator[int]:
        """Places of the inputs for the images with these numbers among the inputs for all images."""
        starts = list(accumulate((len(seen.parts) for seen in self.seen), initial=0))
        for image in images:
            yield from range(starts[image], starts[image + 1])

    def visual_tokens(self, images: Iterable[int], outputs: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers of images, each with its float32 `[visual tokens, hidden]`, as long as outputs come.

        Args:
            images: their numbers.
            outputs: float32 `[pieces, tokens, hidden]` of each of their parts, as an encoder gives them.
        """
        given = iter(outputs)
        for image in images:
            features = list(islice(given, len(self.seen[image].parts)))
            if not features:
                return
            yield image, self.stitch(self.seen[image], features)

    def encoded(self, encode: Encode) -> dict[int, np.ndarray]:
        """float32 `[visual tokens, hidden]` of every image, by its number.

        Args:
            encode: runs an encoder on the images whose turn it is; called for every encoder, in order, also for one
                without images.
        """
        found: dict[int, np.ndarray] = {}
        for name, turn in self.turns.items():
            found |= self.visual_tokens(turn, encode(self.bundle.components[name], turn))
        return found

    def decoder_feeds(
        self, sequences: Iterable[tuple[int, np.ndarray | None]], weights: Weights = in_float
    ) -> list[dict[str, np.ndarray]]:
        """The decoder's inputs for some of the sequences.

        Args:
            sequences: their numbers, each with the features of its visual tokens; None for a text.
            weights: values of the embedding component's weights.
        """
        nothing = np.empty((0, self.bundle.facts.embedding_width), np.float32)
        asked = list(sequences)
        given = [(self.sequences[i], nothing if features is None else features) for i, features in asked]
        merged = embedded(self.bundle.components["embedding"], given, self.threads, weights)
        places = [self._positions(i) for i, _ in asked]
        fed = zip(merged, places, strict=True)
        return [decoder_feeds(self.decoder, "inputs_embeds", embeds, positions) for embeds, positions in fed]

    def _positions(self, number: int) -> np.ndarray | None:
        """Positions int64 `[3, 1, n]` of a sequence's tokens; None where the decoder is not given any."""
        facts = self.bundle.facts.sees
        if not facts.grid_positions:
            return None
        grids = [image.grid for image in self.seen[number : number + 1]]
        return grid_positions(self.sequences[number], facts.image_token_id, grids)[:, None]

    def every(self, features: Mapping[int, np.ndarray]) -> list[tuple[int, np.ndarray | None]]:
        """All sequences, each with the features of its image, as `decoder_feeds` takes them."""
        return [(i, features.get(i)) for i in range(len(self.sequences))]


def features_of(encoder: Component) -> ir.Value:
    """The output of an encoder that the merger reads, float32 `[pieces, tokens, hidden]`."""
    return output_of(encoder, "tile_features")


def _asked(sample: ImageSample, image: Seen) -> tuple[np.ndarray, slice]:
    """The sequence around an image, and the positions that foretell what follows it."""
    if sample.prompt is None:
        raise ValueError(f"{sample.question!r} has no tokens")
    ids = sample.prompt.ids(image.ids)
    return ids, slice(len(ids) - len(sample.prompt.after) - 1, len(ids) - 1)
