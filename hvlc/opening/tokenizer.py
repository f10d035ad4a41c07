"""The tokenizer files of a package: read within bounds, and of the form that libraries count on, before one reads them.

What the tokenizer makes of a text, and whether its template can be rendered, is not asked here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvlc.errors import UserError
from hvlc.files.reading import TEMPLATE, TOKENIZER, is_file, read_text, shown
from hvlc.inputs.documents import read_json

#: Files of a tokenizer that packages have; onnxruntime-genai finds others too, and is not shown them.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")

_CODE = "package.tokenizer"
_FIX = "build or copy the package again"
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_MOST_IDS = 2**24  # the largest public vocabularies have 2**18


def check_tokenizer(directory: Path) -> None:
    """Hold the tokenizer files of a package against the form that they have.

    Raises:
        UserError: one cannot be read, is larger than it may be, or has another form.
    """
    if is_file(directory / "chat_template.jinja"):
        template = read_text(directory / "chat_template.jinja", "package.template", limit=TEMPLATE, fix=_FIX)
        if "\0" in template:
            cause = f"{shown(directory / 'chat_template.jinja')} has a NUL, where the runtime's text would end"
            raise UserError("package.template", cause, _FIX)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = directory / name
        if is_file(path) and not isinstance(content := read_json(path, _CODE), dict):
            raise _damaged(path, f"it is a {type(content).__name__}")
    path = directory / "tokenizer.json"
    if is_file(path):
        problem = next(_problems(read_json(path, _CODE, limit=TOKENIZER)), None)
        if problem:
            raise _damaged(path, problem)


def _problems(content: Any) -> Iterator[str]:
    """Problems of tokenizer.json: parts that do not have the form of the tokenizers library."""
    if not isinstance(content, dict):
        yield "it is not a mapping"
        return
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in _MODELS:
        yield f"it has no model of {', '.join(_MODELS)}"
        return
    yield from _vocabulary(model.get("vocab"))
    yield from _merges(model.get("merges", []))
    yield from _added(content.get("added_tokens") or [])
    yield from _post_processor(content.get("post_processor") or {})


def _vocabulary(vocab: Any) -> Iterator[str]:
    if isinstance(vocab, dict):
        if not all(_is_id(number) for number in vocab.values()):
            yield f"a token of its vocabulary has no id below {_MOST_IDS}"
    elif not isinstance(vocab, list):
        yield "it has no vocabulary"
    elif len(vocab) > _MOST_IDS or not all(_is_piece(entry) for entry in vocab):
        yield "an entry of its vocabulary is not a piece with a score"


def _is_piece(entry: Any) -> bool:
    pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
    return pair and isinstance(entry[1], int | float) and not isinstance(entry[1], bool)


def _merges(merges: Any) -> Iterator[str]:
    if not isinstance(merges, list) or not all(_is_merge(merge) for merge in merges):
        yield "one of its merges is not two pieces"


def _is_merge(merge: Any) -> bool:
    pieces = merge.split(" ") if isinstance(merge, str) else merge
    return isinstance(pieces, list) and len(pieces) == 2 and all(isinstance(piece, str) for piece in pieces)


def _added(tokens: Any) -> Iterator[str]:
    if not isinstance(tokens, list) or not all(_is_token(token) for token in tokens):
        yield f"one of its added tokens has no text or no id below {_MOST_IDS}"


def _is_token(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str) and _is_id(token.get("id"))


def _post_processor(post: Any) -> Iterator[str]:
    listed = post.get("processors", [post]) if isinstance(post, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        yield "its post_processor is not one"
        return
    for one in listed:
        if one.get("type") == "TemplateProcessing" and not _is_template(one):
            yield "its post_processor's template is not one of pieces and special tokens"


def _is_template(processor: dict[str, Any]) -> bool:
    single, special = processor.get("single"), processor.get("special_tokens")
    if not isinstance(single, list) or not isinstance(special, dict):
        return False
    known = {
        name
        for name, token in special.items()
        if isinstance(token, dict) and isinstance(ids := token.get("ids"), list) and all(_is_id(i) for i in ids)
    }
    pieces = [piece.get("SpecialToken") for piece in single if isinstance(piece, dict) and "SpecialToken" in piece]
    named = all(isinstance(piece, dict) and piece.get("id") in known for piece in pieces)
    return named and all(isinstance(piece, dict) for piece in single)


def _is_id(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < _MOST_IDS


def _damaged(path: Path, cause: str) -> UserError:
    return UserError(_CODE, f"{shown(path)} is not a tokenizer's file: {cause}", _FIX)
