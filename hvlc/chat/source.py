"""Chat template and special tokens of a checkpoint, as transformers 5.23 reads them.

`PreTrainedTokenizerBase._from_pretrained`: files win over the entry of tokenizer_config.json, special_tokens_map.json
counts where tokenizer_config.json lists no added tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import TEMPLATE, is_directory, is_file, read_bytes, shown
from hvlc.inputs.documents import read_json

CODE = "checkpoint.template"
_TOKENIZER = "checkpoint.tokenizer"
_CONFIG, _MAP, _JINJA = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
_PROCESSOR, _ADDITIONAL = "chat_template.json", "additional_chat_templates"
_DEFAULT = "default"
#: Entries of tokenizer_config.json that end onnxruntime-genai 0.18 (a null, as transformers writes it), or lead it to
#: other files than those of the package.
NOT_FOR_RUNTIME = ("chat_template", "tiktoken_file")
_MOST = 64  # named templates of a checkpoint

_NAMED = "bos_token eos_token unk_token sep_token pad_token cls_token mask_token".split()
#: Defaults of transformers' tokenizer classes for a token that no file names.
_CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}


@dataclass(frozen=True)
class ChatTemplate:
    """The template that a checkpoint's chats go through.

    Attributes:
        text: the Jinja source.
        place: file that holds it.
        others: names of further templates, which no package takes.
    """

    text: str
    place: str
    others: tuple[str, ...] = ()


def read_template(directory: Path) -> ChatTemplate | None:
    """The template that transformers takes for a chat without tools; None where there is none.

    Raises:
        UserError: a file is damaged, or there are several templates and none is the default.
    """
    named, place = _files(directory), _JINJA
    if not named:
        found = tokenizer_config(directory).get("chat_template")
        named, place = _entries(found, directory / _CONFIG), _CONFIG
    if not named and is_file(directory / _PROCESSOR):
        content = read_json(directory / _PROCESSOR, _TOKENIZER, limit=TEMPLATE)
        found = content.get("chat_template") if isinstance(content, dict) else None
        named, place = _entries(found, directory / _PROCESSOR), _PROCESSOR
    others = tuple(sorted(name for name in named if name != _DEFAULT))
    if _DEFAULT not in named:
        if not others:
            return None
        cause = f"{shown(directory)} has the chat templates {', '.join(others)}, and none is named {_DEFAULT}"
        raise UserError(CODE, cause, f"save the one to use as {_JINJA}")
    return ChatTemplate(named[_DEFAULT], place, others) if named[_DEFAULT] else None


def read_specials(directory: Path) -> dict[str, str]:
    """The texts of the special tokens that have a name, as templates get them.

    Raises:
        UserError: a file is damaged.
    """
    config = tokenizer_config(directory)
    merged: dict[str, Any] = dict(config)
    if "added_tokens_decoder" not in config and is_file(directory / _MAP):
        content = read_json(directory / _MAP, _TOKENIZER)
        merged |= content if isinstance(content, dict) else {}
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    found = dict(_CLASS_TOKENS.get(name, {}))
    for key, value in merged.items():
        if key not in _NAMED and not key.endswith("_token"):
            continue
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
        elif value is None:
            found.pop(key, None)
    extra = merged.get("extra_special_tokens")
    if isinstance(extra, dict):
        found |= {key: text for key, text in extra.items() if isinstance(text, str)}
    return found


def tokenizer_config(directory: Path) -> dict[str, Any]:
    """Content of tokenizer_config.json; {} where there is none.

    Raises:
        UserError: it cannot be read, or is not an object.
    """
    path = directory / _CONFIG
    content = read_json(path, _TOKENIZER) if is_file(path) else {}
    if not isinstance(content, dict):
        raise UserError(_TOKENIZER, f"{shown(path)} is not a JSON object", "save the tokenizer again")
    return content


def runtime_files(directory: Path) -> dict[str, Path | str]:
    """The tokenizer's files as onnxruntime-genai has to find them, without a template.

    Raises:
        UserError: tokenizer_config.json is damaged.
    """
    config = {key: value for key, value in tokenizer_config(directory).items() if key not in NOT_FOR_RUNTIME}
    return {"tokenizer.json": directory / "tokenizer.json", _CONFIG: json.dumps(config)}


def _files(directory: Path) -> dict[str, str]:
    """Templates in files of their own, by name."""
    found = {}
    if is_file(directory / _JINJA):
        found[_DEFAULT] = _text(directory / _JINJA)
    folder = directory / _ADDITIONAL
    if is_directory(folder):
        try:
            paths = sorted(folder.glob("*.jinja"))
        except OSError as error:
            raise UserError(CODE, f"cannot read {shown(folder)}: {error.strerror}", "check permissions") from error
        if len(paths) > _MOST:
            raise UserError(CODE, f"{shown(folder)} has {len(paths)} templates", f"keep {_MOST} or fewer")
        found |= {path.name.removesuffix(".jinja"): _text(path) for path in paths if is_file(path)}
    return found


def _entries(value: Any, path: Path) -> dict[str, str]:
    """Templates of a JSON file: one as a text, or several with names.

    Raises:
        UserError: it is neither.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {_DEFAULT: value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    cause = f"chat_template of {shown(path)} is neither a text nor a list of names and templates"
    raise UserError(CODE, cause, "save the tokenizer again")


def _text(path: Path) -> str:
    """A template as Python's text files are read: line breaks of every kind are one, a byte order mark is text."""
    content = read_bytes(path, CODE, limit=TEMPLATE, fix="check the template")
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        cause = f"{shown(path)} is not UTF-8: {error.reason} at byte {error.start}"
        raise UserError(CODE, cause, "save it as UTF-8") from error
