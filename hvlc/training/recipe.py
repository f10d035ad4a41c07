"""The frame of a training: stages keep their state, what was interrupted goes on, a checkpoint is written whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch

from hvlc.training.stages import Reporter
from hvlc.training.trainer import Trainer


class Recipe(ABC):
    """A model and the stages that train it; each method of a subclass trains it further.

    Args:
        work: directory for the state of the stages.
        seed: chooses new weights and documents.
        minutes: time of each stage where it differs from `MINUTES`.
        progress: called with the reports of every stage.
        workers: threads; each computes a batch of every update.

    Attributes:
        MINUTES: time of each stage, by name.
        WORKERS: threads of a training where nobody says how many.
        AUTOCAST: whether products are computed in bfloat16.
    """

    MINUTES: ClassVar[dict[str, float]]
    WORKERS: ClassVar[int] = 1
    AUTOCAST: ClassVar[bool] = True

    def __init__(
        self,
        work: Path,
        seed: int = 0,
        minutes: dict[str, float] | None = None,
        progress: Reporter | None = None,
        workers: int = 1,
    ) -> None:
        self.work, self.seed = work, seed
        self.trainer = Trainer(work, {**self.MINUTES, **(minutes or {})}, progress, workers, self.AUTOCAST)
        work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Make the model, in training mode, and what belongs to it; torch's seed is set."""

    @abstractmethod
    def finish(self, output: Path) -> dict[str, Any]:
        """Run all stages in order (what is done already is loaded), then measure the model and write its checkpoint.

        Args:
            output: directory of the checkpoint.

        Returns:
            The scores, as they stand in the model card.
        """

    @classmethod
    def train(
        cls,
        output: Path,
        work: Path,
        *,
        seed: int = 0,
        minutes: dict[str, float] | None = None,
        workers: int | None = None,
        progress: Reporter | None = None,
    ) -> dict[str, Any]:
        """Train the model, measure it, and write it to `output`.

        Interrupted, it goes on from what it left in `work`.

        Args:
            output: directory of the checkpoint; written whole or not at all.
            work: directory for the state of the stages.
            seed: chooses new weights and documents.
            minutes: time of each stage where it differs from `MINUTES`.
            workers: threads. None: `WORKERS`.
            progress: called with the reports of every stage.

        Returns:
            The scores, as they stand in the model card.

        Raises:
            FileExistsError: `output` exists.
        """
        if output.exists():
            raise FileExistsError(f"{output} exists; remove it or choose another directory")
        return cls(work, seed, minutes, progress, workers or cls.WORKERS).finish(output)
