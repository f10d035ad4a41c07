"""What a model is asked."""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class Example:
    """A question about images.

    Attributes:
        id: unique within the task.
        kind: group for per-kind scores.
        question: the prompt.
        answers: every accepted answer.
        images: RGB images, loaded.
    """

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    images: tuple[Image.Image, ...]


class Task(Protocol):
    """Examples by position: only the one at hand is in memory, any can be loaded again.

    Attributes:
        name: as reports show it.
    """

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def example(self, index: int) -> Example:
        """Loads example `index`, from 0."""
        ...
