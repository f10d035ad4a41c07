"""The Visual Resolution Compressor learns how far each document may be shrunk.

The trained model makes the labels: the smallest scale at which its answers are still as sure as
at full size, with every larger scale passing too. A first round on the text size that the
renderer knows costs nothing and leaves little for the labels to teach.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration, HyperVLResolutionCompressor
from hvlc.models.hypervl.processing import HyperVLImageProcessor
from hvlc.training.answering import IGNORED, pack, run
from hvlc.training.reading import one_of, page
from hvlc.training.vrc.rules import Tolerance
from hvlc.zoo.documents import Document, render
from hvlc.zoo.editions import NARROW, Edition

#: Scales that are tried, per side.
SCALES = tuple(round(0.1 * k, 1) for k in range(1, 11))

#: Text is taken to be legible from this many pixels per em, before the labels say better.
LEGIBLE = 10.0


@dataclass(frozen=True)
class Label:
    """Losses and right answers of the model on one document.

    Attributes:
        index: Of the document in its split.
        losses: Mean loss of the answer tokens by scale.
        right: By scale, for each question whether every answer token was the most probable one.
    """

    index: int
    losses: dict[float, float]
    right: dict[float, tuple[bool, ...]]


def smallest_scale(losses: Mapping[float, float], tolerance: Tolerance) -> float:
    """The smallest scale whose loss is within tolerance, and that of every larger scale too.

    A scale that passes below one that fails is luck, not legibility. Full size always passes.
    """
    full = max(losses)
    limit = losses[full] * tolerance.ratio + tolerance.nats
    best = full
    for scale in sorted(losses, reverse=True):
        if scale != full and not losses[scale] <= limit:
            break
        best = scale
    return best


@torch.no_grad()
def label(
    model: HyperVLForConditionalGeneration,
    processor: HyperVLImageProcessor,
    split: str,
    index: int,
    branch: str = "large",
    scales: Sequence[float] = SCALES,
    edition: Edition = NARROW,
) -> Label:
    """Teacher-forced answer losses of one document at each scale."""
    document = edition.render(split, index)
    patch = model.config.base_vision_config.patch_size
    asked = [(q.text, q.answer) for q in document.questions]
    losses, right = {}, {}
    for group in _similar(document, scales, model.config.tile_size):
        seen = [page(document, scale, processor, patch) for scale in group]
        batch = pack(seen, [asked] * len(seen), length_multiple=1)
        answers = run(model, batch, branch)
        loss = F.cross_entropy(answers.logits, answers.targets, reduction="none").view(len(seen), -1)
        hit = (answers.logits.argmax(-1) == answers.targets).view(len(seen), -1)
        numbers = batch.segments[batch.targets != IGNORED].view(len(seen), -1)
        for row, scale in enumerate(group):
            losses[scale] = float(loss[row].mean())
            right[scale] = tuple(bool(hit[row][numbers[row] == n].all()) for n in range(1, len(asked) + 1))
    return Label(index, losses, right)


def _similar(document: Document, scales: Sequence[float], tile: int) -> list[list[float]]:
    """Scales grouped by their number of tiles, so that a batch has little padding."""
    groups: dict[int, list[float]] = {}
    for scale in scales:
        sides = (math.ceil(side * scale / tile) for side in document.image.size)
        groups.setdefault(math.prod(sides), []).append(scale)
    return list(groups.values())


def wanted_size(document: Document, scale: float, proxy: int) -> float:
    """The compressor's target: log of the scaled longest side over the side of the proxy."""
    return math.log(scale * max(document.image.size) / proxy)


def legible_scale(document: Document) -> float:
    """The scale at which the document's smallest text is `LEGIBLE` pixels high; may exceed 1."""
    return LEGIBLE / min([size for size in document.line_sizes if size > 0], default=document.text_size)


def size_batches(
    seed: str, processor: HyperVLImageProcessor, count: int, editions: Sequence[Edition] = (NARROW,)
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless proxies `[count, 3, P, P]` and the targets `[count]` that follow from the text size."""
    rng = random.Random(seed)
    while True:
        documents = [one_of(editions, rng).render("train", rng.getrandbits(40)) for _ in range(count)]
        sizes = [wanted_size(d, legible_scale(d), processor.proxy_size) for d in documents]
        yield torch.cat([processor.proxy(d.image)[0] for d in documents]), torch.tensor(sizes)


def label_batches(
    seed: str,
    processor: HyperVLImageProcessor,
    labels: Sequence[Label],
    tolerance: Tolerance,
    count: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless proxies and targets of labelled train documents, in random order."""
    rng = random.Random(seed)
    documents = [render("train", found.index) for found in labels]
    proxies = [processor.proxy(d.image)[0] for d in documents]
    sizes = [
        wanted_size(d, smallest_scale(found.losses, tolerance), processor.proxy_size)
        for d, found in zip(documents, labels, strict=True)
    ]
    order = list(range(len(labels)))
    while True:
        rng.shuffle(order)
        for start in range(0, len(order) - count + 1, count):
            chosen = order[start : start + count]
            yield torch.cat([proxies[k] for k in chosen]), torch.tensor([sizes[k] for k in chosen])


def steady_statistics(compressor: nn.Module, momentum: float = 0.02) -> None:
    """Let batch normalization average over many batches.

    transformers gives MobileNetV2 a momentum of 0.997, TensorFlow's meaning of the word; in
    PyTorch's that keeps the last batch only, and the network answers differently once trained.
    """
    for module in compressor.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


def quantile_loss(predicted: torch.Tensor, wanted: torch.Tensor, quantile: float) -> torch.Tensor:
    """Pinball loss: above 0.5 it costs more to predict too small than too large."""
    error = wanted - predicted
    return torch.maximum(quantile * error, (quantile - 1) * error).mean()


@torch.no_grad()
def predicted_scales(
    compressor: HyperVLResolutionCompressor,
    processor: HyperVLImageProcessor,
    documents: Sequence[Document],
    offset: float = 0.0,
) -> list[float]:
    """Scales of `compressor.scale` with `offset` added to its output."""
    compressor.eval()
    bias = compressor.linear_2.bias
    bias += offset
    found = []
    for start in range(0, len(documents), 32):
        part = processor.proxies([d.image for d in documents[start : start + 32]])
        found += compressor.scale(part["proxy_values"], part["image_sizes"]).tolist()
    bias -= offset
    return found


@dataclass(frozen=True)
class Setting:
    """An offset of the compressor's output and what it does to calibration documents.

    Attributes:
        offset: Added to the log of the wanted size.
        kept: Right answers relative to full size.
        saved: Share of visual tokens saved.
    """

    offset: float
    kept: float
    saved: float


def choose_offset(
    compressor: HyperVLResolutionCompressor,
    processor: HyperVLImageProcessor,
    labels: Sequence[Label],
    *,
    keep: float,
    split: str = "calibration",
    offsets: Sequence[float] = (-0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
    edition: Edition = NARROW,
) -> tuple[Setting, list[Setting]]:
    """The smallest offset that keeps the share `keep` of the right answers on labelled documents.

    A predicted scale between two labelled ones counts as the smaller one.

    Returns:
        The chosen setting (the largest offset if none suffices) and all that were tried.
    """
    documents = [edition.render(split, found.index) for found in labels]
    tried = []
    for offset in sorted(offsets):
        scales = predicted_scales(compressor, processor, documents, offset)
        right, full, tokens, all_tokens = 0, 0, 0, 0
        for document, found, scale in zip(documents, labels, scales, strict=True):
            below = max((s for s in found.losses if s <= scale + 1e-6), default=min(found.losses))
            right, full = right + sum(found.right[below]), full + sum(found.right[max(found.losses)])
            tokens += _cells(document, scale, processor.cell_size)
            all_tokens += _cells(document, 1.0, processor.cell_size)
        tried.append(Setting(offset, right / max(1, full), 1 - tokens / all_tokens))
    enough = [setting for setting in tried if setting.kept >= keep]
    return (enough[0] if enough else tried[-1]), tried


def _cells(document: Document, scale: float, cell: int) -> int:
    return math.prod(math.ceil(max(1, int(side * scale)) / cell) for side in document.image.size)
