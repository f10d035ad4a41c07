"""Training that the recipes share: the trainer of their stages, and the stages of reading and answering."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from hvlc.training.answering import Answers, Batch
from hvlc.training.optimizing import Optimizer
from hvlc.training.reading import ReadingHead, reading_loss
from hvlc.training.stages import Reporter, Stage

Loss = tuple[torch.Tensor, dict[str, float]]
Windows = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Trainer:
    """Runner of a recipe's stages.

    Attributes:
        work: directory for their state.
        minutes: time of each, by name.
        progress: called with their reports.
        workers: threads; each computes a batch of every update.
        autocast: whether products are computed in bfloat16.
    """

    work: Path
    minutes: dict[str, float]
    progress: Reporter | None = None
    workers: int = 1
    autocast: bool = True

    def run(
        self,
        name: str,
        modules: dict[str, nn.Module],
        optimizer: Optimizer,
        draw: Callable[[float], T],
        loss: Callable[[T, float], Loss],
    ) -> None:
        """Run a stage for its minutes, or for what is left of them."""
        seconds = 60 * self.minutes[name]
        Stage(name, modules, optimizer, draw, loss, seconds, self.work, self.progress, self.workers).run()

    def bfloat16(self) -> torch.autocast:
        """A context in which products are computed in bfloat16, if that is wanted."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)


def train_reading(
    trainer: Trainer, name: str, tower: nn.Module, head: ReadingHead, pages: Iterator[Windows], rate: float = 3e-3
) -> None:
    """Teach a tower which character is under each patch.

    Args:
        trainer: runs the stage.
        name: of the stage.
        tower: from pixels to patch features.
        head: from patch features to characters.
        pages: tiles and their targets.
        rate: peak learning rate.
    """

    def loss(batch: Windows, _: float) -> Loss:
        tiles, targets = batch
        with trainer.bfloat16():
            logits = head(tower(tiles).last_hidden_state)
        right = (logits.argmax(-1) == targets)[targets > 0].float().mean()
        total = reading_loss(logits, targets)
        return total, {"loss": total.item(), "characters": right.item()}

    optimizer = Optimizer([tower], rate, plain=[head], floor=0.1)
    trainer.run(name, {"tower": tower, "head": head}, optimizer, lambda _: next(pages), loss)


def train_answering(
    trainer: Trainer,
    modules: dict[str, nn.Module],
    trained: Iterable[nn.Module],
    head: ReadingHead,
    draw: Callable[[float], Batch],
    forward: Callable[[Batch, bool], Answers],
    frozen: float,
) -> None:
    """Teach a model to transcribe and to answer; a tower that is trained along goes on reading.

    Args:
        trainer: runs the stage, "answer".
        modules: what is saved, by name.
        trained: what is trained besides `head`.
        head: from patch features to characters.
        draw: gives a batch; told the share of the stage that is over.
        forward: the model's answers to a batch; told whether the tower only looks on.
        frozen: share of the stage in which it does.
    """

    def loss(batch: Batch, over: float) -> Loss:
        answers = forward(batch, over < frozen)
        values = {"loss": answers.loss.item(), "tokens": answers.accuracy}
        if over < frozen:
            return answers.loss, values
        reading = reading_of(trainer, batch, answers, head)
        return answers.loss + 0.5 * reading, {**values, "reading": reading.item()}

    trainer.run("answer", modules, Optimizer(trained, 2e-3, plain=[head]), draw, loss)


def reading_of(trainer: Trainer, batch: Batch, answers: Answers, head: ReadingHead) -> torch.Tensor:
    """The reading loss of the patches behind `answers`."""
    with trainer.bfloat16():
        return reading_loss(head(answers.patches), batch.reading)
