"""From the prompt to tokens: the package's chat template, or the plain prompt where it has none.

A template is a program of whoever made the package, so it runs in a process of its own (`hvlc.chat.renderer`), and so
do the first opening of the tokenizer and the first look at a text: what ends that process, or never ends there, as
regular expressions may, does no harm here.
"""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime_genai as og

from hvlc.chat.renderer import Messages, Refusal, Renderer
from hvlc.chat.tokenizing import Form, check_text, normalized
from hvlc.errors import UserError
from hvlc.files.reading import is_file, shown
from hvlc.manifest.manifest import Manifest
from hvlc.opening.engine import engine_runs
from hvlc.opening.tokenizer import TOKENIZER_FILES

_TEXT, _TOKENIZER = "request.text", "package.tokenizer"
_LOOKED_AT = 20_000  # first characters of a text
_KEPT, _LONGEST_KEPT = 256, 10_000  # texts whose tokens are kept, because a model is asked one thing many times

T = TypeVar("T")


def _keep(kept: "OrderedDict[str, T]", text: str, found: T, length: int) -> None:
    """Keep what was found for a text of some length, the least recently used dropped first."""
    if length <= _LONGEST_KEPT:
        kept[text] = found
        if len(kept) > _KEPT:
            kept.popitem(last=False)


class PackageTokenizer:
    """A package's tokenizer and chat template.

    Args:
        directory: the package.
        manifest: its manifest.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._form: Form | None = manifest.text.normalization if manifest.text else None
        names = [name for name in TOKENIZER_FILES if name in manifest.files and is_file(directory / name)]
        self._renderer = Renderer({name: directory / name for name in names})
        self._renderer.start()  # while the model is loaded
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._rendered: OrderedDict[str, str] = OrderedDict()

    def open(self, model: og.Model) -> None:
        """Open it, after a process of its own has.

        Raises:
            UserError: onnxruntime-genai cannot read it.
        """
        refusal = self._renderer.opened()
        if refusal is not None:
            raise self._unreadable(refusal.cause)
        try:
            self._tokenizer = og.Tokenizer(model)
        except RuntimeError as error:
            raise self._unreadable(str(error)) from error

    def encode(self, text: str, code: str = _TEXT) -> list[int]:
        """Ids of a text and nothing else, as the package's manifest says that texts are encoded.

        Args:
            text: any.
            code: of the error of a text.

        Raises:
            UserError: the runtime cannot take the text whole, or cannot encode it.
        """
        check_text(text, code)
        known = self._ids.get(text)
        if known is not None:
            self._ids.move_to_end(text)
            return list(known)
        looked = self._renderer.encoded([normalized(text[:_LOOKED_AT], self._form)])
        if isinstance(looked, Refusal):
            cause = f"onnxruntime-genai cannot tokenize with {shown(self._directory)}: {looked.cause}"
            fix = "do not trust this package" if looked.fatal else "build or copy the package again"
            raise UserError(_TOKENIZER, cause, fix)
        with engine_runs(self._directory, "tokenize with", _TOKENIZER):
            ids: list[int] = self._tokenizer.encode(normalized(text, self._form)).tolist()
        _keep(self._ids, text, tuple(ids), len(text))
        return ids

    def rendered(self, messages: Messages) -> str:
        """A chat through the chat template, up to where the next answer begins.

        Args:
            messages: each with "role" and "content", a text or its parts.

        Raises:
            UserError: onnxruntime-genai cannot render the template, or cannot take a text whole.
        """
        for content in (message["content"] for message in messages):
            for text in [content] if isinstance(content, str) else [part.get("text", "") for part in content]:
                check_text(text, _TEXT)
        asked = json.dumps(list(messages), sort_keys=True)
        if asked in self._rendered:
            self._rendered.move_to_end(asked)
            return self._rendered[asked]
        found = self._renderer.render(messages, answers=True)
        if isinstance(found, Refusal):
            cause = f"onnxruntime-genai cannot render the chat template of {shown(self._directory)}: {found.cause}"
            fix = "do not trust this package" if found.fatal else "simplify the template of the checkpoint"
            raise UserError("package.template", cause, fix)
        _keep(self._rendered, asked, found, len(found))
        return found

    def create_stream(self) -> Any:
        """Stream that turns tokens into text one by one."""
        return self._tokenizer.create_stream()

    def _unreadable(self, how: str) -> UserError:
        cause = f"onnxruntime-genai cannot read the tokenizer in {shown(self._directory)}: {shown(how)}"
        return UserError(_TOKENIZER, cause, "correct the checkpoint's tokenizer files and build again")
