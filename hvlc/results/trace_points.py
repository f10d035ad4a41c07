"""Stages of an answer: the places between a question and its tokens where two implementations can be compared.

A stage has a name and makes one value. Whoever traces a model, of whatever kind, gives the values these names and
these shapes, one question at a time:

| stage | value |
|---|---|
| `tokenization` | int64 `[prompt]`, with the placeholders of images |
| `resolution` | float32 `[images]`, the scale per side that was used |
| `preprocessing` | float32 `[pieces, 3, H, W]` of all images |
| `vision.embeddings` | float32 `[pieces, patches, width]`, before the first layer |
| `vision.layers.N` | the same, after a layer |
| `vision.post_norm` | the same, after the last norm |
| `projector` | float32 `[pieces, cells, hidden]` |
| `taps` | float32 `[pieces, cells, taps * hidden]`, what first layers of the decoder add (DeepStack) |
| `stitching` | float32 `[visual tokens, width]` of all images, the taps behind what enters the first layer |
| `embedding` | float32 `[positions, width]`, rows of the table; at image placeholders of no meaning |
| `merge` | float32 `[positions, width]`, what enters the decoder |
| `decoder.layers.N` | float32 `[positions, hidden]`, after a layer |
| `decoder.head` | float32 `[last positions, vocabulary]`, logits from `head_start` on |
| `sampling` | int64 `[tokens]`, the greedy answer up to a placeholder of an image, and `ANSWER`, all of it |

Positions are those of the prompt and of the answer but its last token. The pieces of a model that sees images at their
own sizes are one behind the other as one piece: `[1, 3, pixels]`, row by row, and `[1, patches or cells, width]`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

TOKENIZATION: Final = "tokenization"
RESOLUTION: Final = "resolution"
PREPROCESSING: Final = "preprocessing"
VISION_EMBEDDINGS: Final = "vision.embeddings"
POST_NORM: Final = "vision.post_norm"
PROJECTOR: Final = "projector"
TAPS: Final = "taps"
STITCHING: Final = "stitching"
EMBEDDING: Final = "embedding"
MERGE: Final = "merge"
HEAD: Final = "decoder.head"
DECODE: Final = "decode"  # of a comparison: tokens one at a time, with a cache
SAMPLING: Final = "sampling"
ANSWER: Final = "sampling.answer"  # beside the tokens that are read along: all of them

_ORDER = (
    TOKENIZATION,
    RESOLUTION,
    PREPROCESSING,
    VISION_EMBEDDINGS,
    "vision.layers",
    POST_NORM,
    PROJECTOR,
    TAPS,
    STITCHING,
    EMBEDDING,
    MERGE,
    "decoder.layers",
    HEAD,
    SAMPLING,
    ANSWER,
)

_FREE = 4  # axes of a piece of an image's own size
_HEAD_POSITIONS = 64  # of a prompt, whose logits are compared: all of a long one would be gigabytes

#: The values of a trace by name of their stage.
Values = Mapping[str, np.ndarray]


def vision_layer(index: int) -> str:
    """The stage of a layer of the vision tower."""
    return f"vision.layers.{index}"


def decoder_layer(index: int) -> str:
    """The stage of a layer of the decoder."""
    return f"decoder.layers.{index}"


def in_order(values: Values) -> Values:
    """The same values in the order in which their stages run."""

    def place(name: str) -> tuple[int, int]:
        kind, _, index = name.rpartition(".")
        return (_ORDER.index(kind), int(index)) if index.isdigit() else (_ORDER.index(name), 0)

    return {name: values[name] for name in sorted(values, key=place)}


def joined_pixels(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """float32 `[pieces, 3, H, W]`; of pieces that may differ in size, `[1, 3, pixels]`.

    Args:
        pieces: float32 `[3, H, W]` each; one of an image's own size is marked by a leading axis, `[1, 3, H, W]`.
    """
    if pieces and pieces[0].ndim == _FREE:
        return np.concatenate([piece.reshape(*piece.shape[:2], -1) for piece in pieces], -1)
    return np.stack(pieces)


def head_start(values: Values) -> int:
    """The first position whose logits are in a trace."""
    return max(0, len(values[TOKENIZATION]) - _HEAD_POSITIONS)


def read_ids(values: Values) -> np.ndarray:
    """int64 `[positions]`: the prompt, and the answer but its last token."""
    return np.concatenate([values[TOKENIZATION], values[SAMPLING][:-1]]).astype(np.int64)


def before_placeholder(answer: np.ndarray, image: int) -> np.ndarray:
    """An answer up to where it names the placeholder of an image, which stands for no image there."""
    found = np.flatnonzero(answer == image)
    return answer[: found[0]] if found.size else answer


@dataclass(frozen=True)
class Question:
    """Question that is asked while a trace is taken.

    Attributes:
        prompt: without template or placeholders.
        images: uint8 `[height, width, 3]` each.
        encoder: name of the vision encoder; "auto" lets the model choose, "" where there is no image.
        vrc: whether the resolution compressor chooses each image's scale.
        max_new_tokens: bound of the answer; 0 asks for none.
    """

    prompt: str
    images: tuple[np.ndarray, ...] = ()
    encoder: str = "auto"
    vrc: bool = True
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Layout:
    """The parts of a model that a trace goes through, for comparison before the work.

    Attributes:
        vision: width and number of layers of each vision encoder's tower; None where a compiled one does not show it.
        decoder: number of decoder layers.
        hidden: width of the decoder.
        vocabulary: of the logits.
    """

    vision: Mapping[str, tuple[int, int] | None]
    decoder: int
    hidden: int
    vocabulary: int

    def differences(self, other: "Layout") -> Iterator[str]:
        """Differences in words."""
        for name in ("decoder", "hidden", "vocabulary"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                yield f"{_WORDS[name]}: {ours} and {theirs}"
        for encoder in sorted({*self.vision, *other.vision}):
            ours, theirs = (side.vision.get(encoder, _NONE) for side in (self, other))
            if ours is not None and theirs is not None and ours != theirs:
                yield f"width and layers of vision encoder {encoder}: {_sides(ours)} and {_sides(theirs)}"


_WORDS = {"decoder": "decoder layers", "hidden": "width of the decoder", "vocabulary": "vocabulary"}


_NONE = (0, 0)  # of an encoder that is not there


def _sides(found: tuple[int, int]) -> str:
    return "none" if found == _NONE else f"{found[0]} x {found[1]}"
