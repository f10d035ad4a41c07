"""Tokenizer and chat template of a package: the checkpoint's, in the form that the runtime reads."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hvlc.chat.package_template import PackageTemplate, package_template
from hvlc.chat.source import NOT_FOR_RUNTIME, read_specials, read_template, tokenizer_config
from hvlc.chat.tokenizing import Tokenizing, added_tokens, settle_tokens
from hvlc.errors import UserError
from hvlc.files.reading import is_file
from hvlc.graphs.facts import Facts

_CODE = "checkpoint.tokenizer"
_NAMED = 6  # kinds of texts in a note; all are in the manifest
_CONFIG, _JINJA = "tokenizer_config.json", "chat_template.jinja"
_FILES = ("tokenizer.json", _CONFIG, _JINJA, "special_tokens_map.json")
#: The runtime takes them from tokenizer_config.json alone.
_TOKENS = ("bos_token", "eos_token")


_AS_IT_IS = Tokenizing()


@dataclass(frozen=True)
class PackageText:
    """Tokenizer and chat template of a package.

    Attributes:
        template: the chat template; None where the checkpoint has none.
        dropped: named templates that stay behind.
        place: file of the checkpoint that holds the template.
        tokenizing: how a host makes tokens.
    """

    template: PackageTemplate | None = None
    dropped: tuple[str, ...] = ()
    place: str = ""
    tokenizing: Tokenizing = _AS_IT_IS

    @property
    def is_as_stored(self) -> bool:
        """Whether the template may stay where it is in the checkpoint, to the byte."""
        return self.template is not None and not self.template.changes and not self.dropped

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, a sentence each."""
        found = []
        if self.tokenizing.differing:
            kinds = ", ".join(self.tokenizing.differing[:_NAMED])
            more = len(self.tokenizing.differing) - _NAMED
            kinds += f" and {more} more" if more > 0 else ""
            found.append(f"tokenizer: onnxruntime-genai makes other tokens than the tokenizers library of {kinds}")
        if self.tokenizing.form:
            found.append(
                f"tokenizer: a host puts texts into the form {self.tokenizing.form}, which the runtime does not"
            )
        if self.template is None:
            return tuple(found)
        found += [f"chat template: rewritten for onnxruntime-genai, because {c}" for c in self.template.changes]
        found += [f"chat template: {name} is left out, a package has the default alone" for name in self.dropped]
        if self.template.left_out:
            chats = ", ".join(self.template.left_out)
            found.append(f"chat template: refuses, in transformers as written, {chats}")
        return tuple(found)


def settle_text(source: Path, facts: Facts) -> PackageText:
    """Hold a checkpoint's tokenizer and template against what its kind of package needs, and settle them.

    Args:
        source: directory of the tokenizer.
        facts: the bundle's facts.

    Raises:
        UserError: a file that onnxruntime-genai reads is missing or damaged, the tokenizer lacks an image token, or the
            runtime cannot render the template as transformers does.
    """
    if facts.text is None:
        return PackageText()
    _check_files(source)
    if facts.image is not None:
        token_texts(source, [facts.image.image_token_id])
    tokenizing = _tokenizing(source, facts.text.vocab_size)
    found = read_template(source)
    if found is None:
        return PackageText(tokenizing=tokenizing)
    settled = _settled(found.text, tuple(sorted(read_specials(source).items())), source, facts.image is not None)
    return PackageText(settled, found.others, found.place, tokenizing)


def tokenizer_files(source: Path) -> list[Path]:
    """The files of a checkpoint that go into the package."""
    return [source / name for name in _FILES if is_file(source / name)]


def copy_tokenizer(source: Path, directory: Path, text: PackageText) -> None:
    """Copy the tokenizer; the template goes to the one place where the runtime finds it.

    Raises:
        UserError: its tokenizer_config.json is damaged.
    """
    for path in tokenizer_files(source):
        if path.name not in (_CONFIG, _JINJA):
            shutil.copyfile(path, directory / path.name)
    stored = tokenizer_config(source)
    inside = text.is_as_stored and text.place == _CONFIG and isinstance(stored.get("chat_template"), str)
    kept = ("chat_template",) if inside else ()
    config = {key: value for key, value in stored.items() if key not in NOT_FOR_RUNTIME or key in kept}
    if text.template is not None:
        specials = read_specials(source)
        config |= {n: specials[n] for n in _TOKENS if n in specials and _content(config.get(n)) != specials[n]}
        if not inside:
            (directory / _JINJA).write_text(text.template.text, "utf-8")
    if config == stored:
        shutil.copyfile(source / _CONFIG, directory / _CONFIG)
    else:
        (directory / _CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")


def token_texts(source: Path, ids: list[int]) -> list[str]:
    """The texts of added tokens.

    Raises:
        UserError: the tokenizer is damaged, or an id is none of its added tokens.
    """
    added = added_tokens(source)
    missing = [i for i in ids if i not in added]
    if missing:
        raise UserError(_CODE, f"the tokenizer has no added token {missing[0]}", "match config and tokenizer")
    return [added[i] for i in ids]


def _check_files(source: Path) -> None:
    missing = [name for name in ("tokenizer.json", _CONFIG) if not is_file(source / name)]
    if missing:
        raise UserError(_CODE, f"{source} holds no {' and no '.join(missing)}", "save the tokenizer beside the model")


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _tokenizing(source: Path, vocabulary: int) -> Tokenizing:
    """The same for the same files however many packages are built with them."""
    state = [(source / name).stat() for name in ("tokenizer.json", _CONFIG)]
    return _known_tokenizing(source, vocabulary, tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in state))


@cache
def _known_tokenizing(source: Path, vocabulary: int, state: tuple[tuple[int, ...], ...]) -> Tokenizing:
    return settle_tokens(source, vocabulary)


@cache
def _settled(text: str, specials: tuple[tuple[str, str], ...], source: Path, sees: bool) -> PackageTemplate:
    """The same for one template however many packages are built of it; the specials as pairs, which can be hashed."""
    known: Mapping[str, str] = dict(specials)
    return package_template(text, known, source, images=sees)
