"""From texts to the tokens that `hvlc run` feeds, before there is a package.

The runtime's own tokenizer encodes them, in a process of its own (`hvlc.chat.renderer`), after the steps that a package
leaves to its host. The template is rendered as transformers renders it: that a package's renders alike is shown when it
is built.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hvlc.calibration.samples import ImagePrompt
from hvlc.chat.renderer import Refusal, Renderer
from hvlc.chat.source import read_specials, read_template, runtime_files
from hvlc.chat.tokenizing import FILES, added_tokens, check_text, normalization, normalized
from hvlc.errors import UserError
from hvlc.files.reading import is_file
from hvlc.graphs.facts import Facts
from hvlc.inputs.tokenizer import opening_tokens

_TOKENIZER = "checkpoint.tokenizer"

#: For templates that write the date of today: the same day on every day, so that inputs do not change overnight.
_TODAY = "2024-07-26"


class Prompts:
    """The tokenizer and the chat template of a checkpoint.

    Args:
        directory: the checkpoint.
        facts: of its bundle: kind, end tokens and, for one that sees, the ids of placeholders.

    Attributes:
        opening: ids that come before a plain text.

    Raises:
        UserError: the tokenizer or the template cannot be read.
    """

    def __init__(self, directory: Path, facts: Facts) -> None:
        self._directory = directory
        self._facts = facts
        missing = [name for name in FILES if not is_file(directory / name)]
        if missing:
            cause = f"{directory} holds no {' and no '.join(missing)}"
            raise UserError(_TOKENIZER, cause, "save the tokenizer beside the model")
        self.opening = tuple(opening_tokens(directory, _TOKENIZER))
        self._form = normalization(directory)
        self._specials = read_specials(directory)
        found = read_template(directory)
        self._template = found.text if found else None
        self._renderer = Renderer(runtime_files(directory))
        refusal = self._renderer.opened()
        if refusal is not None:
            raise self._unreadable(refusal)
        self._ends = facts.speaks.end_tokens

    def encode(self, text: str) -> list[int]:
        """Ids of a text and nothing else; what looks like a special token is one.

        Raises:
            UserError: the runtime cannot take the text whole.
        """
        check_text(text, "calibration.text")
        found = self._renderer.encoded([normalized(text, self._form)])
        if isinstance(found, Refusal):
            raise self._unreadable(found)
        return found[0]

    def text(self, text: str) -> np.ndarray:
        """int64 `[n]`: a plain text, after the tokens that open one."""
        return _array([*self.opening, *self.encode(text)])

    def prompt(self, prompt: str, answer: str | None) -> np.ndarray:
        """int64 `[n]`: a request as `hvlc run` makes it, and the answer that should follow.

        Raises:
            UserError: the template cannot be rendered.
        """
        if self._template is None:
            return _array([*self.opening, *self.encode(prompt), *self._answered(answer)])
        return _array([*self.encode(self._render([_user(prompt)], answers=True)), *self._answered(answer)])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """int64 `[n]`: a conversation; where the user has the last word, up to where the answer begins.

        Raises:
            UserError: there is no template, or it cannot be rendered.
        """
        if self._template is None:
            cause = f"{self._directory} has no chat template for messages"
            raise UserError("calibration.template", cause, 'give "text" or "prompt" instead')
        return _array(self.encode(self._render(messages, answers=messages[-1]["role"] != "assistant")))

    def image(self, question: str, answer: str | None) -> ImagePrompt:
        """A question about one image as `hvlc run` asks it, and the answer that should follow.

        Raises:
            UserError: the question brings a placeholder of its own, or the template drops the image.
        """
        if self._facts.image is None:
            raise UserError("calibration.modality", f"{self._directory} sees no images", "calibrate it on text")
        image = self._facts.image
        placeholder = image.placeholder or str(added_tokens(self._directory).get(image.placeholder_id))
        content = [{"type": "image"}, {"type": "text", "text": question}]
        parts = self._render([{"role": "user", "content": content}], answers=True).split(placeholder)
        if placeholder in question or placeholder in (answer or ""):
            raise UserError("calibration.placeholder", f"the text itself contains {placeholder}", "remove it")
        if len(parts) != 2:
            cause = f"the chat template of {self._directory} shows {len(parts) - 1} of 1 image"
            raise UserError("calibration.template", cause, "use a checkpoint whose template renders images")
        before, after = self.encode(parts[0] + image.before), self.encode(image.after + parts[1])
        return ImagePrompt(_array(before), _array([*after, *self._answered(answer)]))

    def _answered(self, answer: str | None) -> list[int]:
        return [] if answer is None else [*self.encode(answer), self._end]

    @cached_property
    def _end(self) -> int:
        """End token that the template writes, of those that end an answer; the first where it writes none."""
        if self._template is None:
            return self._ends[0]
        turn = self.encode(self._render([_user("?"), {"role": "assistant", "content": "!"}], answers=False))
        return next((token for token in reversed(turn) if token in self._ends), self._ends[0])

    def _render(self, messages: Sequence[Mapping[str, Any]], *, answers: bool) -> str:
        """Messages as one text; `answers` ends it where the model's turn begins."""
        if self._template is None:
            cause = f"{self._directory} has no chat template to show an image with"
            raise UserError("calibration.template", cause, "use a checkpoint whose template renders images")
        for message in messages:
            content = message["content"]
            for text in [content] if isinstance(content, str) else [part.get("text", "") for part in content]:
                check_text(text, "calibration.text")
        found = self._renderer.transformers(messages, self._template, self._specials, answers=answers, today=_TODAY)
        if isinstance(found, Refusal):
            cause = f"cannot render the chat template of {self._directory}: {found.cause}"
            raise UserError("calibration.template", cause, "correct the messages, or simplify the template")
        return found

    def _unreadable(self, refusal: Refusal) -> UserError:
        cause = f"onnxruntime-genai cannot read the tokenizer in {self._directory}: {refusal.cause}"
        return UserError(_TOKENIZER, cause, "save the tokenizer again")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.array(ids, np.int64)
