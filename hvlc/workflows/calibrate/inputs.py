"""Inputs of components: pieces of images, features of visual tokens, embedded tokens, batches of texts."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from hvlc.calibration.samples import CalibrationSet, ImageSample, TextSample
from hvlc.calibration.segments import Walk, Weights, cut_segments, in_float, walk
from hvlc.errors import HvlcError
from hvlc.graphs.builder import POSITIONS
from hvlc.graphs.bundle import Bundle, Component
from hvlc.graphs.sessions import open_session, session_options
from hvlc.graphs.states import empty_shape
from hvlc.runtime.vision import Seen

BATCH_TOKENS = 2048  # of text that run at once


def look(bundle: Bundle, images: Sequence[ImageSample], threads: int) -> list[Seen]:
    """Run the front graph over images, the resolution compressor deciding their scale where there is one."""
    front, facts = _session(bundle.components["front"], threads), bundle.facts.sees
    limit = np.array([facts.max_visual_tokens], np.int64)
    scale = np.full(1, 0 if facts.compresses else 1, np.float32)
    question = {"question_ids": np.zeros(0, np.int64)} if facts.compresses and facts.asks else {}
    found = []
    for sample in images:
        asked = {"image": sample.picture.pixels(), "scale": scale, "max_visual_tokens": limit, **question}
        names = [output.name for output in front.get_outputs()]
        found.append(Seen.of(dict(zip(names, front.run(names, asked), strict=True)), facts.image_token_id))
    return found


def stitcher(bundle: Bundle, threads: int) -> Callable[[Seen, Sequence[np.ndarray]], np.ndarray]:
    """The merger: from an image and an encoder's features of its parts to those of its visual tokens."""
    session = _session(bundle.components["stitch"], threads)

    def stitched(seen: Seen, features: Sequence[np.ndarray]) -> np.ndarray:
        made: np.ndarray = session.run(["image_features"], seen.merger_feeds(features))[0]
        return made

    return stitched


def embedded(
    embedding: Component,
    sequences: Sequence[tuple[np.ndarray, np.ndarray]],
    threads: int,
    weights: Weights = in_float,
) -> list[np.ndarray]:
    """float32 `[1, n, hidden]` of each sequence of ids and its visual tokens."""
    output = output_of(embedding, "inputs_embeds")
    steps = cut_segments(embedding.graph, [], [output])
    walked = Walk([{"input_ids": ids[None], "image_features": features} for ids, features in sequences], threads)
    walk(steps, walked, weights)
    return [walked.value(output, i) for i in range(len(sequences))]


def text_feeds(
    decoder: Component, inputs: CalibrationSet, tokens: int = BATCH_TOKENS
) -> Iterator[dict[str, np.ndarray]]:
    """Samples of equal length together, up to a bound of tokens."""
    texts = sorted((s.ids for s in inputs.samples if isinstance(s, TextSample)), key=len)
    for length, same in groupby(texts, len):
        together, most = list(same), max(1, tokens // length)
        for start in range(0, len(together), most):
            yield decoder_feeds(decoder, "input_ids", np.stack(together[start : start + most]))


def decoder_feeds(
    decoder: Component, name: str, sequence: np.ndarray, positions: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """A decoder's inputs for a whole sequence without past.

    Args:
        decoder: its graph.
        name: of the input that takes the sequence.
        sequence: int64 `[batch, n]`, or float32 `[batch, n, width]`.
        positions: int64 `[3, batch, n]`, where the decoder is given them.
    """
    batch, length = sequence.shape[:2]
    feeds = {name: sequence, "attention_mask": np.ones((batch, length), np.int64)}
    if positions is not None:
        feeds[POSITIONS] = positions
    for value in decoder.graph.inputs:
        if str(value.name) not in feeds and value.shape is not None and value.dtype is not None:
            feeds[str(value.name)] = np.zeros(empty_shape(value.shape, batch), value.dtype.numpy())
    return feeds


def output_of(component: Component, name: str) -> ir.Value:
    """An output of a component by name."""
    for value in component.graph.outputs:
        if value.name == name:
            return value
    raise HvlcError("calibration.output", f"{component.name} has no output {name}", "report it")


def _session(component: Component, threads: int) -> ort.InferenceSession:
    return open_session(ir.to_proto(component.model).SerializeToString(), session_options(threads))
