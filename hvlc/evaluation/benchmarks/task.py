"""A public benchmark as a task."""

from pathlib import Path
from typing import Any

from PIL import Image

from hvlc.errors import UserError
from hvlc.evaluation.benchmarks.published import BENCHMARKS, Question
from hvlc.evaluation.benchmarks.rows import open_rows
from hvlc.evaluation.task import Example
from hvlc.files.reading import shown
from hvlc.files.scratch import temporary_directory
from hvlc.inputs.images import load_image
from hvlc.inputs.jsonl import image_beside

_CODE = "task.benchmark"


class BenchmarkTask:
    """Questions of a public benchmark in a local directory.

    Rows of JSON are looked at when it is opened, so that a wrong one stops the work before it starts; of Parquet the
    first is. Images are read when asked for.

    Args:
        name: in `BENCHMARKS`.
        place: directory or file of the benchmark.
        suffix: text that ends every prompt. None: the one that is usually asked.

    Raises:
        UserError: there are no such files, or rows are wrong: the first is named.
    """

    def __init__(self, name: str, place: Path, suffix: str | None = None) -> None:
        self._name, self._place, self._benchmark = name, place, BENCHMARKS[name]
        self._suffix = self._benchmark.suffix if suffix is None else suffix
        self._rows = open_rows(self._benchmark, place)
        for index in range(len(self._rows) if self._rows.file else 1):
            self._question(index)

    @property
    def name(self) -> str:
        return self._name

    @property
    def shows_images(self) -> bool:
        return True

    @property
    def max_new_tokens(self) -> int:
        """Bound of an answer, as the benchmark is usually asked."""
        return self._benchmark.new_tokens

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int) -> Example:
        """Question and image of row `index`.

        Raises:
            UserError: the row or its image is wrong.
        """
        question = self._question(index)
        try:
            image = self._image(question)
        except (UserError, ValueError) as error:
            raise self._wrong(index, error.cause if isinstance(error, UserError) else str(error)) from error
        text = question.text + self._suffix
        named = question.id or str(index)
        return Example(
            f"{self._name}-{index}-{named}"[:200], question.kind, text, question.answers, (image,), question.metric
        )

    def _question(self, index: int) -> Question:
        row: Any = self._rows.row(index)
        try:
            return self._benchmark.question(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise self._wrong(index, said) from error

    def _image(self, question: Question) -> Image.Image:
        """RGB image of a question.

        Raises:
            ValueError: no file has one of its names.
            UserError: it is not an image that hvlc reads.
        """
        if isinstance(question.image, bytes):
            with temporary_directory("benchmark") as scratch:
                file = scratch / "image"
                file.write_bytes(question.image)
                return load_image(file)
        if self._rows.file is None:
            raise ValueError("it has no image")
        problems: list[ValueError] = []
        for name in question.image:
            try:
                return load_image(image_beside(self._rows.file, name))
            except ValueError as error:
                problems.append(error)
        raise problems[0]

    def _wrong(self, index: int, said: str) -> UserError:
        cause = f"{shown(self._place)}, row {index} of {self._benchmark.title}: {said[:300]}"
        return UserError(_CODE, cause, "check the benchmark's files, and that they are of this benchmark")
