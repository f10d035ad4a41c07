"""A user's task: a JSON Lines file with `image`, `question`, `answers` (and `kind`, if wished) per line.

The whole file is checked when it is opened, so that a bad line stops the work before it starts. Images are read
when asked for.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hvlc.errors import UserError
from hvlc.evaluation.task import Example
from hvlc.images import load_image
from hvlc.jsonl import ImageLine, JsonLines, Words, image_beside

_FIX = 'each line is an object like {"image": "a.png", "question": "Total?", "answers": ["9.90"]}'


class _Line(ImageLine):
    answers: Annotated[list[Words], Field(min_length=1)]


class JsonlTask:
    """The examples of a JSON Lines file; blank lines are left out, image paths are relative to the file.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing or empty, or lines are wrong: each is named with its number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = JsonLines(path, self._parse, area="task", fix=_FIX)

    @property
    def name(self) -> str:
        return self._path.stem

    def __len__(self) -> int:
        return len(self._lines)

    def example(self, index: int) -> Example:
        """Reads line and image `index`.

        Raises:
            UserError: the line or its image can no longer be read.
        """
        number, line = self._lines.read(index)
        try:
            image = load_image(image_beside(self._path, line.image))
        except UserError as error:
            cause = f"{self._path} line {number}: {error.cause}"
            raise UserError("task.invalid", cause, "check the file and its images") from error
        return Example(f"line-{number}", line.kind, line.question, tuple(line.answers), (image,))

    def _parse(self, content: Any) -> _Line:
        line = _Line.model_validate(content)
        image_beside(self._path, line.image)
        return line
