"""Training of the network on labels, its margin, and whether it is accepted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hvlc.export.compressor import HeldOut
from hvlc.training.optimizing import Optimizer
from hvlc.training.resolution import quantile_loss, steady_statistics
from hvlc.training.stages import Reporter
from hvlc.training.trainer import Loss, Trainer
from hvlc.training.vrc import rules
from hvlc.training.vrc.labels import Label
from hvlc.training.vrc.network import ResolutionNetwork

#: Factors on the predicted scale that are tried on calibration questions.
MARGINS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.8, 2.2)
_BATCH = 24
_QUANTILE = 0.6  # a scale too small costs answers, one too large only time


@dataclass(frozen=True)
class Questions:
    """Labelled questions with their views.

    Attributes:
        labels: of each.
        proxies: float16 `[n, 3, P, P]`.
        targets: index of the scale of each, by the rule of the labels.
    """

    labels: Sequence[Label]
    proxies: torch.Tensor
    targets: Sequence[int]

    def wanted(self, proxy_size: int) -> torch.Tensor:
        """float `[n]`: log of the wanted longest side over the side of the view."""
        found = [
            math.log(label.scales[at] * max(label.height, label.width) / proxy_size)
            for label, at in zip(self.labels, self.targets, strict=True)
        ]
        return torch.tensor(found)

    def asked(self, max_tokens: int) -> torch.Tensor:
        """int64 `[n, max_tokens]`: tokens of the questions, -1 after their end."""
        found = torch.full((len(self.labels), max_tokens), -1, dtype=torch.int64)
        for row, label in enumerate(self.labels):
            ids = label.question[:max_tokens]
            found[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return found


def fit(
    network: ResolutionNetwork,
    questions: Questions,
    *,
    max_tokens: int,
    minutes: float,
    work: Path,
    seed: int,
    progress: Reporter | None = None,
) -> None:
    """Train a network on labels; interrupted, it goes on from `work`.

    Args:
        network: to be trained.
        questions: to train on.
        max_tokens: of a question that are read.
        minutes: of training.
        work: directory of the state.
        seed: of the order.
        progress: told of the training.
    """
    work.mkdir(parents=True, exist_ok=True)
    steady_statistics(network)
    network.train()
    wanted, asked = questions.wanted(network.config.proxy_size), questions.asked(max_tokens)
    batches = _batches(questions.proxies, asked, wanted, seed)

    def loss(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], _: float) -> Loss:
        proxies, ids, targets = batch
        predicted = network(proxies, ids)
        error = (predicted.detach() - targets).abs().mean()
        return quantile_loss(predicted, targets, _QUANTILE), {"error": error.item()}

    optimizer = Optimizer([network], 1.5e-3, muon=False, warmup=50)
    trainer = Trainer(work, {"fit": minutes}, progress)
    trainer.run("fit", {"network": network}, optimizer, lambda _: next(batches), loss)
    network.eval()


def _batches(
    proxies: torch.Tensor, asked: torch.Tensor, wanted: torch.Tensor, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless batches in random order, the contrast of each view turned at random: a scale does not follow from it."""
    rng, order = random.Random(seed), list(range(len(proxies)))
    while True:
        rng.shuffle(order)
        for start in range(0, max(1, len(order) - _BATCH + 1), _BATCH):
            rows = order[start : start + _BATCH]
            views = proxies[rows].float()
            flips = torch.tensor([rng.choice((-1.0, 1.0)) for _ in rows])[:, None, None, None]
            yield views * flips, asked[rows], wanted[rows]


@torch.no_grad()
def predicted(network: ResolutionNetwork, questions: Questions, max_tokens: int) -> np.ndarray:
    """float64 `[n]`: predicted scales per side, before margin, bounds and grid."""
    network.eval()
    asked, found = questions.asked(max_tokens), []
    for start in range(0, len(questions.labels), 32):
        rows = slice(start, start + 32)
        found.append(network(questions.proxies[rows].float(), asked[rows]))
    sides = np.array([max(label.height, label.width) for label in questions.labels])
    wanted = torch.cat(found).double().exp().numpy() * network.config.proxy_size
    return np.asarray(wanted / sides)


def scales_of(raw: np.ndarray, margin: float, minimum: float, step: float) -> np.ndarray:
    """Scales as the front graph makes them: with the margin, within bounds, on their grid."""
    clipped = np.clip(raw * margin, minimum, 1.0)
    return np.clip(np.floor(clipped / step + 0.5) * step, minimum, 1.0)


def indices_of(labels: Sequence[Label], scales: np.ndarray) -> list[int]:
    """Index of the labelled scale that stands for each scale: the next smaller one."""
    return [rules.below(label, float(scale)) for label, scale in zip(labels, scales, strict=True)]


def costs_of(labels: Sequence[Label], scales: np.ndarray) -> list[int]:
    """Index of the labelled scale whose visual tokens stand for each scale's: the next larger one."""
    return [rules.above(label, float(scale)) for label, scale in zip(labels, scales, strict=True)]


def choose_margin(
    network: ResolutionNetwork, questions: Questions, max_tokens: int, floor: float
) -> tuple[float, list[tuple[float, float, float]]]:
    """The smallest margin that keeps the floor of the score on calibration questions, and every larger one too.

    Returns:
        The margin (the largest where none keeps it), and margin, share kept and share saved of all that were tried.
    """
    raw, config = predicted(network, questions, max_tokens), network.config
    tried = []
    for margin in MARGINS:
        scales = scales_of(raw, margin, config.min_scale, config.scale_step)
        found = rules.outcome(
            questions.labels, indices_of(questions.labels, scales), costs_of(questions.labels, scales)
        )
        tried.append((margin, found.kept, found.saved))
    best = MARGINS[-1]
    for margin, kept, _ in reversed(tried):
        if kept < floor:
            break
        best = margin
    return best, tried


def held_out(network: ResolutionNetwork, questions: Questions, max_tokens: int, margin: float) -> HeldOut:
    """Figures on questions that neither training nor the margin has seen."""
    raw, config = predicted(network, questions, max_tokens), network.config
    scales = scales_of(raw, margin, config.min_scale, config.scale_step)
    indices, costs = indices_of(questions.labels, scales), costs_of(questions.labels, scales)
    found = rules.outcome(questions.labels, indices, costs)
    best = rules.outcome(questions.labels, [rules.by_equivalence(label) for label in questions.labels])
    low, high = rules.kept_interval(found)
    return HeldOut(
        n=len(questions.labels),
        full_score=found.full_score,
        score=found.score,
        kept=found.kept,
        kept_low=low,
        kept_high=high,
        saved=found.saved,
        oracle_saved=best.saved,
        recovered=found.saved / best.saved if best.saved > 0 else None,
        rounding=rules.rounding(questions.labels, costs),
    )
