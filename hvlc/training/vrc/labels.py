"""Labels by the model itself: what it answers, and how surely, at every scale of an image."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from hvlc.errors import UserError
from hvlc.evaluation.benchmarks.scores import METRICS, relaxed_accuracy
from hvlc.evaluation.metrics import anls, normalized
from hvlc.evaluation.task import Example
from hvlc.inputs.images import to_array
from hvlc.results.base import Record
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.tiles import piece_digests
from hvlc.runtime.vision import Seen

#: Scales per side that are tried, ascending: all that a compressor chooses.
SCALES = tuple(round(0.05 * step, 2) for step in range(2, 21))
#: Raised whenever labels of an earlier version mean something else.
VERSION = 3
_SIMILAR = 0.9  # ANLS of answers that count as equivalent
_GIVEN_UP = 2  # neighbouring scales that fail, after which smaller ones are not asked
_RATIO, _NATS = 2.0, 0.1  # a loss above so many times that at full size and so many nats fails by every tolerance

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
        losses: mean cross-entropy of the true answer's tokens, in nats; that of the next larger scale where not asked.
        answers: the model's greedy answers; empty at scales that were not asked.
        equivalent: whether each is equivalent to that at full size.
        scores: of each by the task's metric; 0 at scales that were not asked.
        unasked: number of scales, the smallest ones, that were not asked: those above them fail already.
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
    unasked: int = Field(ge=0, default=0)


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

    The largest is asked first. Neighbouring scales at which the encoder is given the same pixels are asked once, and
    smaller ones are left out once two in a row fail by both rules: no rule chooses a scale below one that fails.

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
    found: list[_Asked] = []
    failed, seen_last = 0, None
    for scale in reversed(scales):
        generation = model.start(
            example.question, example.images, encoder=encoder, vrc=False, max_new_tokens=len(truth), scale=scale
        )
        pixels = _digest(generation.images)
        if pixels == seen_last:
            found.append(found[-1])
            continue
        seen_last = pixels
        rows = model.along(generation, truth)
        answer = full.text
        if scale != scales[-1]:
            surely = tuple(int(row.argmax()) for row in rows) == tuple(truth) and truth == full.tokens
            answer = full.text if surely else _answered(model, example, encoder, scale, max_new_tokens)
        seen = sum(image.visual_tokens for image in generation.images)
        found.append(_Asked(seen, _loss(rows, truth), answer))
        failed = failed + 1 if _fails(found[-1], found[0], full.text, equivalence) else 0
        if failed == _GIVEN_UP:
            break
    found.reverse()
    image = example.images[0]
    left = scales[: len(scales) - len(found)]
    array = to_array(image)
    return Label(
        id=example.id,
        height=image.height,
        width=image.width,
        question=tuple(model.text_ids(example.question)),
        scales=tuple(scales),
        tokens=tuple(model.seen_at(array, scale).visual_tokens for scale in left) + tuple(one.tokens for one in found),
        losses=(found[0].loss,) * len(left) + tuple(one.loss for one in found),
        answers=("",) * len(left) + tuple(one.answer for one in found),
        equivalent=(False,) * len(left) + tuple(equivalence(one.answer, full.text) for one in found),
        scores=(0.0,) * len(left) + tuple(metric(one.answer, example.answers) for one in found),
        unasked=len(left),
    )


@dataclass(frozen=True)
class _Asked:
    """Visual tokens, loss of the truth in nats, and answer of a question at one scale."""

    tokens: int
    loss: float
    answer: str


def _fails(asked: _Asked, whole: _Asked, full: str, equivalence: Equivalence) -> bool:
    """Whether a scale fails by its answer, however that is compared, and clearly by its loss."""
    similar = any(rule(asked.answer, full) for rule in (equivalence, *EQUIVALENCES.values()))
    return not similar and asked.loss > whole.loss * _RATIO + _NATS


def with_equivalence(label: Label, equivalence: Equivalence) -> Label:
    """A label by another rule of equivalence, which follows from its answers."""
    full, asked = label.answers[-1], label.answers[label.unasked :]
    equivalent = (False,) * label.unasked + tuple(equivalence(answer, full) for answer in asked)
    return label.model_copy(update={"equivalent": equivalent})


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
