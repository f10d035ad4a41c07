"""Calibration samples from a JSON Lines file; a line's keys say what it is.

    {"text": "..."}                                        its first tokens
    {"prompt": "...", "answer": "..."}                     a request, and what should follow (if given)
    {"messages": [{"role": "user", "content": "..."}]}     a conversation
    {"image": "a.png", "question": "...", "answers": []}   as `hvlc eval` reads it; the first answer counts

Any of them may have a `kind`. A sequence without an image ends after as many tokens as are asked for.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from hvlc.calibration.prompts import Prompts
from hvlc.calibration.samples import ImageSample, Sample, StoredPicture, TextSample
from hvlc.calibration.text_windows import evenly_spaced
from hvlc.errors import Collector, UserError
from hvlc.files.reading import shown
from hvlc.inputs.jsonl import ImageLine, JsonLines, Line, Words, image_beside

FIX = 'each line is an object like {"text": "..."} or {"image": "a.png", "question": "Total?", "answers": ["9.90"]}'


class _Answered(Line):
    """An answer in one of two spellings."""

    answer: Words | None = None
    answers: Annotated[list[Words], Field(min_length=1)] | None = None

    @property
    def first_answer(self) -> str | None:
        """The answer that the model is shown."""
        return self.answers[0] if self.answers else self.answer


class _Text(Line):
    text: Words
    kind: Words = "text"


class _Prompt(_Answered):
    prompt: Words
    kind: Words = "prompt"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Words
    content: Words


class _Chat(Line):
    messages: Annotated[list[_Message], Field(min_length=1)]
    kind: Words = "messages"


class _Image(ImageLine, _Answered):
    pass


#: The key that tells what a line is, in the order of looking.
_KINDS: dict[str, type[_Text] | type[_Prompt] | type[_Chat] | type[_Image]] = {
    "image": _Image,
    "messages": _Chat,
    "prompt": _Prompt,
    "text": _Text,
}


class JsonlSamples:
    """The lines of a file, checked.

    Args:
        path: the file.

    Attributes:
        images: how many lines have an image.

    Raises:
        UserError: the file is missing or empty, or lines are wrong: the first are named with their numbers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.images = 0
        self._lines = JsonLines(path, self._counted, area="calibration", fix=FIX)

    def __len__(self) -> int:
        return len(self._lines)

    def samples(self, prompts: Prompts | None, count: int, tokens: int) -> tuple[list[Sample], int]:
        """Up to `count` samples at even distances, and how many sequences were cut to `tokens`.

        Args:
            prompts: of the model; None where no language model reads them.
            count: how many at most.
            tokens: after which a sequence without an image ends.

        Raises:
            UserError: images are broken or lines cannot become tokens; all of them at once.
        """
        picture = lru_cache(maxsize=None)(StoredPicture.open)
        found: Collector = Collector()
        samples: list[Sample] = []
        cut = 0
        for at in evenly_spaced(len(self), count):
            number, line = self._lines.read(at)
            with found:
                sample = self._sample(line, number, prompts, picture)
                if isinstance(sample, TextSample) and len(sample.ids) > tokens:
                    sample = TextSample(sample.kind, sample.ids[:tokens])
                    cut += 1
                samples.append(sample)
        found.raise_all()
        return samples, cut

    def _counted(self, content: Any) -> Line:
        line = _parse(content)
        if isinstance(line, _Image):
            image_beside(self._path, line.image)
            self.images += 1
        return line

    def _sample(
        self, line: Line, number: int, prompts: Prompts | None, picture: Callable[[Path], StoredPicture]
    ) -> Sample:
        try:
            if isinstance(line, _Image):
                opened = picture(image_beside(self._path, line.image))
                answer = line.first_answer
                prompt = prompts.image(line.question, answer) if prompts else None
                return ImageSample(line.kind, opened, line.question, answer, prompt)
            return _text_sample(line, prompts)
        except UserError as error:
            raise UserError(error.code, f"{shown(self._path)} line {number}: {error.cause}", error.fix) from error
        except ValueError as error:  # the image has gone since the file was checked
            raise UserError("calibration.invalid", f"{shown(self._path)} line {number}: {error}", FIX) from error


def _parse(content: Any) -> Line:
    if not isinstance(content, dict):
        raise ValueError("the line is not an object")
    named = next((key for key in _KINDS if key in content), None)
    if named is None:
        raise ValueError(f"none of {', '.join(sorted(_KINDS))} is given")
    line = _KINDS[named].model_validate(content)
    if isinstance(line, _Answered) and line.answer is not None and line.answers is not None:
        raise ValueError("answer and answers are both given")
    return line


def _text_sample(line: Line, prompts: Prompts | None) -> TextSample:
    if prompts is None:
        raise UserError("calibration.modality", "it has no image, and the model reads nothing else", "give images")
    if isinstance(line, _Chat):
        return TextSample(line.kind, prompts.chat([m.model_dump() for m in line.messages]))
    if isinstance(line, _Prompt):
        return TextSample(line.kind, prompts.prompt(line.prompt, line.first_answer))
    if isinstance(line, _Text):
        return TextSample(line.kind, prompts.text(line.text))
    raise TypeError(f"{type(line).__name__} is not a text")
