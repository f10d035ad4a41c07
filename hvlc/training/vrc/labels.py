"""Labels by the model itself: what it answers, and how surely, at every scale of an image."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from hvlc.errors import UserError
from hvlc.evaluation.benchmarks.scores import METRICS, relaxed_accuracy
from hvlc.evaluation.metrics import anls, normalized
from hvlc.evaluation.task import Example
from hvlc.results.base import Record
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.tiles import piece_digests
from hvlc.runtime.vision import Seen

#: Scales per side that are tried, ascending: all that a compressor chooses.
SCALES = tuple(round(0.05 * step, 2) for step in range(2, 21))
#: Raised whenever labels of an earlier version mean something else.
VERSION = 2
_SIMILAR = 0.9  # ANLS of answers that count as equivalent

Equivalence = Callable[[str, str], bool]


def _same(text: str, full: str) -> bool:
    return normalized(text).lower() == normalized(full).lower()


#: Rules by which an answer is equivalent to that at full size, by name.
EQUIVALENCES: dict[str, Equivalence] = {
    "exact": _same,
    "anls": lambda text, full: _same(text, full) or bool(full.strip() and anls(text, [full]) >= _SIMILAR),
    "numeric": lambda text, full: _same(text, full) or bool(relaxed_accuracy(text, [full])),
}


class Label(Record):
    """One question about an image, at every scale; lists are in the order of `scales`.

    Attributes:
        id: of the question.
        height: of the image in pixels.
        width: of the image in pixels.
        question: tokens of the question alone.
        scales: per side, ascending, the full size last.
        tokens: visual tokens, as the model's own rule makes them.
        losses: mean cross-entropy of the true answer's tokens, in nats.
        answers: the model's greedy answers.
        equivalent: whether each is equivalent to that at full size.
        scores: of each by the task's metric.
    """

    id: str
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    question: tuple[int, ...]
    scales: tuple[float, ...]
    tokens: tuple[int, ...]
    losses: tuple[float, ...]
    answers: tuple[str, ...]
    equivalent: tuple[bool, ...]
    scores: tuple[float, ...]


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Scales in ascending order.

    Raises:
        UserError: fewer than two, one twice, one outside (0, 1], or the full size is missing.
    """
    ordered = tuple(sorted(scales))
    if len(ordered) < 2 or len(set(ordered)) < len(ordered) or ordered[0] <= 0 or ordered[-1] != 1:
        cause = f"the scales are {', '.join(f'{s:g}' for s in ordered) or 'none'}"
        raise UserError("vrc.scales", cause, "give two or more different ones within 0 and 1, and 1 itself")
    return ordered


def label(
    model: VisionLanguageModel,
    example: Example,
    *,
    encoder: str,
    scales: Sequence[float],
    equivalence: Equivalence,
    max_new_tokens: int,
) -> Label:
    """Ask a model one question at every scale.

    Neighbouring scales at which the encoder is given the same pixels are asked once.

    Args:
        model: of a package in float32.
        example: a question about one image.
        encoder: that answers.
        scales: ascending, the full size last.
        equivalence: of answers.
        max_new_tokens: bound of an answer.

    Raises:
        UserError: the model cannot be asked.
    """
    full = model.answer(example.question, example.images, encoder=encoder, vrc=False, max_new_tokens=max_new_tokens)
    truth = full.tokens if full.text in example.answers else model.answer_ids(example.answers[0])
    metric = METRICS[example.metric or "exact_match"]
    found: list[tuple[int, float, str]] = []
    seen_last: bytes | None = None
    for scale in reversed(scales):
        generation = model.start(
            example.question, example.images, encoder=encoder, vrc=False, max_new_tokens=len(truth), scale=scale
        )
        pixels = _digest(generation.images)
        if pixels != seen_last:
            rows = model.along(generation, truth)
            answer = full.text
            if scale != scales[-1]:
                surely = tuple(int(row.argmax()) for row in rows) == tuple(truth) and truth == full.tokens
                answer = full.text if surely else _answered(model, example, encoder, scale, max_new_tokens)
            seen = sum(image.visual_tokens for image in generation.images)
            found.append((seen, _loss(rows, truth), answer))
        else:
            found.append(found[-1])
        seen_last = pixels
    found.reverse()
    answers = tuple(answer for *_, answer in found)
    image = example.images[0]
    return Label(
        id=example.id,
        height=image.height,
        width=image.width,
        question=tuple(model.text_ids(example.question)),
        scales=tuple(scales),
        tokens=tuple(seen for seen, *_ in found),
        losses=tuple(loss for _, loss, _ in found),
        answers=answers,
        equivalent=tuple(equivalence(answer, full.text) for answer in answers),
        scores=tuple(metric(answer, example.answers) for answer in answers),
    )


def with_equivalence(label: Label, equivalence: Equivalence) -> Label:
    """A label by another rule of equivalence, which follows from its answers."""
    full = label.answers[-1]
    return label.model_copy(update={"equivalent": tuple(equivalence(answer, full) for answer in label.answers)})


def _digest(images: Sequence[Seen]) -> bytes:
    """SHA-256 of what an encoder is given, and of the grids."""
    found = hashlib.sha256()
    for image in images:
        found.update(repr(image.grid.tolist()).encode())
        found.update(b"".join(digest for part in image.parts for digest in piece_digests(part)))
    return found.digest()


def _answered(model: VisionLanguageModel, example: Example, encoder: str, scale: float, most: int) -> str:
    generation = model.start(
        example.question, example.images, encoder=encoder, vrc=False, max_new_tokens=most, scale=scale
    )
    return "".join(generation)


def _loss(rows: np.ndarray, tokens: Sequence[int]) -> float:
    """Mean cross-entropy of tokens by logits float32 `[tokens, vocabulary]`."""
    high = rows.astype(np.float64)
    logs = np.logaddexp.reduce(high, axis=-1) - high[np.arange(len(tokens)), list(tokens)]
    return float(logs.mean())
