"""From texts to the tokens that `hvlc run` feeds, before there is a package.

A package asks onnxruntime-genai for tokens, which opens packages alone. So the checkpoint's own files are read: its
tokenizer by the library that made it, its chat template by Jinja in the sandbox and with the settings of transformers
(`chat_template_utils.py`).
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Never

import jinja2
import numpy as np
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from hvlc.calibration.samples import ImagePrompt
from hvlc.errors import UserError
from hvlc.files.reading import is_file
from hvlc.inputs.tokenizer import chat_template, opening_tokens, tokenizer_config
from hvlc.manifest.manifest import Kind

_TOKENIZER = "checkpoint.tokenizer"
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

#: For templates that write the date of today: the same day on every day, so that inputs do not change overnight.
_TODAY = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)

#: What a template can raise besides Jinja's own errors.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


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

    def __init__(self, directory: Path, facts: Mapping[str, Any]) -> None:
        self._directory = directory
        self._facts = facts
        self._tokenizer = _open_tokenizer(directory / "tokenizer.json")
        self.opening = tuple(opening_tokens(directory, _TOKENIZER))
        self._specials = _special_tokens(tokenizer_config(directory, _TOKENIZER))
        self._template = _compiled(chat_template(directory, _TOKENIZER), directory)
        eos = facts["eos_token_id"]
        self._ends: list[int] = eos if isinstance(eos, list) else [eos]

    def encode(self, text: str) -> list[int]:
        """Ids of a text and nothing else; what looks like a special token is one."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

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
        if self._facts["kind"] != Kind.VISION_LANGUAGE:
            raise UserError("calibration.modality", f"{self._directory} sees no images", "calibrate it on text")
        image, row = int(self._facts["image_token_id"]), int(self._facts["row_token_id"])
        placeholder = str(self._tokenizer.id_to_token(image))
        content = [{"type": "image"}, {"type": "text", "text": question}]
        parts = self._render([{"role": "user", "content": content}], answers=True).split(placeholder)
        if placeholder in question or placeholder in (answer or ""):
            raise UserError("calibration.placeholder", f"the text itself contains {placeholder}", "remove it")
        if len(parts) != 2:
            cause = f"the chat template of {self._directory} shows {len(parts) - 1} of 1 image"
            raise UserError("calibration.template", cause, "use a checkpoint whose template renders images")
        before, after = (self.encode(part) for part in parts)
        return ImagePrompt(_array(before), _array([*after, *self._answered(answer)]), image, row)

    def _answered(self, answer: str | None) -> list[int]:
        return [] if answer is None else [*self.encode(answer), self._end]

    @cached_property
    def _end(self) -> int:
        """Of the tokens that end an answer, the one that the template writes; the first where it writes none."""
        if self._template is None:
            return self._ends[0]
        turn = self.encode(self._render([_user("?"), {"role": "assistant", "content": "!"}], answers=False))
        return next((token for token in reversed(turn) if token in self._ends), self._ends[0])

    def _render(self, messages: Sequence[Mapping[str, Any]], *, answers: bool) -> str:
        """Messages as one text; `answers` ends it where the model's turn begins."""
        if self._template is None:
            cause = f"{self._directory} has no chat template to show an image with"
            raise UserError("calibration.template", cause, "use a checkpoint whose template renders images")
        try:
            return self._template.render(messages=messages, add_generation_prompt=answers, **self._specials)
        except _TEMPLATE_ERRORS as error:
            raise _template_error(self._directory, error) from error


def _open_tokenizer(path: Path) -> Tokenizer:
    if not is_file(path):
        raise UserError(_TOKENIZER, f"{path.parent} holds no {path.name}", "save the tokenizer beside the model")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(_TOKENIZER, f"cannot read {path}: {error}", "save the tokenizer again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts that templates know by name; saved as they are, or as `{"content": text}`."""
    found = {name: config.get(name) for name in _SPECIAL}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _compiled(source: str | None, directory: Path) -> jinja2.Template | None:
    if not source:
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _TODAY.strftime
    try:
        return environment.from_string(source)
    except _TEMPLATE_ERRORS as error:
        raise _template_error(directory, error) from error


def _template_error(directory: Path, error: Exception) -> UserError:
    cause = f"cannot render the chat template of {directory}: {error}"
    return UserError("calibration.template", cause, "correct the messages, or simplify the template")


def _json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> Never:
    raise jinja2.TemplateError(message)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.array(ids, np.int64)
