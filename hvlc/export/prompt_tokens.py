"""Token ids that an image brings into a prompt, as the checkpoint's own tokenizer makes them.

Runs of ordinary text between special tokens are encoded whole and where they stand: two newlines in a row are one token
in most vocabularies.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hvlc.chat.renderer import Refusal, Renderer
from hvlc.chat.source import runtime_files
from hvlc.chat.tokenizing import CODE, added_tokens
from hvlc.errors import UserError
from hvlc.files.reading import is_file, shown
from hvlc.inputs.tokenizer import tokenizer_config

_NAMED = 4  # tokens in an error


class PromptTokens:
    """The special tokens of a checkpoint's tokenizer.

    Args:
        directory: the checkpoint.

    Raises:
        UserError: there is no tokenizer, or it is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not is_file(directory / "tokenizer.json"):
            cause = f"{shown(directory)} holds no tokenizer.json, which says what an image becomes in a prompt"
            raise UserError(CODE, cause, "save the processor beside the model")
        self._texts = added_tokens(directory)
        self._ids = {text: token for token, text in self._texts.items()}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json, where names of special tokens stand."""
        return tokenizer_config(self.directory, CODE)

    def named(self, setting: str, default: str) -> str:
        """Text of a special token that tokenizer_config.json may name.

        Args:
            setting: key of its settings, such as "image_token".
            default: text where the settings do not name it.
        """
        extra = self.settings.get("extra_special_tokens")
        found = self.settings.get(setting) or (extra.get(setting) if isinstance(extra, dict) else None)
        content = found.get("content") if isinstance(found, dict) else found
        return content if isinstance(content, str) and content else default

    def id_of(self, text: str) -> int:
        """Id of a special token.

        Raises:
            UserError: the tokenizer does not have it.
        """
        return self.ids_of([text])[0]

    def ids_of(self, texts: Sequence[str]) -> list[int]:
        """Ids of special tokens.

        Raises:
            UserError: the tokenizer lacks some.
        """
        missing = [text for text in texts if text not in self._ids]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            cause = f"the tokenizer in {shown(self.directory)} has no token {', '.join(missing[:_NAMED])}{more}"
            raise UserError(CODE, cause, "save the processor's own tokenizer beside the model")
        return [self._ids[text] for text in texts]

    def check(self, token: int, text: str, setting: str) -> None:
        """Hold an id of config.json against the tokenizer.

        Raises:
            UserError: the tokenizer has another id for the text.
        """
        found = self.id_of(text)
        if found != token:
            cause = f"config.json: {setting} is {token}, and the tokenizer's {text} is {found}"
            raise UserError("checkpoint.config", cause, "match config.json and tokenizer")

    def between(self, runs: Sequence[tuple[str, str, str]]) -> list[tuple[int, ...]]:
        """Ids of texts where they stand.

        Args:
            runs: for each, the special token before it, the text, and the special token after it.

        Raises:
            UserError: the tokenizer cannot be read, or does not keep the special tokens apart.
        """
        renderer = Renderer(runtime_files(self.directory))
        try:
            found = renderer.reference(self.directory / "tokenizer.json", ["".join(run) for run in runs])
        finally:
            renderer.close()
        if isinstance(found, Refusal):
            cause = f"the tokenizer in {shown(self.directory)} is damaged: {found.cause}"
            raise UserError(CODE, cause, "save the tokenizer again")
        return [self._inside(run, ids) for run, ids in zip(runs, found, strict=True)]

    def _inside(self, run: tuple[str, str, str], ids: Sequence[int]) -> tuple[int, ...]:
        left, text, right = run
        before, after = self.id_of(left), self.id_of(right)
        if before not in ids or after not in ids[ids.index(before) + 1 :]:
            cause = f"the tokenizer in {shown(self.directory)} does not keep {left} and {right} apart around {text!r}"
            raise UserError(CODE, cause, "save them as special tokens")
        start = ids.index(before) + 1
        return tuple(ids[start : ids.index(after, start)])
