"""A user's task: a JSON Lines file with `image` or `images`, `question`, `answers` (and `kind`, if wished) per line.

A line without image asks about text alone. The whole file is checked when it is opened, so that a bad line stops the
work before it starts. Images are read when asked for.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from hvlc.errors import UserError, nearest
from hvlc.evaluation.benchmarks.scores import METRICS
from hvlc.evaluation.task import Example
from hvlc.files.reading import shown
from hvlc.inputs.images import load_images
from hvlc.inputs.jsonl import JsonLines, Line, Words, image_beside

_FIX = 'each line is an object like {"image": "a.png", "question": "Total?", "answers": ["9.90"]}'


class _Line(Line):
    image: Words | None = None
    images: Annotated[list[Words], Field(min_length=1)] | None = None
    question: Words
    answers: Annotated[list[Words], Field(min_length=1)]
    kind: Words = "other"
    metric: str = ""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric and metric not in METRICS:
            raise ValueError(f"there is no metric {metric[:40]!r}; {nearest(metric[:40], list(METRICS))}")
        return metric

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if self.image is not None and self.images is not None:
            raise ValueError("give image or images, not both")
        return self

    @property
    def shown(self) -> list[str]:
        """Paths of the images in order, relative to the file."""
        return self.images or ([] if self.image is None else [self.image])


class JsonlTask:
    """The examples of a JSON Lines file; blank lines are left out, image paths are relative to the file.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing or empty, or lines are wrong: each is named with its number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shows_images = False
        self._lines = JsonLines(path, self._parse, area="task", fix=_FIX)

    @property
    def name(self) -> str:
        return self._path.stem

    @property
    def shows_images(self) -> bool:
        return self._shows_images

    def __len__(self) -> int:
        return len(self._lines)

    def example(self, index: int) -> Example:
        """Read line and images `index`.

        Raises:
            UserError: the line or an image of it can no longer be read.
        """
        number, line = self._lines.read(index)
        try:
            images = tuple(load_images([image_beside(self._path, name) for name in line.shown]))
        except (UserError, ValueError) as error:
            said = error.cause if isinstance(error, UserError) else str(error)
            cause = f"{shown(self._path)} line {number}: {said}"
            raise UserError("task.invalid", cause, "check the file and its images") from error
        return Example(f"line-{number}", line.kind, line.question, tuple(line.answers), images, line.metric)

    def _parse(self, content: Any) -> _Line:
        line = _Line.model_validate(content)
        for name in line.shown:
            image_beside(self._path, name)
        self._shows_images |= bool(line.shown)
        return line
