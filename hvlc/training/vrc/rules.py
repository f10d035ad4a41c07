"""Rules that choose a scale by a label, and what scales cost and keep.

By loss: HyperVL's (arXiv 2512.14052), the answer's loss within a tolerance of that at full size. By equivalence: TCRR's
(docs/hypervl.md), the answer equivalent to that at full size. In both, every larger scale passes too: one that passes
below one that fails is luck. Visual tokens are counted as the model's rule makes them, in whole tiles or cells: among
scales of equally many the largest is the label, because a smaller one costs as much and shows less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvlc.training.vrc.labels import Label


@dataclass(frozen=True)
class Tolerance:
    """Bounds on how much larger the answer's loss may be than at full size.

    Attributes:
        ratio: factor on the loss at full size.
        nats: added to it; a loss near zero has no meaningful ratio.
    """

    ratio: float = 1.1
    nats: float = 0.02


def passes_by_loss(label: Label, tolerance: Tolerance) -> list[bool]:
    """Whether each scale's loss is within tolerance."""
    limit = label.losses[-1] * tolerance.ratio + tolerance.nats
    return [loss <= limit for loss in label.losses[:-1]] + [True]


def smallest(passes: Sequence[bool]) -> int:
    """Index of the smallest scale that passes with every larger one."""
    index = len(passes) - 1
    while index > 0 and passes[index - 1]:
        index -= 1
    return index


def chosen(label: Label, passes: Sequence[bool]) -> int:
    """Index of the scale: the smallest that passes with every larger one, then the largest with as many tokens."""
    index = smallest(passes)
    same = [at for at in range(index, len(passes)) if label.tokens[at] == label.tokens[index]]
    return max(same)


def by_loss(label: Label, tolerance: Tolerance) -> int:
    """Index of the scale by HyperVL's rule."""
    return chosen(label, passes_by_loss(label, tolerance))


def by_equivalence(label: Label) -> int:
    """Index of the smallest scale with an equivalent answer, every larger one's equivalent too."""
    return chosen(label, label.equivalent)


@dataclass(frozen=True)
class Outcome:
    """Effect of scales on labelled questions.

    Attributes:
        full_score: mean score at full size.
        score: mean score at the scales.
        saved: share of visual tokens saved.
        scores: of each question at its scale.
        full_scores: of each question at full size.
    """

    full_score: float
    score: float
    saved: float
    scores: np.ndarray
    full_scores: np.ndarray

    @property
    def kept(self) -> float:
        """Share of the score that is kept; 1 where there was none."""
        return self.score / self.full_score if self.full_score else 1.0


def outcome(labels: Sequence[Label], indices: Sequence[int], costs: Sequence[int] | None = None) -> Outcome:
    """Effect on labelled questions, if each is seen at the scale of its index.

    Args:
        labels: of the questions.
        indices: of the scales whose answers count.
        costs: of the scales whose visual tokens count. None: the same.
    """
    scores = np.array([label.scores[at] for label, at in zip(labels, indices, strict=True)])
    full = np.array([label.scores[-1] for label in labels])
    tokens = sum(label.tokens[at] for label, at in zip(labels, costs or indices, strict=True))
    whole = sum(label.tokens[-1] for label in labels)
    return Outcome(float(full.mean()), float(scores.mean()), 1 - tokens / whole, scores, full)


def below(label: Label, scale: float) -> int:
    """Index of the largest labelled scale that is not above a scale; of the smallest where all are."""
    return max((at for at, known in enumerate(label.scales) if known <= scale + 1e-6), default=0)


def above(label: Label, scale: float) -> int:
    """Index of the smallest labelled scale that is not below a scale."""
    return min(at for at, known in enumerate(label.scales) if known >= min(scale, 1.0) - 1e-6)


def rounding(labels: Sequence[Label], indices: Sequence[int]) -> float:
    """Share of visual tokens that whole tiles or cells cost beyond the area that each question asks for."""
    pairs = [
        (label.tokens[at], label.tokens[-1] * label.scales[at] ** 2) for label, at in zip(labels, indices, strict=True)
    ]
    return sum(max(0.0, made - area) for made, area in pairs) / sum(made for made, _ in pairs)


def kept_interval(found: Outcome, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the share of the score that is kept, over questions."""
    generator, n = np.random.default_rng(seed), len(found.scores)
    ratios = []
    for _ in range(resamples):
        drawn = generator.integers(0, n, n)
        full = found.full_scores[drawn].sum()
        ratios.append(found.scores[drawn].sum() / full if full else 1.0)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return min(float(low), found.kept), max(float(high), found.kept)
