"""The one template of a package: transformers' own, in words that the runtime reads alike, shown on sample chats."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvlc.chat.renderer import Refusal, Renderer
from hvlc.chat.samples import Chat, chats
from hvlc.errors import UserError

CODE = "checkpoint.template"
_SHOWN = 60  # characters on each side of a difference
#: The smallest tokenizer that onnxruntime-genai opens: a template is rendered without the checkpoint's own.
_TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    }
)


@dataclass(frozen=True)
class PackageTemplate:
    """A template as the package has it.

    Attributes:
        text: the template.
        changes: why it is not the checkpoint's own, to the byte; none where it is.
        left_out: chats that transformers refuses with it, so that nothing is known of them.
    """

    text: str
    changes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def package_template(
    source: str, specials: Mapping[str, str], directory: Path, *, images: bool, renderer: Renderer | None = None
) -> PackageTemplate:
    """Find the text with which the runtime renders what transformers renders from `source`.

    A source that both read alike stays as it is; else it is translated, and compared on sample chats either way.

    Args:
        source: the checkpoint's template.
        specials: special tokens by name.
        directory: of the checkpoint, for errors.
        images: whether the model sees.
        renderer: renders; one of its own when None.

    Raises:
        UserError: transformers cannot render it, it has no bound, or the runtime renders something else.
    """
    own = renderer or Renderer({})
    try:
        return _settled(own, source, specials, directory, images)
    finally:
        if renderer is None:
            own.close()


def _files(specials: Mapping[str, str], template: str) -> dict[str, Path | str]:
    """Files with which the runtime renders a template."""
    tokens = {name: specials[name] for name in ("bos_token", "eos_token") if name in specials}
    return {
        "tokenizer.json": _TOKENIZER,
        "tokenizer_config.json": json.dumps({"tokenizer_class": "TokenizersBackend", **tokens}),
        "chat_template.jinja": template,
    }


def _settled(
    renderer: Renderer, source: str, specials: Mapping[str, str], directory: Path, images: bool
) -> PackageTemplate:
    expected = _expected(renderer, source, specials, directory, images)
    left_out = tuple(chat.name for chat, text in expected if isinstance(text, Refusal))
    translated = renderer.translated(source, specials)
    if isinstance(translated, Refusal):
        cause = f"onnxruntime-genai cannot render the chat template of {directory}: {translated.cause}"
        raise UserError(CODE, cause, "simplify the template")
    text, changes = translated
    difference = None
    for candidate, why in ((source, ()), (text, changes or ("the runtime reads it otherwise",))):
        if candidate is source and changes:
            continue
        renderer.use(_files(specials, candidate))
        difference = _difference(renderer, expected)
        if difference is None:
            return PackageTemplate(candidate, why, left_out)
    cause = f"onnxruntime-genai renders the chat template of {directory} otherwise than transformers: {difference}"
    raise UserError(CODE, cause, "simplify the template")


def _expected(
    renderer: Renderer, source: str, specials: Mapping[str, str], directory: Path, images: bool
) -> list[tuple[Chat, str | Refusal]]:
    """Prompt of each chat as transformers renders it.

    Raises:
        UserError: it cannot render the simplest, or does not come to an end.
    """
    found: list[tuple[Chat, str | Refusal]] = []
    for chat in chats(images):
        text = renderer.transformers(chat.messages, source, specials, answers=chat.answers)
        if isinstance(text, Refusal) and (text.fatal or chat.needed):
            cause = f"transformers cannot render {chat.name} with the chat template of {directory}: {text.cause}"
            raise UserError(CODE, cause, "correct the template")
        if isinstance(text, str) and isinstance(chat.messages[-1]["content"], list) and "'type'" in text:
            text = Refusal("it writes parts of a content as Python shows them")
        found.append((chat, text))
    return found


def _difference(renderer: Renderer, expected: list[tuple[Chat, str | Refusal]]) -> str | None:
    """The first chat that the runtime renders otherwise, and where; None where there is none."""
    for chat, text in expected:
        if isinstance(text, Refusal):
            continue
        found = renderer.render(chat.messages, answers=chat.answers)
        if isinstance(found, Refusal):
            return f"of {chat.name} it says: {found.cause}"
        if found != text:
            return f"{chat.name} becomes {_around(found, text)} instead of {_around(text, found)}"
    return None


def _around(text: str, other: str) -> str:
    """A text around the place where it leaves another."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, at - _SHOWN // 2)
    return f"{'…' if start else ''}{text[start : at + _SHOWN]!r}"
