"""Training of the network on labels, the price of an answer, and whether the network is accepted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from hvlc.export.compressor import HeldOut
from hvlc.graphs.facts import scale_grid
from hvlc.models.hypervl.configuration import HyperVLResolutionConfig
from hvlc.training.optimizing import Optimizer
from hvlc.training.resolution import steady_statistics
from hvlc.training.stages import Reporter
from hvlc.training.trainer import Loss, Trainer
from hvlc.training.vrc import rules
from hvlc.training.vrc.labels import Label
from hvlc.training.vrc.network import ResolutionNetwork

#: Megapixels that a right answer is worth, which are tried on calibration questions.
PRICES = tuple(0.01 * 10 ** (step / 8) for step in range(41))
_BATCH = 24


@dataclass(frozen=True)
class Questions:
    """Labelled questions with their views.

    Attributes:
        labels: of each.
        proxies: float16 `[n, 3, P, P]`.
        smallest: index of the smallest scale of each that passes with every larger one.
    """

    labels: Sequence[Label]
    proxies: torch.Tensor
    smallest: Sequence[int]

    def bounds(self, proxy_size: int) -> torch.Tensor:
        """float `[n, 2]`: logs of longest sides over that of the view, of a size that fails and one that passes.

        Minus infinity where the smallest scale passes; infinity where the full size alone does, by definition.
        """
        found = []
        for label, at in zip(self.labels, self.smallest, strict=True):
            side = max(label.height, label.width) / proxy_size
            low = math.log(label.scales[at - 1] * side) if at > 0 else -math.inf
            found.append((low, math.log(label.scales[at] * side) if at < len(label.scales) - 1 else math.inf))
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
    bounds, asked = questions.bounds(network.config.proxy_size), questions.asked(max_tokens)
    batches = _batches(questions.proxies.contiguous(memory_format=torch.channels_last), asked, bounds, seed)

    def loss(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], _: float) -> Loss:
        proxies, ids, targets = batch
        found = interval_loss(network(proxies, ids), targets)
        return found, {"loss": found.item()}

    optimizer = Optimizer([network], 1.5e-3, muon=False, warmup=50)
    trainer = Trainer(work, {"fit": minutes}, progress)
    trainer.run("fit", {"network": network}, optimizer, lambda _: next(batches), loss)
    network.eval()


def _batches(
    proxies: torch.Tensor, asked: torch.Tensor, bounds: torch.Tensor, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless batches in random order, the contrast of each view turned at random: a scale does not follow from it."""
    rng, order = random.Random(seed), list(range(len(proxies)))
    while True:
        rng.shuffle(order)
        for start in range(0, max(1, len(order) - _BATCH + 1), _BATCH):
            rows = order[start : start + _BATCH]
            views = proxies[rows].float()
            flips = torch.tensor([rng.choice((-1.0, 1.0)) for _ in rows])[:, None, None, None]
            yield views * flips, asked[rows], bounds[rows]


def interval_loss(predicted: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood of sizes that are known to lie within bounds.

    Args:
        predicted: float `[n, 2]`, place and log of the spread of a logistic distribution.
        bounds: float `[n, 2]`, either of which may be infinite.
    """
    place, spread = predicted[:, :1], predicted[:, 1:].exp()
    low, high = ((bounds.clamp(-1e4, 1e4) - place) / spread).unbind(-1)
    # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high)): far from the bounds both are one
    inside = functional.logsigmoid(high) + functional.logsigmoid(-low) + torch.log(-torch.expm1(low - high))
    return -inside.mean()


@torch.no_grad()
def predicted(network: ResolutionNetwork, questions: Questions, max_tokens: int) -> np.ndarray:
    """float64 `[n, 2]`: what the network says of each question."""
    network.eval()
    asked, found = questions.asked(max_tokens), []
    for start in range(0, len(questions.labels), 32):
        rows = slice(start, start + 32)
        found.append(network(questions.proxies[rows].float(), asked[rows]))
    return np.asarray(torch.cat(found).double().numpy())


def scales_of(said: np.ndarray, labels: Sequence[Label], config: HyperVLResolutionConfig, price: float) -> np.ndarray:
    """float64 `[n]`: scales as the front graph chooses them (`hvlc.passes.vision.compress_resolution`).

    Args:
        said: float `[n, 2]` of the network.
        labels: of the questions, for the sizes of their images.
        config: of the network.
        price: megapixels that a right answer is worth.
    """
    grid = np.array(scale_grid(config.min_scale, config.scale_step))
    height, width = (np.array([getattr(label, side) for label in labels])[:, None] for side in ("height", "width"))
    above = (np.log(grid * np.maximum(height, width) / config.proxy_size) - said[:, :1]) / np.exp(said[:, 1:])
    cost = grid**2 * height * width * 1e-6 + price / (1 + np.exp(np.clip(above, -500, 500)))
    return np.asarray(grid[cost.argmin(1)])


def indices_of(labels: Sequence[Label], scales: np.ndarray) -> list[int]:
    """Index of the labelled scale that stands for each scale: the next smaller one."""
    return [rules.below(label, float(scale)) for label, scale in zip(labels, scales, strict=True)]


def costs_of(labels: Sequence[Label], scales: np.ndarray) -> list[int]:
    """Index of the labelled scale whose visual tokens stand for each scale's: the next larger one."""
    return [rules.above(label, float(scale)) for label, scale in zip(labels, scales, strict=True)]


def choose_price(
    network: ResolutionNetwork, questions: Questions, max_tokens: int, floor: float
) -> tuple[float, list[tuple[float, float, float]]]:
    """The smallest price that keeps the floor of the score on calibration questions.

    What is kept rises with the price but for luck: the rising sequence that is nearest to the shares decides.

    Returns:
        The price (the largest where none keeps it), and price, share kept and share saved of all that were tried.
    """
    said = predicted(network, questions, max_tokens)
    tried = []
    for price in PRICES:
        found = _outcome(said, questions, network.config, price)
        tried.append((price, found.kept, found.saved))
    kept = rising(np.array([kept for _, kept, _ in tried]))
    enough = [price for price, share in zip(PRICES, kept, strict=True) if share >= floor]
    return (enough[0] if enough else PRICES[-1]), tried


def rising(values: np.ndarray) -> np.ndarray:
    """The sequence that never falls and is nearest to `values` by least squares (isotonic regression)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    count = len(values)
    means = [(sums[start + 1 :] - sums[start]) / np.arange(1, count - start + 1) for start in range(count)]
    return np.array([max(means[start][at - start :].min() for start in range(at + 1)) for at in range(count)])


def _outcome(said: np.ndarray, questions: Questions, config: HyperVLResolutionConfig, price: float) -> rules.Outcome:
    scales = scales_of(said, questions.labels, config, price)
    return rules.outcome(questions.labels, indices_of(questions.labels, scales), costs_of(questions.labels, scales))


def held_out(network: ResolutionNetwork, questions: Questions, max_tokens: int, price: float) -> HeldOut:
    """Figures on questions that neither training nor the price has seen."""
    said, config = predicted(network, questions, max_tokens), network.config
    found = _outcome(said, questions, config, price)
    costs = costs_of(questions.labels, scales_of(said, questions.labels, config, price))
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
