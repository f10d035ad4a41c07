"""The steps of a build: announced, timed, and what goes on beside them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

from hvlc.errors import HvlcError, Progress
from hvlc.graphs.bundle import JournalEntry
from hvlc.weights.checkpoint import Checkpoint

STEPS = ("open", "export", "passes", "plan", "quantize", "calibrate", "package", "compile")


class BuildSteps:
    """Announces and times the steps, and keeps the journal that their passes write to."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or (lambda what, done, total: None)
        self.journal: list[JournalEntry] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int], None]]:
        """A step; the yielded function takes the number of things it made or changed."""
        self._progress(name, STEPS.index(name), len(STEPS))
        started = time.perf_counter()
        counts: list[int] = []
        yield counts.append
        self.seconds[name] = time.perf_counter() - started
        self.journal.append(JournalEntry(name, "*", sum(counts), (), self.seconds[name]))

    def calibrated(self, what: str, done: int, total: int) -> None:
        """Progress inside the calibration of a component, in samples of its segments."""
        self._progress(f"calibrate {what}", done, total)

    def measured(self, what: str, done: int, total: int) -> None:
        """Progress of the measurement that a budget needs, in shares of its work."""
        self._progress(f"sensitivity {what}", done, total)

    def compiled(self, what: str, done: int, total: int) -> None:
        """Progress inside the last step, in components."""
        self._progress(what, done, total)

    def written(self, done: int, total: int) -> None:
        """Progress inside the step that writes, in bytes."""
        self._progress("package (MB)", done // 1_000_000, -(-total // 1_000_000))


class Digesting:
    """Digests a checkpoint in the background, which reads every file once while graphs are made."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._work: Future[Checkpoint] | None = None
        self._checkpoint: Checkpoint | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._checkpoint:
            self._checkpoint.given_up.set()  # at the good end nobody listens any more
        self._executor.shutdown()

    def start(self, checkpoint: Checkpoint) -> None:
        """Begin."""

        def digest() -> Checkpoint:
            checkpoint.digest_files()
            return checkpoint

        self._checkpoint = checkpoint
        self._work = self._executor.submit(digest)

    def finished(self) -> Checkpoint:
        """The checkpoint, once its digests are known."""
        if self._work is None:
            raise HvlcError("build.digest", "digesting was never started", "report it")
        return self._work.result()
