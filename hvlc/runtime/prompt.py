"""From the prompt to tokens: the package's chat template, or the plain prompt where it has none."""

import json
from pathlib import Path
from typing import Any

import onnxruntime_genai as og

from hvlc.checkpoint import read_json
from hvlc.errors import UserError


def open_tokenizer(model: og.Model, directory: Path) -> og.Tokenizer:
    """The package's tokenizer.

    Raises:
        UserError: onnxruntime-genai cannot read it.
    """
    try:
        return og.Tokenizer(model)
    except RuntimeError as error:
        cause = f"onnxruntime-genai cannot read the tokenizer in {directory}: {error}"
        raise UserError(
            "package.tokenizer", cause, "correct the checkpoint's tokenizer files and build again"
        ) from error


def has_template(directory: Path) -> bool:
    """Whether the package brings a chat template.

    Raises:
        UserError: its tokenizer_config.json cannot be read.
    """
    if (directory / "chat_template.jinja").is_file():
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config, "package.tokenizer").get("chat_template"))


def templated(tokenizer: og.Tokenizer, content: str | list[dict[str, str]]) -> str:
    """One user message through the chat template, up to where the answer begins.

    Raises:
        UserError: onnxruntime-genai cannot render the template.
    """
    message = json.dumps([{"role": "user", "content": content}])
    try:
        text: str = tokenizer.apply_chat_template(message, add_generation_prompt=True)
    except RuntimeError as error:
        cause = f"onnxruntime-genai cannot render the package's chat template: {error}"
        raise UserError("package.template", cause, "simplify chat_template.jinja of the checkpoint") from error
    return text


def opening_tokens(directory: Path) -> list[int]:
    """Ids that the tokenizer puts before a plain text, such as a token of its beginning.

    A chat template writes them itself, and onnxruntime-genai adds none.

    Raises:
        UserError: tokenizer.json cannot be read.
    """
    post: Any = read_json(directory / "tokenizer.json", "package.tokenizer").get("post_processor") or {}
    for processor in post.get("processors", [post]):
        if processor.get("type") == "TemplateProcessing":
            return _leading(processor)
    return []


def _leading(processor: dict[str, Any]) -> list[int]:
    """Special tokens of a single-text template that stand before the text."""
    ids: list[int] = []
    for piece in processor["single"]:
        if "SpecialToken" not in piece:
            break
        ids += processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return ids
