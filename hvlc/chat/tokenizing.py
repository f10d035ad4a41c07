"""Tokenization of texts in the runtime, and its differences from the tokenizer's own library."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hvlc.chat.renderer import Refusal, Renderer
from hvlc.chat.source import runtime_files
from hvlc.chat.texts import ORDINARY, RARE, around
from hvlc.errors import UserError
from hvlc.files.reading import TOKENIZER, shown
from hvlc.inputs.documents import read_json

CODE = "checkpoint.tokenizer"
FILES = ("tokenizer.json", "tokenizer_config.json")
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

_FORMS: tuple[Form, ...] = get_args(Form)
_MOST_TOKENS = 200  # added tokens that are tried; the largest tokenizers reserve a thousand
_NAMED = 8  # of many, in an error
_FIX = "save the tokenizer again, or match it with the model"


@dataclass(frozen=True)
class Tokenizing:
    """Steps by which a host makes the tokens that the model was trained on.

    Attributes:
        form: Unicode form that a text is put into before it is encoded, which the runtime does not do; None: as it is.
        differing: kinds of texts whose tokens are others than the tokenizer's own library makes.
    """

    form: Form | None = None
    differing: tuple[str, ...] = ()


def normalized(text: str, form: Form | None) -> str:
    """A text as the runtime has to get it."""
    return unicodedata.normalize(form, text) if form else text


def check_text(text: str, code: str) -> None:
    """Refuse a text that the runtime cannot take whole: its strings end at a NUL, and are UTF-8.

    Raises:
        UserError: it has a NUL or half of a character.
    """
    at = text.find("\0")
    if at >= 0:
        cause = f"the text has a NUL at character {at + 1}, where the runtime's text would end: {text[:at][-40:]!r}"
        raise UserError(code, cause, "remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        cause = f"the text has half of a character at {error.start + 1}, {text[error.start]!r}"
        raise UserError(code, cause, "give UTF-8") from error


def added_tokens(directory: Path, code: str = CODE) -> dict[int, str]:
    """The texts of a tokenizer's added tokens by id.

    Raises:
        UserError: it is damaged.
    """
    return _added(_read(directory, code), directory, code)


def normalization(directory: Path) -> Form | None:
    """The Unicode form that a host puts texts into before the runtime encodes them; None: as they are.

    Raises:
        UserError: the tokenizer is damaged.
    """
    content = _read(directory, CODE)
    return _host_form(content, _added(content, directory, CODE).values())


def settle_tokens(directory: Path, vocabulary: int) -> Tokenizing:
    """Hold a checkpoint's tokenizer against the model and against the runtime.

    Args:
        directory: of the tokenizer's files.
        vocabulary: rows of the model's table.

    Raises:
        UserError: it is damaged, has tokens beyond the table, or the runtime cannot open it or makes other tokens of
            ordinary texts.
    """
    content = _read(directory, CODE)
    added = _added(content, directory, CODE)
    _check_table(_vocabulary(content, directory) | {text: i for i, text in added.items()}, vocabulary, directory)
    form = _host_form(content, added.values())
    renderer = Renderer(runtime_files(directory))
    try:
        return Tokenizing(form, _differing(renderer, directory, vocabulary, list(added.values()), form))
    finally:
        renderer.close()


def _differing(
    renderer: Renderer, directory: Path, vocabulary: int, added: list[str], form: Form | None
) -> tuple[str, ...]:
    """Kinds of texts that the runtime encodes otherwise than the tokenizer's own library.

    Raises:
        UserError: one of the two cannot read the tokenizer, or ordinary texts are among them.
    """
    names = {**dict.fromkeys(ORDINARY, "ordinary text"), **{text: name for name, text in RARE.items()}}
    names |= {text: name for name, text in around([t for t in added if t and "\0" not in t][:_MOST_TOKENS])}
    texts = list(names)
    own = renderer.reference(directory / "tokenizer.json", texts)
    if isinstance(own, Refusal):
        raise UserError(
            CODE, f"the tokenizer in {shown(directory)} is damaged: {own.cause}", "save the tokenizer again"
        )
    found = renderer.encoded([normalized(text, form) for text in texts])
    if isinstance(found, Refusal):
        cause = f"onnxruntime-genai cannot read the tokenizer in {shown(directory)}: {found.cause}"
        raise UserError(CODE, cause, _FIX)
    wrong = [i for i, (a, b) in enumerate(zip(found, own, strict=True)) if a != b]
    ordinary = [i for i in wrong if i < len(ORDINARY)]
    beyond = any(not 0 <= token < vocabulary for ids in found for token in ids)
    if beyond or 3 * len(ordinary) > len(ORDINARY):
        text = texts[next(iter(ordinary), 0)]
        cause = (
            f"with the tokenizer in {shown(directory)} onnxruntime-genai makes other tokens than tokenizers, "
            f"of {len(ordinary)} of {len(ORDINARY)} ordinary texts"
        )
        shown_ids = f"{text!r} becomes {found[texts.index(text)][:12]} instead of {own[texts.index(text)][:12]}"
        raise UserError(CODE, f"{cause}: {shown_ids}", "save it as its family's tokenizer class does")
    return tuple(dict.fromkeys(names[texts[i]] for i in wrong))


def _check_table(tokens: Mapping[str, int], rows: int, directory: Path) -> None:
    """Refuse tokens that the model has no row for: a prompt with one of them has no meaning to it.

    Raises:
        UserError: there are some.
    """
    beyond = sorted((i, text) for text, i in tokens.items() if not 0 <= i < rows)
    if beyond:
        named = ", ".join(f"{text} ({i})" for i, text in beyond[:_NAMED])
        more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
        cause = f"the tokenizer in {shown(directory)} has {named}{more}, and the model's table has {rows} rows"
        raise UserError(CODE, cause, "resize the table, or take the tokens out of tokenizer.json")


def _host_form(content: Mapping[str, Any], added: Iterable[str]) -> Form | None:
    """A tokenizer finds its added tokens before it normalizes, a host cannot: no form that would change one."""
    form = _form(content.get("normalizer"))
    return None if form and any(normalized(text, form) != text for text in added) else form


def _form(normalizer: Any) -> Form | None:
    """The Unicode form that a tokenizer's normalizer makes, if that is all that it does."""
    if not isinstance(normalizer, dict):
        return None
    if normalizer.get("type") == "Sequence" and isinstance(normalizer.get("normalizers"), list):
        inner = normalizer["normalizers"]
        return _form(inner[0]) if len(inner) == 1 else None
    return next((form for form in _FORMS if form == normalizer.get("type")), None)


def _read(directory: Path, code: str) -> dict[str, Any]:
    path = directory / "tokenizer.json"
    content = read_json(path, code, limit=TOKENIZER)
    if not isinstance(content, dict):
        raise UserError(code, f"{shown(path)} is not a JSON object", "save the tokenizer again")
    return content


def _added(content: Mapping[str, Any], directory: Path, code: str) -> dict[int, str]:
    try:
        found = {int(token["id"]): str(token["content"]) for token in content["added_tokens"]}
    except (KeyError, TypeError, ValueError) as error:
        cause = f"{shown(directory / 'tokenizer.json')} has no added tokens"
        raise UserError(code, cause, "save the tokenizer again") from error
    return found


def _vocabulary(content: Mapping[str, Any], directory: Path) -> dict[str, int]:
    """Every token of a tokenizer's model to its id."""
    model = content.get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(found, dict) and all(type(i) is int for i in found.values()):
        return found
    if isinstance(found, list) and all(isinstance(entry, list) and entry for entry in found):
        return {str(entry[0]): i for i, entry in enumerate(found)}  # of a unigram model, with scores
    cause = f"{shown(directory / 'tokenizer.json')} has no vocabulary of texts and ids"
    raise UserError(CODE, cause, "save the tokenizer again")
