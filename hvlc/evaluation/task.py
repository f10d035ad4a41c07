"""Tasks: the examples that a model is asked."""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class Example:
    """A question, mostly about images.

    Attributes:
        id: unique within the task.
        kind: group for per-kind scores.
        question: the prompt.
        answers: every accepted answer.
        images: RGB images, loaded; none where the question is about text.
        metric: the task's own, in `hvlc.evaluation.benchmarks.scores.METRICS`; "" where exact match and ANLS are all.
    """

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    images: tuple[Image.Image, ...]
    metric: str = ""


class Task(Protocol):
    """Examples by position: only the one at hand is in memory, any can be loaded again.

    Attributes:
        name: as reports show it.
        shows_images: whether any question is about an image.
    """

    @property
    def name(self) -> str: ...

    @property
    def shows_images(self) -> bool: ...

    def __len__(self) -> int: ...

    def example(self, index: int) -> Example:
        """Load example `index`, from 0."""
        ...
