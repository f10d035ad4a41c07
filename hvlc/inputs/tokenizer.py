"""Tokenizer files of a checkpoint or package, read without the tokenizers library."""

from pathlib import Path
from typing import Any

from hvlc.files.reading import TEMPLATE, TOKENIZER, is_file, read_text
from hvlc.inputs.documents import read_json


def chat_template(directory: Path, code: str) -> str | None:
    """The Jinja source of a package's chat template, as onnxruntime-genai finds it; None where there is none.

    What a checkpoint has is another matter (`hvlc.chat.source`).

    Args:
        directory: a package.
        code: of the error.

    Raises:
        UserError: the file that would hold it cannot be read.
    """
    config, path = tokenizer_config(directory, code), directory / "chat_template.jinja"
    if "chat_template" in config:
        template = config["chat_template"]
        return template if isinstance(template, str) and template else None
    return (read_text(path, code, limit=TEMPLATE, fix="check the directory") or None) if is_file(path) else None


def tokenizer_config(directory: Path, code: str) -> dict[str, Any]:
    """Content of tokenizer_config.json; {} where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = directory / "tokenizer_config.json"
    content = read_json(path, code) if is_file(path) else {}
    return content if isinstance(content, dict) else {}


def opening_tokens(directory: Path, code: str) -> list[int]:
    """Ids that the tokenizer puts before a plain text, such as a token of its beginning.

    A chat template writes them itself, and onnxruntime-genai adds none.

    Raises:
        UserError: tokenizer.json cannot be read.
    """
    post: Any = read_json(directory / "tokenizer.json", code, limit=TOKENIZER).get("post_processor") or {}
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
