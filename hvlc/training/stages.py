"""A training stage: updates until its time is over, saved often, taken up where it stopped."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from hvlc.errors import UserError
from hvlc.training.optimizing import Optimizer

logger = logging.getLogger(__name__)

#: Seconds between saves.
SAVE_EVERY = 120.0

#: Errors of torch for a file that is not a stage, one that is cut, and one of other modules.
_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, OSError)
_LONGEST = 200  # characters of what torch says

#: Seconds between lines of progress.
REPORT_EVERY = 20.0


@dataclass(frozen=True)
class Report:
    """Progress of a stage.

    Attributes:
        stage: Its name.
        over: Share of its time that is over, 0 to 1.
        updates: Optimizer steps so far.
        values: Means since the last report, by name.
    """

    stage: str
    over: float
    updates: int
    values: dict[str, float]


Reporter = Callable[[Report], None]

Batch = TypeVar("Batch")


@dataclass
class Stage(Generic[Batch]):
    """One stage of a recipe and what it needs to be resumed.

    With several workers each update is the mean of as many batches, computed side by side in
    threads: PyTorch lets go of the interpreter lock inside an operation, and on a shared machine
    two threads with a core each wait less for one another than two threads inside every operation.

    Attributes:
        name: Names the file `<work>/<name>.pt`.
        modules: What is saved, by name.
        optimizer: Updates them.
        draw: Gives the next batch; it is told the share of the stage that is over.
        loss: The loss of a batch and values to report; told the same share.
        seconds: Time to spend.
        work: Directory of the file.
        progress: Called with every report.
        workers: Threads.
    """

    name: str
    modules: dict[str, nn.Module]
    optimizer: Optimizer
    draw: Callable[[float], Batch]
    loss: Callable[[Batch, float], tuple[torch.Tensor, dict[str, float]]]
    seconds: float
    work: Path
    progress: Reporter | None = None
    workers: int = 1
    spent: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """File that the stage is saved in."""
        return self.work / f"{self.name}.pt"

    def run(self) -> None:
        """Resume if there is something to resume, then train until the time is over."""
        if self.path.exists():
            self._resume()
        if self.spent >= self.seconds:
            return
        try:
            self._train()
        except KeyboardInterrupt:
            self.save()  # what was learned so far is taken up again
            raise
        self.save()

    def _train(self) -> None:
        """Update until the time is over; saved now and then, in case the process is killed."""
        saved = reported = clock = time.monotonic()
        sums: dict[str, list[float]] = {}
        with ThreadPoolExecutor(self.workers, initializer=_set_thread) as pool:
            waiting = self._draw()
            while self.spent < self.seconds:
                over = self.spent / self.seconds
                running = [pool.submit(self._gradients, batch, over) for batch in waiting]
                waiting = self._draw()
                for name, value in self._accumulate([future.result() for future in running]):
                    sums.setdefault(name, []).append(value)
                self.optimizer.step(over)
                now = time.monotonic()
                self.spent, clock = self.spent + now - clock, now
                if now - reported > REPORT_EVERY:
                    self._report(sums)
                    sums, reported = {}, now
                if now - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()

    def _draw(self) -> list[Batch]:
        return [self.draw(self.spent / self.seconds) for _ in range(self.workers)]

    def _gradients(self, batch: Batch, over: float) -> tuple[Sequence[torch.Tensor | None], dict[str, float]]:
        loss, values = self.loss(batch, over)
        return torch.autograd.grad(loss, self.optimizer.parameters, allow_unused=True), values

    def _accumulate(
        self, results: Sequence[tuple[Sequence[torch.Tensor | None], dict[str, float]]]
    ) -> Iterator[tuple[str, float]]:
        """Leave the mean gradient in the parameters and pass the values on."""
        for gradients, values in results:
            for parameter, gradient in zip(self.optimizer.parameters, gradients, strict=True):
                if gradient is None:
                    continue
                share = gradient / len(results)
                parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)
            yield from values.items()

    def save(self) -> None:
        """Write the file whole or not at all."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "spent": self.spent,
            "curve": self.curve,
            "done": self.spent >= self.seconds,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)

    def _resume(self) -> None:
        """Take the state up.

        Raises:
            UserError: the file is damaged, or of another training.
        """
        try:
            state = load(self.path)
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.spent, self.curve = float(state["spent"]), list(state["curve"])
        except _DAMAGED as error:
            said = f"{type(error).__name__}: {str(error)[:_LONGEST]}".splitlines()[0]
            cause = f"{self.path} cannot be taken up ({said})"
            raise UserError("train.state", cause, "remove it; that stage then begins anew") from error
        logger.info("%s: resumed after %.0f s", self.name, self.spent)

    def _report(self, sums: dict[str, list[float]]) -> None:
        values = {name: sum(found) / len(found) for name, found in sums.items()}
        over = self.spent / self.seconds
        self.curve.append({"seconds": self.spent, "updates": self.optimizer.updates, **values})
        told = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        logger.info("%s %.0f%% updates %d %s", self.name, 100 * over, self.optimizer.updates, told)
        if self.progress is not None:
            self.progress(Report(self.name, over, self.optimizer.updates, values))


def _set_thread() -> None:
    """One core for each worker; its numbers too small to be normal are 0.

    Masked attention leaves such numbers, which mean nothing and cost a sixth of an update (Intel Xeon, 2.13).
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def load(path: Path) -> dict[str, Any]:
    """Stage that `Stage.save` wrote."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
